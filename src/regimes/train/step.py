r"""The adapted step: a tentative step is kept if it changes gradient and outputs little, else the next is shorter.

After Geiger, Spigler, Jacot, Wyart 2020, appendix B, and the authors' code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from regimes.core.check import checked
from regimes.core.error import UserError

__all__ = ["Attempt", "Tolerance", "attempt", "is_lost", "turn"]

# So many rejected steps in a row divide dt by 10^30: no step is small enough, the run has diverged.
_REJECTIONS = 30


@checked
@dataclass(frozen=True)
class Tolerance:
    r"""How far one step may change things (Geiger et al. 2020, constants of the authors' code).

    Attributes:
        gradient: on :math:`\|g - g'\|^2 / (\|g\| \|g'\|)` over one step.
        output: on :math:`\max |F - F'|` over one step.
        grow: the factor on dt after a step that used less than half of both.
        shrink: the divisor of dt after a step that is taken back.
    """

    gradient: float = 1e-4
    output: float = 0.1
    grow: float = 1.1
    shrink: float = 10.0

    def __post_init__(self) -> None:
        for name, least in (("gradient", 0.0), ("output", 0.0), ("grow", 1.0), ("shrink", 1.0)):
            if not getattr(self, name) > least:
                raise UserError(f"`{name}`: got {getattr(self, name)}, expected a number above {least:g}")
            if least and not math.isfinite(getattr(self, name)):  # dt would be infinite, or 0 for ever
                raise UserError(f"`{name}`: got {getattr(self, name)}, expected a finite factor")


@dataclass(frozen=True)
class Attempt:
    """What became of tentative steps, (m,) or ().

    Attributes:
        kept: whether the step is kept.
        dt: the size of the next one.
        rejected: the steps taken back in a row.
    """

    kept: Tensor
    dt: Tensor
    rejected: Tensor


def attempt(
    limit: Tolerance, dt: Tensor, rejected: Tensor, *, turned: Tensor, moved: Tensor, finite: Tensor
) -> Attempt:
    """Keep each step or take it back.

    Args:
        limit: how far a step may change things.
        dt: the sizes of the steps, float64.
        rejected: the steps taken back in a row before.
        turned: how far the gradient has turned (:func:`turn`), float64.
        moved: how far the outputs have moved, float64.
        finite: whether the step led to numbers that are finite.
    """
    kept = (turned < limit.gradient) & (moved < limit.output) & finite & torch.isfinite(turned)
    easy = kept & (turned < limit.gradient / 2) & (moved < limit.output / 2)
    following = torch.where(easy, dt * limit.grow, torch.where(kept, dt, dt / limit.shrink))
    return Attempt(kept, following, torch.where(kept, 0, rejected + 1))


def turn(size: Tensor, other: Tensor, inner: Tensor) -> Tensor:
    r""":math:`\|g - g'\|^2 / (\|g\| \|g'\|)` from the two norms and the inner product, without the difference.

    0 where a gradient vanishes, as that of the hinge does when its last sample is met. The cancellation
    leaves an error of 1e-16 in what is compared with 1e-4.
    """
    found = (size.square() + other.square() - 2 * inner) / (size * other)
    return torch.where((size == 0) | (other == 0), 0.0, found)


def is_lost(rejected: Tensor, number: Tensor) -> Tensor:
    """Whether no step is small enough, or a number of where a run is is not finite."""
    return (rejected >= _REJECTIONS) | ~torch.isfinite(number)
