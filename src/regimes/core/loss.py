"""Losses, per sample, each with the margin test that ends a run."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from regimes.core.check import checked
from regimes.core.error import UserError

__all__ = [
    "LOSSES",
    "CrossEntropy",
    "Hinge",
    "Loss",
    "SoftHinge",
    "Squared",
    "cross_entropy",
    "hinge",
    "soft_hinge",
    "squared",
]


class Loss(ABC):
    """A loss between outputs F, (..., n, c), and targets y, (n,), sample by sample.

    Targets of binary tasks are -1 or +1 (floats) and c = 1; those of classification are class indices.
    Leading axes of F are members of one batched program. Shapes that do not go together are a
    :class:`~regimes.core.error.UserError`, never broadcast.
    """

    @abstractmethod
    def per_sample(
        self, outputs: Float[Tensor, "*m n c"], targets: Shaped[Tensor, " n"]
    ) -> Float[Tensor, "*m n"]:
        """loss(F(x_mu), y_mu) for each sample."""

    def slope(
        self, outputs: Float[Tensor, "*m n c"], targets: Shaped[Tensor, " n"]
    ) -> Float[Tensor, "*m n c"]:
        """d loss / dF for each sample: by autograd, where a loss does not write it out."""
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            return torch.autograd.grad(self.per_sample(leaf, targets).sum(), leaf)[0]

    @abstractmethod
    def fits(self, outputs: Float[Tensor, "*m n c"], targets: Shaped[Tensor, " n"]) -> Bool[Tensor, "*m n"]:
        """Whether each sample meets its margin; a run that fits every sample is finished."""


def _is_real(outputs: Tensor, targets: Tensor) -> bool:
    """Whether targets are floats, for one output; else they are class indices, for several.

    Raises:
        UserError: if targets and outputs do not go together.
    """
    real = targets.is_floating_point()
    if outputs.dim() < 2 or targets.shape != outputs.shape[-2:-1] or real != (outputs.shape[-1] == 1):
        raise UserError(
            f"`targets`: got {targets.dtype} {tuple(targets.shape)} for outputs {tuple(outputs.shape)}, expected (n,) "
            "floats for outputs (..., n, 1), or (n,) class indices (int64) for (..., n, c)"
        )
    return real


def _margin(outputs: Tensor, targets: Tensor) -> Tensor:
    """F y, (..., n), of a binary task."""
    if not _is_real(outputs, targets):
        raise UserError(f"`targets`: got {targets.dtype}, expected floats -1 and +1; 2.0 * y - 1 of 0 and 1")
    return outputs[..., 0] * targets


def _softplus(z: Tensor, beta: float) -> Tensor:
    """ln(1 + exp(beta z)) / beta, as max(z, 0) + ln(1 + exp(-beta |z|)) / beta.

    Written with exp and log alone: their vectorised kernels give the same bits wherever an entry lies in a
    tensor, which torch's softplus does not, so that a member's path does not depend on its company. And with
    z - 2 max(z, 0) for -|z|: whatever the slope of the maximum at 0, where a centred network starts, that of
    the sum is 1/2.
    """
    top = z.clamp(min=0)
    return top + torch.log(1 + torch.exp(beta * (z - 2 * top))) / beta


@checked
@dataclass(frozen=True)
class Squared(Loss):
    """(F - y)^2 / 2, or the same summed over one-hot targets; fits when it is below ``tolerance``."""

    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < math.inf:
            raise UserError(f"`tolerance`: got {self.tolerance}, expected a finite number of 0 or more")

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Half the squared error, summed over the outputs."""
        if _is_real(outputs, targets):
            return (outputs[..., 0] - targets).square() / 2
        wanted = torch.nn.functional.one_hot(targets, outputs.shape[-1]).to(outputs.dtype)
        return (outputs - wanted).square().sum(-1) / 2

    def fits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Whether half the squared error is below ``tolerance``."""
        return self.per_sample(outputs, targets) < self.tolerance


@dataclass(frozen=True)
class Hinge(Loss):
    """max(0, 1 - F y); fits when F y >= 1 (Geiger et al. 2020, version 1)."""

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """max(0, 1 - F y)."""
        return (1 - _margin(outputs, targets)).clamp(min=0)

    def fits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """F y >= 1."""
        return _margin(outputs, targets) >= 1


@checked
@dataclass(frozen=True)
class SoftHinge(Loss):
    """ln(1 + exp(beta (1 - F y))) / beta; fits when F y >= 1 (Geiger et al. 2020, beta = 20)."""

    beta: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise UserError(f"`beta`: got {self.beta}, expected a positive finite number")

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """ln(1 + exp(beta z)) / beta at z = 1 - F y."""
        return _softplus(1 - _margin(outputs, targets), self.beta)

    def slope(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """-y / (1 + exp(-beta z)) at z = 1 - F y, and 0 for a sample so far beyond its margin that it is below eps^3.

        In the products with such numbers a processor would take a hundred times as long (subnormal numbers).
        """
        beyond = self.beta * (_margin(outputs, targets) - 1)
        far = beyond > -3 * math.log(torch.finfo(outputs.dtype).eps)
        return (-targets / beyond.exp().add_(1)).masked_fill_(far, 0)[..., None]

    def fits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """F y >= 1: the gradient never vanishes, so the margin is what stops a run."""
        return _margin(outputs, targets) >= 1


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """-ln softmax(F)_y; ln(1 + exp(-F y)) with +-1 targets. Fits when every margin is at least 1."""

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """-ln softmax(F)_y."""
        if _is_real(outputs, targets):
            return _softplus(-_margin(outputs, targets), 1.0)
        picked = outputs.gather(-1, targets.expand(outputs.shape[:-1])[..., None])[..., 0]
        return outputs.logsumexp(-1) - picked

    def fits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """F y >= 1, or F_y - F_k >= 1 for every other class k."""
        if _is_real(outputs, targets):
            return _margin(outputs, targets) >= 1
        index = targets.expand(outputs.shape[:-1])[..., None]
        others = outputs.scatter(-1, index, float("-inf")).amax(-1)
        return outputs.gather(-1, index)[..., 0] - others >= 1


squared = Squared()
hinge = Hinge()
soft_hinge = SoftHinge()
cross_entropy = CrossEntropy()
LOSSES: Mapping[str, Loss] = MappingProxyType(
    {"squared": squared, "hinge": hinge, "soft-hinge": soft_hinge, "cross-entropy": cross_entropy}
)
