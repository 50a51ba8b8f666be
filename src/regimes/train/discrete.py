r"""Gradient descent with momentum in function space: steps of a frozen kernel, one by one or all at once.

With F = F0 + K c on the training set, b the velocity's part in the same coordinates, and h = J v what the velocity does
to F, a step of rate :math:`\eta` and momentum :math:`\mu` is

.. math:: u = s\,(\partial_F\mathrm{loss} + \rho\, c), \quad b \leftarrow \mu b + u, \quad h \leftarrow \mu h + K u,
          \quad c \leftarrow c - \eta b, \quad F \leftarrow F - \eta h

which is what v <- mu v + g, w <- w - eta v does to a function that is linear in w. A velocity that comes from elsewhere
is in h alone: after k steps :math:`v_k = \mu^k v_0 + J^\top b_k` and
:math:`w_k = w_0 - \eta\,(\mu + \dots + \mu^k)\, v_0 + J^\top c_k`.

For the squared loss the map is linear, and one for each eigenvalue of K: its K-th power gives K steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from regimes.core.error import UserError
from regimes.train.frozen_kernel import FrozenKernel, KernelMatrix

__all__ = [
    "Motion",
    "Stepping",
    "carried",
    "check_count",
    "check_rate",
    "check_step",
    "in_closed_form",
    "largest_rate",
    "step_by_step",
]


@dataclass(frozen=True, eq=False)
class Motion:
    """Where a function is and where it goes, (n, c) each.

    Attributes:
        outputs: F.
        slope: h = J v.
        c: of w, by J^T.
        b: of v, by J^T.
    """

    outputs: Tensor
    slope: Tensor
    c: Tensor
    b: Tensor

    @staticmethod
    def start(outputs: Tensor, slope: Tensor | None = None) -> Motion:
        """At the anchor, with a velocity that does this to the outputs."""
        zero = torch.zeros_like(outputs)
        return Motion(outputs, zero if slope is None else slope, zero, zero)


@dataclass(frozen=True)
class Stepping:
    """How steps are taken.

    Attributes:
        lr: eta.
        momentum: mu.
        speed: s, what the sum of the losses is multiplied by.
        ridge: rho.
    """

    lr: float
    momentum: float
    speed: float
    ridge: float = 0.0


def check_count(name: str, value: Any, least: int = 0) -> None:
    """Raise unless this is a whole number of at least so much."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"`{name}`: got {value!r}, expected a whole number of at least {least}")


def check_step(lr: Any, momentum: Any) -> None:
    """Raise unless these are a rate and a momentum."""
    if isinstance(lr, bool) or not isinstance(lr, Real) or not 0 < float(lr) < math.inf:
        raise UserError(f"`lr`: got {lr!r}, expected a positive finite number")
    if isinstance(momentum, bool) or not isinstance(momentum, Real) or not 0 <= float(momentum) < 1:
        raise UserError(f"`momentum`: got {momentum!r}, expected a number from 0 to below 1")


def carried(steps: int, momentum: float) -> float:
    """mu + mu^2 + ... + mu^k: how far a velocity carries, in steps at the rate 1."""
    return momentum * (1 - momentum**steps) / (1 - momentum)


def largest_rate(largest: float, momentum: float, speed: float, ridge: float = 0.0) -> float:
    """2 (1 + mu) / (s (lambda_max + rho)): the rate above which steps of the squared loss grow without end."""
    top = speed * (largest + ridge)
    return 2 * (1 + momentum) / top if top > 0 else float("inf")


def check_rate(rule: Stepping, largest: float) -> None:
    """Raise if the squared loss would grow without end.

    Args:
        rule: of the steps.
        largest: eigenvalue of K.
    """
    bound = largest_rate(largest, rule.momentum, rule.speed, rule.ridge)
    if rule.lr > bound:
        raise UserError(
            f"`lr`: got {rule.lr:g}, above {bound:g} = 2 (1 + momentum) / (largest eigenvalue of the Hessian), beyond "
            "which a linear model diverges; give less, or linearise anew at every step"
        )


def step_by_step(
    kernel: FrozenKernel, gradient: Callable[[Tensor], Tensor], rule: Stepping, motion: Motion, steps: int
) -> Motion:
    """So many steps, each with one product with K.

    Args:
        kernel: K.
        gradient: of the sum of the losses by F, (n, c).
        rule: of the steps.
        motion: where they begin.
        steps: how many.
    """
    outputs, h, c, b = motion.outputs, motion.slope, motion.c, motion.b
    for _ in range(steps):
        u = rule.speed * (gradient(outputs) + rule.ridge * c)
        b = rule.momentum * b + u
        h = rule.momentum * h + kernel.apply(u)
        c, outputs = c - rule.lr * b, outputs - rule.lr * h
    return Motion(outputs, h, c, b)


def in_closed_form(
    kernel: KernelMatrix, targets: Tensor, rule: Stepping, motion: Motion, steps: int
) -> Motion:
    """So many steps of the squared loss, by one decomposition of K.

    Args:
        kernel: K.
        targets: y, (n, c).
        rule: of the steps.
        motion: where they begin.
        steps: how many.
    """
    values, vectors = kernel.eigen
    error = motion.outputs - targets
    parts = [vectors.mT @ kernel.columns(each) for each in (error, motion.slope, motion.c, motion.b)]
    powers = torch.linalg.matrix_power(_steps(values.clamp(min=0), rule), steps)
    after = powers @ torch.stack(parts, -2)  # (b, m, 4, p)
    error, slope, c, b = (kernel.rows(vectors @ each) for each in after.unbind(-2))
    return Motion(targets + error, slope, c, b)


def _steps(values: Tensor, rule: Stepping) -> Tensor:
    """One step of (F - y, h, c, b) along each eigenvector, (..., 4, 4)."""
    zero, one = torch.zeros_like(values), torch.ones_like(values)
    pull = torch.stack([rule.speed * one, zero, rule.speed * rule.ridge * one, zero], -1)  # u
    b = pull + rule.momentum * torch.stack([zero, zero, zero, one], -1)
    h = values[..., None] * pull + rule.momentum * torch.stack([zero, one, zero, zero], -1)
    error = torch.stack([one, zero, zero, zero], -1) - rule.lr * h
    c = torch.stack([zero, zero, one, zero], -1) - rule.lr * b
    return torch.stack([error, h, c, b], -2)
