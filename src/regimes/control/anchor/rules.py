"""Rules of renewal: values that say before which steps the linearisation is renewed, and what becomes of momentum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from regimes.control.anchor.block import Findings, Why
from regimes.core.check import checked
from regimes.core.error import UserError

__all__ = ["Adaptive", "AtSteps", "Every", "Renewal", "resets"]


@final
@checked
@dataclass(frozen=True)
class Every:
    """The anchor moves after every K steps: K = 1 is plain training, K of all steps and more a linear model.

    Attributes:
        steps: K, 1 or more.
        reset: whether the optimiser starts anew at each renewal; else its momentum and moments are kept.

    Source: Goldwaser, Ge 2022, arXiv:2211.12345.

    >>> [step for step in range(10) if Every(4)(step)]
    [0, 4, 8]
    """

    steps: int
    reset: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(
                f"`steps`: got {self.steps}, expected 1 (plain training) or more; as many as the whole run, or more, "
                "train one linear model"
            )

    def __call__(self, step: int) -> bool:
        """Whether the anchor moves before a step; at step 0 it is there."""
        return step % self.steps == 0


@final
@checked
@dataclass(frozen=True)
class AtSteps:
    """The anchor moves before the steps that are listed. ``AtSteps([])`` never moves it; ``AtSteps([t])`` does so once.

    Attributes:
        moments: numbers of steps, from 1, in rising order.
        reset: whether the optimiser starts anew at each renewal.

    Source: Fort et al. 2020, arXiv:2010.15110, for one anchor at a time t of a run.

    >>> [step for step in range(10) if AtSteps([1, 3])(step)]
    [1, 3]
    """

    moments: Sequence[int]
    reset: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "moments", tuple(self.moments))
        if any(step < 1 for step in self.moments) or list(self.moments) != sorted(set(self.moments)):
            raise UserError(
                f"`moments`: got {self.moments}, expected numbers of steps from 1 in rising order; at step 0 the "
                "anchor is there"
            )

    def __call__(self, step: int) -> bool:
        """Whether the anchor moves before a step."""
        return step in self.moments


@final
@checked
@dataclass(frozen=True)
class Adaptive:
    r"""The anchor moves when the linear model has become wrong: when a number that is looked at passes its threshold.

    With f the network, a the anchor, f_lin(w) = f(a) + J(a)(w - a), on ``samples`` samples:

    .. math:: \rho = \frac{L(f(a)) - L(f(w))}{L(f(a)) - L(f_{lin}(w))}, \qquad
        g = \frac{\|f(w) - f_{lin}(w)\|}{\|f(w) - f(a)\|}, \qquad
        d = \frac{\|(K(w) - K(a)) V\|}{\|K(a) V\|}

    for the trust ratio, the gap and the drift of the tangent kernel K = J J^T. V are ``directions`` random normal
    vectors, the same at every look, so that both squares are unbiased estimates, up to one factor, of those of the
    whole kernels. The gap of ``measure.gap`` divides by the norm of F(w), this one by how far the outputs have come.

    A block ends at a look if any threshold is passed, and after ``most`` steps in any case: a block of the
    cross-entropy on separable data has no end of its own. A look costs two passes forward and one in forward mode; the
    drift three times as much for each direction. Each member of a run decides for itself.

    Attributes:
        trust: the block ends where rho falls below it (0.25 to 0.9 are usual); None is not looked at.
        gap: ... where g rises above it.
        drift: ... where d rises above it.
        every: looks are so many steps apart.
        least: no block is shorter, but by what ``stable`` asks for, and for the end of the run.
        most: no block is longer.
        samples: so many training samples are looked at, a fixed random choice; fewer where there are fewer.
        directions: so many columns of V.
        seed: of samples and directions.
        reset: whether the optimiser starts anew at each renewal.

    Raises:
        UserError: if no threshold is given, or one is out of range.

    Source: Conn, Gould, Toint 2000, "Trust-region methods", chapter 6 (rho); Geiger et al. 2020 for the drift.
    """

    trust: float | None = None
    gap: float | None = None
    drift: float | None = None
    every: int = 10
    least: int = 1
    most: int = 1000
    samples: int = 256
    directions: int = 4
    seed: int = 0
    reset: bool = False

    def __post_init__(self) -> None:
        if self.trust is None and self.gap is None and self.drift is None:
            raise UserError(
                "`trust`: got None with no `gap` and no `drift`, expected at least one threshold; Every(steps) needs "
                "none"
            )
        if self.trust is not None and not self.trust < 1:
            raise UserError(
                f"`trust`: got {self.trust:g}, expected a number below 1, at which the network does as predicted"
            )
        for name in ("gap", "drift"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"`{name}`: got {value:g}, expected a positive finite number")
        if self.trust is not None and not math.isfinite(self.trust):
            raise UserError(f"`trust`: got {self.trust:g}, expected a finite number below 1")
        for name in ("every", "least", "most", "samples", "directions"):
            if getattr(self, name) < 1:
                raise UserError(f"`{name}`: got {getattr(self, name)}, expected 1 or more")
        if self.most < self.least:
            raise UserError(f"`most`: got {self.most}, expected {self.least} or more, as in `least`")

    def looks(self, steps: int) -> bool:
        """Whether the block is looked at when so many of its steps have been taken."""
        return self.least <= steps < self.most and (steps - self.least) % self.every == 0

    def ends(self, steps: int) -> bool:
        """Whether a block ends after so many steps whatever a look would say."""
        return steps >= self.most

    def says(self, reading: Findings) -> Why | None:
        """What ends the block, or None. A number that is not finite ends it: the linear model knows nothing there."""
        if self.trust is not None and not reading.trust >= self.trust:
            return "trust"
        if self.gap is not None and not reading.gap <= self.gap:
            return "gap"
        if self.drift is not None and not reading.drift <= self.drift:
            return "drift"
        return None


Renewal = Every | AtSteps | Adaptive
"""A rule of renewal."""


def resets(rule: object) -> bool:
    """Whether the optimiser starts anew at a renewal; a plain function does not ask for it."""
    return isinstance(rule, Renewal) and rule.reset
