"""The empirical tangent kernel of any module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, get_args, overload

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from regimes.control.scale import unscaled
from regimes.core.derivative import check_names, check_separable, exact, plain
from regimes.core.error import UserError, nearest
from regimes.core.tree import trainable
from regimes.measure.kernel.rules import Reduce
from regimes.measure.kernel.tiles import Task, assemble
from regimes.measure.kernel.trace import IrregularError, Network, plan

__all__ = ["ntk"]

# Working memory where the caller names none, bytes.
_MEMORY = 1 << 30
_REDUCTIONS = get_args(Reduce)


@overload
def ntk(
    module: nn.Module,
    x1: Shaped[Tensor, "n1 ..."],
    x2: Shaped[Tensor, "n2 ..."] | None = None,
    *,
    reduce: Reduce = "full",
    by_layer: Literal[False] = False,
    memory: int | None = None,
    parameters: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "n1 n ..."]: ...
@overload
def ntk(
    module: nn.Module,
    x1: Shaped[Tensor, "n1 ..."],
    x2: Shaped[Tensor, "n2 ..."] | None = None,
    *,
    reduce: Reduce = "full",
    by_layer: Literal[True],
    memory: int | None = None,
    parameters: Mapping[str, Tensor] | None = None,
) -> dict[str, Float[Tensor, "n1 n ..."]]: ...
def ntk(
    module: nn.Module,
    x1: Shaped[Tensor, "n1 ..."],
    x2: Shaped[Tensor, "n2 ..."] | None = None,
    *,
    reduce: Reduce = "full",
    by_layer: bool = False,
    memory: int | None = None,
    parameters: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "n1 n ..."] | dict[str, Float[Tensor, "n1 n ..."]]:
    r"""The empirical tangent kernel: K[i, j, a, b] = <df_a(x1_i)/dw, df_b(x2_j)/dw>.

    w are the parameters that require grad; each sample counts as a batch of one. A linear layer that is used
    once, on inputs (n, d), adds (A1 A2^T) * (B1 B2^T), A its inputs and B the gradients of its outputs; every
    other parameter goes by rows of the Jacobian. Both are exact. The cost is one pass forward and one
    backward per output, and the products; with rows of the Jacobian n c p numbers are formed besides, in
    tiles. For a module from :func:`regimes.control.scale` this is the kernel of F, alpha^2 times that of f:
    the origin does not move.

    Args:
        module: f, with outputs (n,) or (n, c).
        x1: n1 samples.
        x2: n2 samples (default: x1; then everything is formed once).
        reduce: "full" gives (n1, n2, c, c); "diagonal" (n1, n2, c), the entries a = b; "trace" (n1, n2), the
            mean of those over a.
        by_layer: a dict from the name of the module that owns the parameters to its part; the parts add up to
            the whole.
        memory: bytes of working memory, besides the result (default: 2^30). Held to roughly: at least one
            sample and one parameter are taken at a time.
        parameters: w by name (default: the parameters of the module), as in ``State.parameters``.

    Returns:
        The kernel, without a graph, of the dtype of the outputs.

    Raises:
        UserError: if the inputs are empty, not finite or differ in shape; ``reduce`` is unknown; nothing in
            the module requires grad; its outputs have another shape; it couples samples or is random.

    Source: Jacot, Gabriel, Hongler 2018; Geiger et al. 2020, section 2.

    >>> net = nn.Linear(2, 1)
    >>> ntk(net, torch.tensor([[1.0, 2.0], [0.0, 1.0]]), reduce="trace")
    tensor([[6., 3.], [3., 2.]])
    """
    _check(x1, x2, reduce, memory)
    with exact(x1.device), torch.no_grad():
        network, prefix, factor = _network(module, parameters)
        rows = plain(x1)
        columns = None if x2 is None or x2 is x1 else plain(x2)
        rules, outputs = plan(network, _probe(rows, columns))
        task = Task(network, rows, columns, reduce, by_layer, memory or _MEMORY, rules, outputs)
        try:
            parts = assemble(task)
        except IrregularError:
            parts = assemble(replace(task, rules={}))
        if factor != 1.0:
            for part in parts.values():
                part *= factor
    return {_owner(prefix, name): part for name, part in parts.items()} if by_layer else parts[""]


def _check(x1: Tensor, x2: Tensor | None, reduce: str, memory: int | None) -> None:
    if reduce not in _REDUCTIONS:
        raise UserError(
            f"`reduce`: got '{reduce}', expected one of {', '.join(_REDUCTIONS)}"
            f"{nearest(reduce, _REDUCTIONS)}"
        )
    if memory is not None and memory <= 0:
        raise UserError(f"`memory`: got {memory}, expected a positive number of bytes, or None")
    for name, x in (("x1", x1), ("x2", x2)):
        if x is None:
            continue
        if x.dim() == 0 or not len(x):
            raise UserError(f"`{name}`: got shape {tuple(x.shape)}, expected at least one sample, (n, ...)")
        # A finite sum settles it in one pass; an infinite one may come from large finite entries.
        if x.is_floating_point() and not x.sum().isfinite() and not x.isfinite().all():
            raise UserError(
                f"`{name}`: got nan or infinite entries, expected finite numbers; drop those samples"
            )
    if x2 is not None and x1.shape[1:] != x2.shape[1:]:
        raise UserError(
            f"`x2`: got samples of shape {tuple(x2.shape[1:])}, expected {tuple(x1.shape[1:])}, as in `x1`"
        )


def _network(module: nn.Module, parameters: Mapping[str, Tensor] | None) -> tuple[Network, str, float]:
    """f, the prefix of its names in the module, and the factor from its kernel to that of the module."""
    if parameters is not None:
        check_names(module, parameters)
    inner, alpha, _ = unscaled(module)
    prefix = "" if inner is module else "network."
    check_separable(inner)
    trained = tuple(trainable(inner))
    if not trained:
        raise UserError(
            "`module`: nothing requires grad, so there is no kernel; set requires_grad on a parameter"
        )
    given = trainable(module) if parameters is None else parameters
    values = {
        name.removeprefix(prefix): plain(value) for name, value in given.items() if name.startswith(prefix)
    }
    return Network(inner, values, trained), prefix, alpha**2


def _owner(prefix: str, name: str) -> str:
    return f"{prefix}{name}".removesuffix(".")


def _probe(x1: Tensor, x2: Tensor | None) -> Tensor:
    """The first sample, and the first one that differs from it."""
    for x in (x1, x1 if x2 is None else x2):
        for i in range(len(x)):
            if (x[i] != x1[0]).any():
                return torch.stack([x1[0], x[i]])
    return x1[:1]
