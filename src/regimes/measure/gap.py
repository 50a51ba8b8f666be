"""The network against its linearisation at the start."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from regimes.control.scale import unscaled
from regimes.core.batch import Inputs, check, check_finite, count, device_of
from regimes.core.check import checked
from regimes.core.derivative import Output, check_separable, columns, exact, jvp, value
from regimes.core.estimate import Estimate, delete_one
from regimes.core.state import State
from regimes.core.tree import Tree, is_finite, named_pair, size, sub
from regimes.measure.pairs import check_interval
from regimes.measure.probe import Columns, Snapshot, numbers, with_ends

__all__ = ["Gap", "gap", "linearized"]


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
    for name, each in origin.items():
        check_finite(each, f"`origin`: '{name}'", "a linearisation needs a point to start from")
    start, along, _, center, alpha = _terms(module, x, origin, parameters, output)
    return alpha * (start - center + along)


@overload
def gap(
    module: nn.Module,
    x: Inputs,
    *,
    origin: Tree,
    parameters: Tree | None = None,
    output: Output | None = None,
    interval: None = None,
) -> float: ...
@overload
def gap(
    module: nn.Module,
    x: Inputs,
    *,
    origin: Tree,
    parameters: Tree | None = None,
    output: Output | None = None,
    interval: float,
) -> Estimate: ...
@checked
def gap(
    module: nn.Module,
    x: Inputs,
    *,
    origin: Tree,
    parameters: Tree | None = None,
    output: Output | None = None,
    interval: float | None = None,
) -> float | Estimate:
    r"""The linearisation gap ||F(w, x) - F_lin(w, x)|| / ||F(w, x)||, over all samples and outputs.

    F_lin is the linearisation at w0 (see :func:`linearized`). In the lazy limit the gap falls like 1/alpha.

    Args:
        module: F, scaled or not, with outputs (n,) or (n, c).
        x: inputs.
        origin: w0 by name, as ``State.origin``, or a state dict.
        parameters: w by name (default: the parameters of the module), as ``State.parameters``, or a state dict.
        output: what picks the outputs from what the module returns.
        interval: the coverage wanted of an interval, such as 0.95, for the gap on all inputs, of which these are a
            sample.

    Returns:
        The gap; 0 at the start, where a centred network gives 0 / 0; inf if only F is 0. With ``interval`` an
        :class:`~regimes.core.estimate.Estimate` of the same value, by leaving out each sample in turn, on the
        logarithm.

    Raises:
        UserError: as :func:`linearized`, or if an output is not finite.

    Source: Chizat, Oyallon, Bach 2019, theorem 2.2; Efron and Stein 1981 for the interval.

    >>> net = nn.Linear(2, 1)
    >>> gap(net, torch.ones(3, 2), origin=dict(net.named_parameters()))
    0.0
    """
    check_interval(interval)
    missed, whole = _missed(module, x, origin, parameters, output)
    for outputs in (missed, whole):
        check_finite(outputs, "`module`: outputs", "the gap is that of a model that has not diverged")
    return _ratio(missed, whole) if interval is None else _ratio_with_ends(missed, whole, interval)


def _missed(
    module: nn.Module,
    x: Inputs,
    origin: Tree,
    parameters: Tree | None,
    output: Output | None,
    first: nn.Module | None = None,
) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
    """What the linearisation, of the architecture at the start if that was another, misses, and F, over alpha."""
    start, along, now, center, _ = _terms(module, x, origin, parameters, output, first)
    # alpha cancels, and so does the centre above: the difference is taken between numbers of order one.
    missed = now - start - along
    return (missed.zero_() if not along.any() and torch.equal(now, start) else missed), now - center


def _ratio(missed: Tensor, whole: Tensor) -> float:
    far, scale = size(missed), size(whole)
    if far == 0.0:
        return 0.0
    return far / scale if scale else math.inf


def _ratio_with_ends(missed: Tensor, whole: Tensor, interval: float) -> Estimate:
    """The same with its interval: each sample is left out of both sums."""
    bare, n = _ratio(missed, whole), len(missed)
    far, scale = (
        (each.double() / (float(each.abs().max()) or 1.0)).square().sum(1).cpu().numpy()
        for each in (missed, whole)
    )
    tops = float(missed.abs().max()), float(whole.abs().max())
    left, rest = (np.maximum(each.sum() - each, 0.0) for each in (far, scale))
    share = np.divide(left, rest, out=np.where(left > 0, np.inf, 0.0), where=rest > 0)
    without = np.sqrt(share) * (tops[0] / tops[1] if tops[1] else 1.0)
    method = f"{n} samples; jackknife, {100 * interval:g} %"
    return delete_one(bare, without, scale="log", level=interval, method=method)


def _terms(
    module: nn.Module,
    x: Inputs,
    origin: Tree,
    parameters: Tree | None,
    output: Output | None,
    first: nn.Module | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    """f(w0, x), J(w0, x) (w - w0), f(w, x), what F subtracts from f, and alpha."""
    check(x, "x")
    after, before = named_pair(module, parameters, origin)
    network, alpha, frozen = unscaled(module)
    check_separable(network)
    prefix = "" if network is module else "network."
    after, before = (
        {name.removeprefix(prefix): each.detach() for name, each in tree.items()} for tree in (after, before)
    )
    with exact(device_of(x)), torch.no_grad():
        start, along = jvp(unscaled(first or module)[0], before, x, sub(after, before), output=output)
        now = columns(value(network, after, x, output), count(x))
        center = torch.zeros_like(now) if frozen is None else columns(value(frozen, {}, x, output), count(x))
    return start, along, now, center, alpha


@checked
@dataclass(frozen=True, eq=False)
class Gap(Snapshot):
    """How far a member is from its linearisation at its start.

    Value: ``gap`` (see :func:`gap`), nan of a member that has diverged; with ``interval`` also its ends ``gap_low`` and
    ``gap_high``.

    Attributes:
        inputs: x, (n, ...), or several tensors in a tuple or a mapping.
        output: what picks the outputs from what the module returns.
        interval: the coverage wanted of an interval, as in :func:`gap`.
    """

    inputs: Inputs
    output: Output | None = None
    interval: float | None = None

    @property
    def columns(self) -> Columns:
        """``gap``, with an interval its ends."""
        return numbers("gap", interval=self.interval)

    def look(self, state: State) -> Mapping[str, float]:
        """The gap now."""
        check_interval(self.interval)
        found = (
            math.nan if self.interval is None else Estimate(math.nan, math.nan, math.nan, count(self.inputs))
        )
        if is_finite(state.parameters):
            missed, whole = _missed(
                state.module, self.inputs, state.origin, state.parameters, self.output, state.start
            )
            if is_finite({"missed": missed, "whole": whole}):
                found = (
                    _ratio(missed, whole)
                    if self.interval is None
                    else _ratio_with_ends(missed, whole, self.interval)
                )
        return with_ends({"gap": found})
