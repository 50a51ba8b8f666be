"""Forward mode: f(w) and J v in one pass, without tangents where gradients are off."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from regimes.core.tree import Tree

__all__ = ["by_forward_mode", "nested"]


_TIMES = (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)
_PRODUCTS = (functional.linear, functional.conv1d, functional.conv2d, functional.conv3d)


def nested() -> bool:
    """Whether this runs inside a transform of ``torch.func`` or inside somebody else's forward mode."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def by_forward_mode(outputs: Callable[[Tree], Tensor], at: Tree, along: Tree) -> tuple[Tensor, Tensor]:
    """f(w) and J v in one pass. The graph of J v, where one is asked for, is linear in v: backward is J^T u.

    Args:
        outputs: f, by named parameters.
        at: w.
        along: v, under the same names.
    """
    _load()
    graph = torch.is_grad_enabled()
    # With gradients on, whoever calls: what the network itself does without them has no tangent.
    with torch.enable_grad(), dual_level(), _Forward():
        out = outputs({name: make_dual(value, along[name]) for name, value in at.items()})
        value, slope = unpack_dual(out)
        slope = torch.zeros_like(value) if slope is None else slope
        return (value, slope) if graph else (value.detach(), slope.detach())


@cache
def _load() -> None:
    """Have torch load what forward mode needs, once: some versions warn of deprecated parts of theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.sin, (torch.zeros(()),), (torch.zeros(()),))


class _Forward(TorchFunctionMode):
    """Forward mode as it should be.

    By itself torch propagates tangents through ``torch.no_grad``, so that J v would not go with J^T u. And it
    fills in zeros where the inputs of the first layer have no tangent, and multiplies them, or a number has none.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not torch.is_grad_enabled():
            with forward_ad._set_fwd_grad_enabled(False):
                return func(*args, **(kwargs or {}))
        if func in _PRODUCTS and len(args) > 1:
            return _product(func, *args, **(kwargs or {}))
        if func in _TIMES and len(args) == 2 and not kwargs and isinstance(args[1], int | float):
            return _times(func, args[0], args[1])
        return func(*args, **(kwargs or {}))


def _product(
    function: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *rest: Any,
    **how: Any,
) -> Tensor:
    """A layer that is a product of inputs and weights, with its tangent: (xW)' = xW' + x'W."""
    (x0, x1), (w0, w1) = unpack_dual(x), unpack_dual(weight)
    if w1 is None:
        return function(x, weight, bias, *rest, **how)
    b0, b1 = (None, None) if bias is None else unpack_dual(bias)
    value = function(x0, w0, b0, *rest, **how)
    along = function(x0, w1, b1, *rest, **how)
    return make_dual(value, along if x1 is None else along + function(x1, w0, None, *rest, **how))


def _times(function: Callable[..., Tensor], x: Tensor, factor: float) -> Tensor:
    """A number times a tensor, with its tangent: the tangent of a number is no tensor of zeros, which is slow."""
    value, along = unpack_dual(x)
    if along is None:
        return function(x, factor)
    return make_dual(function(value, factor), function(along, factor))
