"""Shares of samples, and the difference of two on the same samples, with score intervals."""

from __future__ import annotations

import math

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.estimate.interval import Estimate, quantile

__all__ = ["paired_share", "share"]


@checked
def share(count: int, n: int, *, level: float = 0.95) -> Estimate:
    r"""The share of n independent samples that are counted, with the score interval of Wilson.

    It holds the shares p with :math:`|\hat p - p| \le z \sqrt{p (1 - p) / n}`, and has a width at 0 and 1 too.

    Arguments:
        count: how many are counted, from 0 to n.
        n: the samples.
        level: coverage of the interval.

    Raises:
        UserError: if the numbers do not go together.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, 1927.

    >>> found = share(0, 96)
    >>> found.value, found.low, round(found.high, 3)
    (0.0, 0.0, 0.038)
    """
    if not 0 <= count <= n or n < 1:
        raise UserError(f"`count`: got {count} of {n}, expected a number from 0 to at least 1 sample")
    z, p = quantile(math.inf, level), count / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    low = 0.0 if count == 0 else centre - half
    high = 1.0 if count == n else centre + half
    return Estimate(p, low, high, n, f"share of {n} samples; Wilson, {100 * level:g} %", freedom=math.inf)


@checked
def paired_share(first: int, second: int, n: int, *, level: float = 0.95) -> Estimate:
    r"""The difference of two shares on the same n samples, with the score interval of Tango.

    ``first`` samples are counted by the first share alone, ``second`` by the second alone; samples that both count,
    or neither, say nothing of the difference :math:`\Delta` but for their number. The interval holds every
    :math:`\Delta` with

    .. math:: |b - c - n \Delta| \le z \sqrt{n\, (2 q + \Delta (1 - \Delta))}

    where b = ``first``, c = ``second``, and q is the likeliest share of c if :math:`\Delta` is true. It has a width
    where b = c = 0 too, :math:`\pm z^2 / (n + z^2)`, which the mean of n differences that are all 0 has not.

    Arguments:
        first: samples that the first share alone counts.
        second: samples that the second share alone counts.
        n: the samples.
        level: coverage of the interval.

    Raises:
        UserError: if the numbers do not go together.

    Source: Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design, Statistics in Medicine 1998, equations 7 to 10.

    >>> found = paired_share(12, 2, 50)
    >>> round(found.value, 3), round(found.low, 4), round(found.high, 4)
    (0.2, 0.0611, 0.3447)
    """
    if min(first, second) < 0 or first + second > n or n < 1:
        raise UserError(
            f"`first`, `second`: got {first} and {second} of {n}, expected parts of at least 1 sample"
        )
    z, value = quantile(math.inf, level), (first - second) / n
    low = -_furthest(second, first, n, z)
    high = _furthest(first, second, n, z)
    method = f"paired difference on {n} samples; Tango, {100 * level:g} %"
    return Estimate(value, low, high, n, method, freedom=math.inf)


def _furthest(b: int, c: int, n: int, z: float) -> float:
    """The largest difference that the score test does not reject, by bisection."""

    def rejected(delta: float) -> bool:
        spread = 2 * _likeliest(b, c, n, delta) + delta * (1 - delta)
        return n * delta - (b - c) > z * math.sqrt(n * max(spread, 0.0))

    low, high = (b - c) / n, 1.0
    if not rejected(high):
        return high
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (low, middle) if rejected(middle) else (middle, high)
    return low


def _likeliest(b: int, c: int, n: int, delta: float) -> float:
    """The share of c of greatest likelihood given the difference."""
    p = (2 * n - b + c) * delta - b - c
    root = math.sqrt(max(p**2 + 8 * n * c * delta * (1 - delta), 0.0))
    # The sum of a negative and a positive number of like size would lose its digits.
    return (root - p) / (4 * n) if p <= 0 else 2 * c * delta * (1 - delta) / (root + p)
