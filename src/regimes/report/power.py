r"""The power of a design: how often it would say "reproduced" if the true value were known.

A statistic with its interval, :math:`u \pm t_\nu s` on its scale, is drawn anew in each repetition of a design:
:math:`u` from :math:`N(\tau, \sigma^2)` about the truth :math:`\tau`, and, independent of it, :math:`s^2` from
:math:`\sigma^2 \chi^2_\nu / \nu`. The interval lies in the range :math:`[a, b]` with probability

.. math:: \int \Big[\Phi\Big(\frac{b - t_\nu s - \tau}{\sigma}\Big)
    - \Phi\Big(\frac{a + t_\nu s - \tau}{\sigma}\Big)\Big]_+ \, p(s)\, ds

which is exact for means of normal values, and for slopes of groups that were measured at the same places. What is put
in for :math:`\sigma` is the standard error of the rows that are there: of few of them it is known to a factor only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.estimate import Estimate, Scatter, quantile

__all__ = ["ENOUGH", "Range", "power", "units"]

ENOUGH = 0.8
"""The power below which a design is changed before it is run."""
MOST = 1000
_REST = 1e-12
Range = tuple[float | None, float | None]
"""The least and the most that a value may be; None where a side is open."""


@checked
def power(found: Estimate, truth: float, allowed: Range, *, n: int | None = None) -> float:
    r"""The probability that a design says "reproduced" if ``truth`` is exactly true.

    Args:
        found: what the design measured, or a pilot of it: standard error and degrees of freedom are taken from its
            interval (of 95 %), on its scale; its value is not.
        truth: the true value.
        allowed: the range in which the whole interval must fall.
        n: independent units of the design, if not those of ``found``: the standard error goes with
            :math:`n^{-1/2}`, the degrees of freedom with n - 1.

    Returns:
        the probability; nan where ``found`` has no interval.

    Raises:
        UserError: if the truth is not finite, or has no place on the scale of ``found``; or n is below 2.

    >>> pilot = Estimate(0.3, 0.1, 0.5, 4)
    >>> round(power(pilot, 0.0, (-0.2, 0.2)), 3), round(power(pilot, 0.0, (-0.2, 0.2), n=16), 3)
    (0.373, 1.0)
    """
    if n is not None:
        found = grown(found, n)
    error, freedom = standard_error(found)
    if not math.isfinite(error):
        return math.nan
    low, high = ends_of(allowed)
    there, least, most = _scale(found.scale)
    if not (math.isfinite(truth) and least < truth < most):
        raise UserError(f"`truth`: got {truth}, expected a finite number on the {found.scale} scale")
    a = there(low) if low > least else -math.inf
    b = there(high) if high < most else math.inf
    return _inside(there(truth), a, b, error, freedom)


@checked
def units(found: Estimate, truth: float, allowed: Range, *, wanted: float = ENOUGH) -> int | None:
    """The least number of independent units with this power, if the spread stays; None beyond 1000 times those there.

    Args:
        found, truth, allowed: as for :func:`power`.
        wanted: the power, between 0 and 1.

    Raises:
        UserError: as for :func:`power`; or if ``wanted`` is no probability.

    >>> units(Estimate(0.3, 0.1, 0.5, 4), 0.0, (-0.2, 0.2))
    7
    """
    if not 0 < wanted < 1:
        raise UserError(f"`wanted`: got {wanted}, expected a probability between 0 and 1, such as {ENOUGH}")
    if math.isnan(power(found, truth, allowed)):
        return None
    below, enough = 1, 2
    while power(found, truth, allowed, n=enough) < wanted:
        below, enough = enough, 2 * enough
        if below > MOST * found.n:
            return None
    while enough - below > 1:
        middle = (below + enough) // 2
        below, enough = (
            (below, middle) if power(found, truth, allowed, n=middle) >= wanted else (middle, enough)
        )
    return enough if enough <= MOST * found.n else None


def grown(found: Estimate, n: int) -> Estimate:
    """The estimate with the interval that n units would have."""
    if n < 2 or found.n < 2:
        raise UserError(f"`n`: got {n} units from {found.n}, expected at least 2 of each")
    error, freedom = standard_error(found)
    freedom *= (n - 1) / (found.n - 1)
    there, least, most = _scale(found.scale)
    if not (math.isfinite(error) and least < found.value < most):
        return found
    back = {"plain": float, "log": math.exp, "fisher": math.tanh}[found.scale]
    half = quantile(freedom) * error * math.sqrt(found.n / n)
    low, high = (back(there(found.value) + end) for end in (-half, half))
    return replace(found, low=low, high=high, n=n, freedom=freedom)


def standard_error(found: Estimate) -> tuple[float, float]:
    """The standard error on the scale of the estimate, and its degrees of freedom; nan without an interval."""
    freedom = float(found.n - 1 if found.freedom is None else found.freedom)
    there, least, most = _scale(found.scale)
    inside = all(math.isfinite(end) and least < end < most for end in (found.low, found.high))
    if not (inside and freedom > 0):
        return math.nan, freedom
    return (there(found.high) - there(found.low)) / 2 / quantile(freedom), freedom


def ends_of(allowed: Range) -> tuple[float, float]:
    """The range as two floats, infinite where it is open."""
    low, high = allowed
    return (-math.inf if low is None else float(low)), (math.inf if high is None else float(high))


def _scale(name: Scatter) -> tuple[Callable[[float], float], float, float]:
    """The function to the scale, and the numbers between which it is defined."""
    if name == "log":
        return math.log, 0.0, math.inf
    return (math.atanh, -1.0, 1.0) if name == "fisher" else (float, -math.inf, math.inf)


def _inside(truth: float, a: float, b: float, error: float, freedom: float) -> float:
    """The integral of the head of the file."""
    from scipy.integrate import quad
    from scipy.special import gammaincinv, gammaln, ndtr

    if error == 0:
        return float(a <= truth <= b)
    reach = quantile(freedom)

    def given(s: float) -> float:
        above, below = (b - reach * s - truth) / error, (a + reach * s - truth) / error
        return float(ndtr(above) - ndtr(below)) if above > below else 0.0

    if math.isinf(freedom):
        return given(error)
    # s = error u, where freedom u^2 is chi squared; all but _REST of it lies between these two.
    least, most = (math.sqrt(2 * float(gammaincinv(freedom / 2, p)) / freedom) for p in (_REST, 1 - _REST))
    most = min(most, (b - a) / (2 * reach * error))
    shift = math.log(2) + freedom / 2 * math.log(freedom / 2) - float(gammaln(freedom / 2))

    def at(u: float) -> float:
        return given(error * u) * math.exp(shift + (freedom - 1) * math.log(u) - freedom / 2 * u**2)

    return min(1.0, float(quad(at, least, most, epsabs=1e-9, limit=200)[0])) if most > least else 0.0
