"""The network against its linearisation at the start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regimes.control.scale import unscaled
from regimes.core.batch import Inputs, check, count, device_of
from regimes.core.check import checked
from regimes.core.derivative import Output, check_names, check_separable, columns, exact, jvp, value
from regimes.core.error import UserError
from regimes.core.state import State
from regimes.core.tree import sub, trainable
from regimes.measure.probe import Snapshot

__all__ = ["Gap", "check_trees", "gap", "linearized"]

Tree = Mapping[str, Tensor]


@checked
def linearized(
    module: nn.Module,
    x: Inputs,
    *,
    origin: Tree,
    parameters: Tree | None = None,
    output: Output | None = None,
) -> Float[Tensor, "n c"]:
    r"""F_lin(w, x) = F(w0, x) + J(w0, x) (w - w0), by one pass in forward mode.

    Args:
        module: F, scaled or not, with outputs (n,) or (n, c).
        x: inputs.
        origin: w0 by name, as ``State.origin``.
        parameters: w by name (default: the parameters of the module), as ``State.parameters``.
        output: what picks the outputs from what the module returns.

    Returns:
        (n, c), without a graph.

    Raises:
        UserError: if names are missing or unknown, shapes are not those of the module, the inputs are empty or not
            finite, or the module couples samples or is random.

    Source: Chizat, Oyallon, Bach 2019, section 1.

    >>> net = nn.Linear(2, 1)
    >>> start = {name: p.detach().clone() for name, p in net.named_parameters()}
    >>> x = torch.ones(3, 2)
    >>> torch.equal(linearized(net, x, origin=start), net(x))
    True
    """
    start, along, _, center, alpha = _terms(module, x, origin, parameters, output)
    return alpha * (start - center + along)


@checked
def gap(
    module: nn.Module,
    x: Inputs,
    *,
    origin: Tree,
    parameters: Tree | None = None,
    output: Output | None = None,
) -> float:
    r"""The linearisation gap ||F(w, x) - F_lin(w, x)|| / ||F(w, x)||, over all samples and outputs.

    F_lin is the linearisation at w0 (see :func:`linearized`). In the lazy limit the gap falls like 1/alpha.

    Args:
        module: F, scaled or not, with outputs (n,) or (n, c).
        x: inputs.
        origin: w0 by name, as ``State.origin``.
        parameters: w by name (default: the parameters of the module), as ``State.parameters``.
        output: what picks the outputs from what the module returns.

    Returns:
        The gap; 0 at the start, where a centred network gives 0 / 0; inf if only F is 0.

    Raises:
        UserError: as :func:`linearized`.

    Source: Chizat, Oyallon, Bach 2019, theorem 2.2.

    >>> net = nn.Linear(2, 1)
    >>> gap(net, torch.ones(3, 2), origin=dict(net.named_parameters()))
    0.0
    """
    start, along, now, center, _ = _terms(module, x, origin, parameters, output)
    # alpha cancels, and so does the centre above: the difference is taken between numbers of order one.
    missed = torch.linalg.vector_norm(now - start - along)
    if not along.any() and torch.equal(now, start):
        return 0.0
    return float(missed / torch.linalg.vector_norm(now - center)) if missed else 0.0


def _terms(
    module: nn.Module, x: Inputs, origin: Tree, parameters: Tree | None, output: Output | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    """f(w0, x), J(w0, x) (w - w0), f(w, x), what F subtracts from f, and alpha."""
    check(x, "x")
    given = trainable(module) if parameters is None else parameters
    check_trees(module, given, origin)
    network, alpha, frozen = unscaled(module)
    check_separable(network)
    prefix = "" if network is module else "network."
    after = {name.removeprefix(prefix): value.detach() for name, value in given.items()}
    before = {name.removeprefix(prefix): value.detach() for name, value in origin.items()}
    with exact(device_of(x)), torch.no_grad():
        start, along = jvp(network, before, x, sub(after, before), output=output)
        now = columns(value(network, after, x, output), count(x))
        center = torch.zeros_like(now) if frozen is None else columns(value(frozen, {}, x, output), count(x))
    return start, along, now, center, alpha


def check_trees(module: nn.Module, parameters: Tree, origin: Tree) -> None:
    """Raise unless both have a value for every trainable parameter, of its shape, and of one dtype."""
    for argument, tree in (("parameters", parameters), ("origin", origin)):
        check_names(module, tree, argument)
        for name, own in module.named_parameters():
            value = tree.get(name, own)
            if value.shape != own.shape:
                raise UserError(
                    f"`{argument}`: '{name}' has shape {tuple(value.shape)}, expected {tuple(own.shape)}, as in the "
                    "module"
                )
            if name in origin and value.dtype != origin[name].dtype:
                raise UserError(
                    f"`origin`: '{name}' is of {origin[name].dtype}, expected {value.dtype}, as in `parameters`"
                )


@checked
@dataclass(frozen=True, eq=False)
class Gap(Snapshot):
    """How far a member is from its linearisation at its start. Value: ``gap`` (see :func:`gap`).

    Attributes:
        inputs: x, (n, ...).
    """

    inputs: Tensor

    def look(self, state: State) -> Mapping[str, float]:
        """The gap now."""
        return {"gap": gap(state.module, self.inputs, origin=state.origin, parameters=state.parameters)}
