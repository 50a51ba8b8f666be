r"""f(a, x) and J(a, x) v in one call, as a function of v: forward mode, and other routes where it cannot go."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from regimes.core.derivative import Function, transposed
from regimes.core.error import UserError
from regimes.core.forward import by_forward_mode
from regimes.core.tree import Tree

__all__ = ["Route", "by_reverse_mode", "coarsest_rounding", "settle", "transposed_twice"]

Route = Callable[[Function, Tree, Tree], tuple[Tensor, Tensor]]
"""From f(., x), a and v to f(a, x) and J(a, x) v; the gradient of the second by v is J^T u."""


def by_both_modes(outputs: Function, at: Tree, along: Tree) -> tuple[Tensor, Tensor]:
    """J v in forward mode, J^T u by the graph of f: where a tangent has no derivative of its own."""
    with torch.no_grad():
        _, slope = by_forward_mode(outputs, at, {name: v.detach() for name, v in along.items()})
    value, leaves = _graph(outputs, at)
    return value.detach(), _adjoint(slope, value, leaves, along)


def by_reverse_mode(outputs: Function, at: Tree, along: Tree) -> tuple[Tensor, Tensor]:
    """J v as the derivative of u -> (J^T u) . v, with J^T u for its gradient by v.

    Raises:
        UserError: if an operation has no second derivative.
    """
    value, leaves = _graph(outputs, at)
    if not value.requires_grad:
        return value, torch.zeros_like(value)
    try:
        slope = transposed(
            value, dict(zip(at, leaves, strict=True)), {name: v.detach() for name, v in along.items()}
        )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise UserError(
            f"`module`: has an operation with neither forward mode nor a second derivative ({_reason(error)}); "
            "write it in others"
        ) from error
    return value.detach(), _adjoint(slope, value, leaves, along)


def transposed_twice(outputs: Function, at: Tree, along: Tree) -> tuple[Tensor, Tensor]:
    """The same for the transforms of ``torch.func``, which may then map or differentiate it to any order.

    Forward modes do not nest: those of torch refuse, or lose the derivative of an autograd.Function without a
    word.
    """
    value, pull = torch.func.vjp(outputs, dict(at))  # pyright: ignore[reportAssignmentType]
    _, push = torch.func.vjp(lambda u: pull(u)[0], torch.zeros_like(value))  # pyright: ignore[reportAssignmentType]
    return value, push(dict(along))[0]


def settle(outputs: Function, at: Tree) -> Route:
    """The cheapest route that is right for this f: J v and J^T u of it are transposes of one another.

    Some operations have no forward mode, some no derivative of their tangent, and some lose a tangent or a second
    derivative without a word (``once_differentiable`` does).

    Raises:
        UserError: if there is none.
    """
    value, leaves = _graph(outputs, at)
    # No part of what is computed: whoever watches the operations of the network need not see it.
    with torch._C.DisableTorchFunction():
        u = torch.randn(value.shape, generator=torch.Generator().manual_seed(0)).to(value)
        pulled = _pulled(value, leaves, u)
        v = {name: g.to_dense() for name, g in zip(at, pulled, strict=True)}
        size = _square(v.values())
    if not math.isfinite(size):  # nothing can be compared
        return by_forward_mode
    tolerance = coarsest_rounding([value, *at.values()]) ** 0.25
    for route in (by_forward_mode, by_both_modes, by_reverse_mode):
        try:
            if _fits(route, outputs, at, u, v, tolerance):
                return route
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # an operation that this route cannot pass
            continue
    raise UserError(
        "`module`: has an operation whose derivatives do not go together, J v with J^T u (without forward mode, a "
        "`once_differentiable` one loses its second derivative); give it a `jvp`, or write it in others"
    )


def _pulled(value: Tensor, leaves: list[Tensor], u: Tensor) -> tuple[Tensor, ...]:
    """J^T u."""
    if not value.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    try:
        return torch.autograd.grad(value, leaves, u, materialize_grads=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise UserError(f"`module`: has no gradient by its parameters ({_reason(error)})") from error


def _fits(route: Route, outputs: Function, at: Tree, u: Tensor, v: Tree, tolerance: float) -> bool:
    """Whether u . J v is |v|^2 and the gradient of u . J v is v, for v = J^T u."""
    leaves = {name: value.detach().requires_grad_() for name, value in v.items()}
    with torch.enable_grad():
        slope = route(outputs, at, leaves)[1]
    with torch._C.DisableTorchFunction(), torch.enable_grad():
        product, size = (u * slope).sum(), _square(v.values())
        if not product.requires_grad:
            return size == 0  # a constant
        if not abs(float(product.detach()) - size) <= tolerance * size:
            return False
        back = torch.autograd.grad(product, list(leaves.values()), materialize_grads=True)
        return _square(g.to_dense() - v[name] for name, g in zip(v, back, strict=True)) <= tolerance**2 * size


def _square(tensors: Iterable[Tensor]) -> float:
    """The sum of |entry|^2."""
    return sum(float(each.detach().abs().square().sum()) for each in tensors)


def coarsest_rounding(tensors: Sequence[Tensor]) -> float:
    """The relative rounding error of an operation on the coarsest of them."""
    coarsest = max(torch.finfo(each.dtype).eps for each in tensors if each.dtype.is_floating_point)
    device = tensors[0].device.type
    if torch.is_autocast_enabled(device):
        coarsest = max(coarsest, torch.finfo(torch.get_autocast_dtype(device)).eps)
    # A GPU may compute products of single precision in TF32.
    return max(coarsest, 1e-3) if device == "cuda" and coarsest > 1e-10 else coarsest


def _reason(error: RuntimeError) -> str:
    return str(error).splitlines()[0]


def _graph(outputs: Function, at: Tree) -> tuple[Tensor, list[Tensor]]:
    """f(a, x) with the graph that leads to a."""
    with torch.enable_grad():
        leaves = [value.detach().requires_grad_() for value in at.values()]
        return outputs(dict(zip(at, leaves, strict=True))), leaves


def _adjoint(slope: Tensor, value: Tensor, leaves: list[Tensor], along: Tree) -> Tensor:
    return _Adjoint.apply(slope, value, leaves, *along.values())  # pyright: ignore[reportReturnType]


class _Adjoint(torch.autograd.Function):
    """J v, whose gradient by v is J^T u."""

    @staticmethod
    def forward(ctx: Any, slope: Tensor, value: Tensor, leaves: list[Tensor], *_along: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        # They are neither inputs nor outputs: nothing that save_for_backward could keep.
        ctx.value, ctx.leaves = value, leaves
        return slope.clone()

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        pulled = torch.autograd.grad(
            ctx.value,
            ctx.leaves,
            u,
            retain_graph=True,
            create_graph=torch.is_grad_enabled(),
            materialize_grads=True,
        )
        return None, None, None, *pulled
