"""Activations normalised so that E sigma(z)^2 = 1 for z ~ N(0, 1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from regimes.core.check import checked
from regimes.core.error import UserError

__all__ = ["ACTIVATIONS", "ScaledReLU", "ScaledTanh", "Softplus"]


# Entries of a block, for each thread, whose temporaries stay in the second-level cache of a core.
_BLOCK = 1 << 16


def _blocks(x: Tensor) -> tuple[Tensor, ...]:
    """The entries of ``x`` in flat pieces that fit the cache (one piece on a GPU); views if x is contiguous."""
    flat = x.reshape(-1)
    return flat.split(_BLOCK * torch.get_num_threads()) if x.device.type == "cpu" else (flat,)


def _softplus_(z: Tensor) -> Tensor:
    """ln(1 + exp(z)), in place."""
    # Above this the logarithm is z to the last digit or exp overflows. A GPU would have to wait for the answer.
    limit = 30.0 if z.dtype == torch.float64 else 10.0
    if z.device.type == "cpu" and z.numel() > 0 and float(z.max()) < limit:
        return z.exp_().add_(1).log_()
    return torch.maximum(z, z.clamp_max(40.0).exp_().add_(1).log_(), out=z)


def _slope(y: Tensor, beta: float, a: float, out: Tensor) -> Tensor:
    """dy/dx = a (1 - exp(-beta y / a)), into ``out``."""
    return torch.mul(y, -beta / a, out=out).exp_().mul_(-a).add_(a)


class _Softplus(torch.autograd.Function):
    """y = (a / beta) ln(1 + exp(beta x)) with its derivative a (1 - exp(-beta y / a)), in as few passes as can be.

    torch's softplus takes two logarithms and an exponential a step, and switches to the identity at
    beta x = 20, an error of 2e-9 / beta; this one takes one of each and is exact. On a narrow network the
    activation is most of a step.
    """

    @staticmethod
    def forward(x: Tensor, beta: float, a: float) -> Tensor:
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        for source, out in zip(_blocks(x), _blocks(y), strict=True):
            _softplus_(torch.mul(source, beta, out=out)).mul_(a / beta)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, float], output: Tensor) -> None:
        ctx.beta, ctx.a = inputs[1:]
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (y,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted: y carries the graph
            return grad * (ctx.a - ctx.a * torch.exp(y * (-ctx.beta / ctx.a))), None, None
        slope = torch.empty_like(y)
        for source, out in zip(_blocks(y), _blocks(slope), strict=True):
            _slope(source, ctx.beta, ctx.a, out)
        return grad * slope, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (y,) = ctx.saved_tensors
        return tangent * (ctx.a - ctx.a * torch.exp(y * (-ctx.beta / ctx.a)))

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int, None, None], x: Tensor, beta: float, a: float
    ) -> tuple[Tensor, int]:
        return _Softplus.apply(x, beta, a), in_dims[0]  # pyright: ignore[reportReturnType]


class _SoftplusInPlace(torch.autograd.Function):
    """The same in the memory of its input; first derivatives only. Same operations, so the same bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, beta: float, a: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        for block in _blocks(x):
            _softplus_(block.mul_(beta)).mul_(a / beta)
        ctx.beta, ctx.a = beta, a
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (y,) = ctx.saved_tensors
        slope = torch.empty_like(y)
        for g, source, out in zip(_blocks(grad), _blocks(y), _blocks(slope), strict=True):
            _slope(source, ctx.beta, ctx.a, out).mul_(g)
        return slope, None, None


@checked
class Softplus(nn.Module):
    """sigma(x) = (a / beta) ln(1 + exp(beta x)), beta = 5, a = 1.404 (Geiger et al. 2020, appendix B).

    ``inplace=True`` overwrites the input, which nothing else may need then.
    """

    def __init__(self, beta: float = 5.0, a: float = 1.404, *, inplace: bool = False) -> None:
        super().__init__()
        if not 0 < beta < math.inf:
            raise UserError(f"`beta`: got {beta}, expected a positive finite number")
        if not math.isfinite(a):
            raise UserError(f"`a`: got {a}, expected a finite number")
        self.beta, self.a, self.inplace = beta, a, inplace

    def forward(self, x: Tensor) -> Tensor:
        """sigma(x), entry by entry."""
        if self.inplace and x.is_contiguous():
            return _SoftplusInPlace.apply(x, self.beta, self.a)  # pyright: ignore[reportReturnType]
        return _Softplus.apply(x, self.beta, self.a)  # pyright: ignore[reportReturnType]

    def extra_repr(self) -> str:
        """The formula with its numbers."""
        return f"{self.a}/{self.beta:g} ln(1 + exp({self.beta:g} x))"


class ScaledReLU(nn.Module):
    """sigma(x) = sqrt(2) max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        """sigma(x), entry by entry."""
        return x.relu() * math.sqrt(2)


class ScaledTanh(nn.Module):
    """sigma(x) = a tanh(x), a = 1.5927 so that E sigma(z)^2 = 1."""

    # 1 / sqrt(E tanh(z)^2), z ~ N(0, 1), by quadrature
    a = 1.5925374197228312

    def forward(self, x: Tensor) -> Tensor:
        """sigma(x), entry by entry."""
        return x.tanh() * self.a


ACTIVATIONS: Mapping[str, type[nn.Module]] = MappingProxyType(
    {"softplus": Softplus, "relu": ScaledReLU, "tanh": ScaledTanh}
)
