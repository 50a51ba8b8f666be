"""Linear and Conv2d that carry a width multiplier, and the stack of members they can run as one.

A layer computes multiplier * (W x) + b. Its parameters may carry a leading member axis, (m, out, in) in place of
(out, in): then inputs (n, in) are shared by the members and (m, n, in) belong to one each. What one member
computes does not depend, bit for bit on a CPU with a fixed number of threads, on which others it is stacked with.
"""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from regimes.core.activation import ScaledReLU, ScaledTanh, Softplus
from regimes.core.check import checked
from regimes.core.error import UserError

__all__ = [
    "SMALL",
    "Conv2d",
    "Linear",
    "Scaling",
    "SpatialMean",
    "ToImage",
    "aligned",
    "begins_a_line",
    "is_stackable",
    "products",
    "stack_of",
]

# Below this many multiply-adds a member, one batched product is faster than a loop of products.
SMALL = 1 << 21
# Bytes of a cache line.
_LINE = 64


def products(x: Tensor, w: Tensor, factor: float, out: Tensor | None = None) -> Tensor:
    """factor * x @ w for each member: (m, n, k), (m, k, o) -> (m, n, o), each member as if it were alone.

    The bits of a member depend on no other: each operand begins where it would for a lone member, and the kernel is
    chosen by the shape of one product.
    """
    m, n, k = x.shape
    o = w.shape[2]
    if x.device.type != "cpu" or n * k * o > SMALL:
        out = x.new_empty(m, n, o) if out is None else out
        if x.device.type != "cpu":
            return torch.baddbmm(out, x, w, beta=0, alpha=factor, out=out)
        for slot, left, right in zip(out.unbind(0), x.unbind(0), w.unbind(0), strict=True):
            torch.addmm(slot, left, right, beta=0, alpha=factor, out=slot)
        return out
    gap = -n * o % (_LINE // x.element_size())
    ready = out is not None and not gap and out.is_contiguous() and out.data_ptr() % _LINE == 0
    if m > 1:
        target = out if out is not None and ready else _lines(x, m, n, o, gap)
        torch.baddbmm(target, x, w, beta=0, alpha=factor, out=target)
    else:
        # A batch of one takes another kernel, with other rounding, than a batch of two or more.
        pair = _lines(x, 2, n, o, gap)
        torch.baddbmm(pair, x.expand(2, n, k), w.expand(2, k, o), beta=0, alpha=factor, out=pair)
        target = pair[:1] if out is not None else pair[:1].clone()  # no view: what follows may work in place
    return target if out is None or target is out else out.copy_(target)


def _lines(like: Tensor, m: int, n: int, o: int, gap: int) -> Tensor:
    """Room for (m, n, o), a gap behind each member."""
    return like.new_empty(m, n * o + gap)[:, : n * o].view(m, n, o)


def aligned(x: Tensor, axis: int = 0) -> Tensor:
    """Inputs with zeros for samples behind, so that the numbers of each member of a stack begin a cache line.

    Products round by where their operands lie on some processors, and vectorised functions by what is left at the end
    of a tensor: whole pairs of vectors, 128 bytes, leave nothing.

    Args:
        x: (n, ...), or (m, n, ...), those of each member.
        axis: that of the samples, 0 or 1.
    """
    missing = -x.shape[axis] % (2 * _LINE // x.element_size())
    if not missing:
        return x
    return torch.cat([x, x.new_zeros(*x.shape[:axis], missing, *x.shape[axis + 1 :])], axis)


def begins_a_line(x: Tensor) -> Tensor:
    """The numbers from the beginning of a cache line on: elsewhere some processors round their products otherwise."""
    return x if x.data_ptr() % _LINE == 0 else x.clone()


class _StackedLinear(torch.autograd.Function):
    """factor * x @ W^T for stacked members, with the factor inside the products; first derivatives only.

    The tangent has a derivative of its own, by the tangents: it is linear in them.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, factor: float) -> Tensor:
        return products(x, weight.mT, factor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        x, weight, ctx.factor = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)
        ctx.set_materialize_grads(False)

    @staticmethod
    def jvp(ctx: Any, along_x: Tensor | None, along_weight: Tensor | None, _: None) -> Tensor | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        pairs = [(along_x, weight), (x, along_weight)]
        found = [_StackedLinear.apply(a, b, ctx.factor) for a, b in pairs if a is not None and b is not None]
        return sum(found[1:], found[0]) if found else None  # pyright: ignore[reportReturnType, reportCallIssue, reportArgumentType]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        to_input = products(grad, weight, ctx.factor) if ctx.needs_input_grad[0] else None
        to_weight = products(grad.mT, x, ctx.factor) if ctx.needs_input_grad[1] else None
        return to_input, to_weight, None


@checked
@dataclass(frozen=True)
class Scaling:
    """How a law of width scales one layer. Kept in the layer, not on its parameters: attributes of parameters do
    not survive ``torch.save``, ``torch.compile`` or sharding.

    Attributes:
        multiplier: the factor in multiplier * W x.
        std: the standard deviation of the weights at the start.
        rate: the factor on the learning rate of the weights.
        bias_rate: the factor on the learning rate of the bias.
    """

    multiplier: float = 1.0
    std: float = 1.0
    rate: float = 1.0
    bias_rate: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("multiplier", -math.inf), ("std", 0.0), ("rate", 0.0), ("bias_rate", 0.0)):
            number = getattr(self, name)
            if not (math.isfinite(number) and number >= least):
                above = "" if least else " of 0 or more"
                raise UserError(f"`{name}`: got {number}, expected a finite number{above}")

    def __str__(self) -> str:
        return f"multiplier={self.multiplier:.4g}, std={self.std:.4g}, rate={self.rate:.4g}"


class Linear(nn.Module):
    """z = multiplier * W x + b, with W of shape (out, in), W_ij ~ N(0, std^2) and b = 0 at the start.

    Args:
        inputs: the fan-in.
        outputs: the fan-out.
        scaling: multiplier, standard deviation and rate (see :class:`Scaling`).
        bias: whether there is a b.
        generator: the source of the random start.
        dtype: of the parameters.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        scaling: Scaling | None = None,
        bias: bool = False,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.scaling = scaling or Scaling()
        draw = torch.randn(outputs, inputs, generator=generator, dtype=dtype)
        self.weight = nn.Parameter(draw * self.scaling.std)
        self.bias = nn.Parameter(torch.zeros(outputs, dtype=dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out); stacked: (n, in) or (m, n, in) -> (m, n, out)."""
        if self.weight.dim() == 2:
            z = functional.linear(x, self.weight) * self.scaling.multiplier
            return z if self.bias is None else z + self.bias
        stacked = x if x.dim() == 3 else x.expand(self.weight.shape[0], *x.shape)
        z: Tensor = _StackedLinear.apply(stacked, self.weight, self.scaling.multiplier)  # pyright: ignore[reportReturnType]
        return z if self.bias is None else z + self.bias[:, None, :]

    def extra_repr(self) -> str:
        """Sizes and scaling."""
        return f"{self.weight.shape[-1]} -> {self.weight.shape[-2]}, {self.scaling}"


class Conv2d(nn.Module):
    """z = multiplier * (W * x) + b, with W of shape (out, in, k, k), W ~ N(0, std^2) and b = 0 at the start."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        scaling: Scaling | None = None,
        bias: bool = False,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.scaling = scaling or Scaling()
        self.stride, self.padding = stride, padding
        draw = torch.randn(outputs, inputs, kernel, kernel, generator=generator, dtype=dtype)
        self.weight = nn.Parameter(draw * self.scaling.std)
        self.bias = nn.Parameter(torch.zeros(outputs, dtype=dtype)) if bias else None

    def _one(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.conv2d(x, weight, None, self.stride, self.padding) * self.scaling.multiplier

    def forward(self, x: Tensor) -> Tensor:
        """(n, in, h, w) -> (n, out, h', w'); stacked: (n, ...) or (m, n, ...) -> (m, n, out, h', w')."""
        if self.weight.dim() == 4:
            z = self._one(x, self.weight)
        else:
            weights = self.weight.unbind(0)
            images = x.unbind(0) if x.dim() == 5 else [x] * len(weights)
            z = torch.stack([self._one(i, w) for i, w in zip(images, weights, strict=True)])
        if self.bias is None:
            return z
        return z + (self.bias[..., None, None] if self.bias.dim() == 1 else self.bias[:, None, :, None, None])

    def extra_repr(self) -> str:
        """Sizes and scaling."""
        out, fan_in, kernel = self.weight.shape[-4], self.weight.shape[-3], self.weight.shape[-1]
        return f"{fan_in} -> {out}, {kernel}x{kernel}, stride {self.stride}, {self.scaling}"


class SpatialMean(nn.Module):
    """The mean over the last two axes: (..., c, h, w) -> (..., c)."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., c, h, w) -> (..., c)."""
        return x.mean((-2, -1))


@checked
class ToImage(nn.Module):
    """(..., d) or (..., h, w) -> (..., c, h, w): rows of pixels as images of ``channels`` channels."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        for name, size in (("channels", channels), ("height", height), ("width", width)):
            if size < 1:
                raise UserError(f"`{name}`: got {size}, expected a whole number of at least 1")
        self.image = (channels, height, width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, ...) -> (n, c, h, w)."""
        return x.reshape(x.shape[0], *self.image)


_STACKABLE = (Linear, Conv2d, SpatialMean, ToImage, Softplus, ScaledReLU, ScaledTanh, nn.Identity)


def stack_of(network: nn.Module) -> nn.Module:
    """A copy for stacked parameters, whose activations overwrite the outputs of the layers they follow."""
    copied = copy.deepcopy(network)
    for part in copied.modules():
        if type(part) is nn.Sequential:
            for before, after in itertools.pairwise(part):
                if isinstance(before, Linear | Conv2d) and isinstance(after, Softplus):
                    after.inplace = True
    return copied


def is_stackable(module: nn.Module) -> bool:
    """Whether the module is a sequence of layers that all take a leading member axis."""
    if type(module) is nn.Sequential:
        return all(is_stackable(child) for child in module)
    return type(module) in _STACKABLE
