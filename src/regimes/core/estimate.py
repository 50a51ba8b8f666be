"""Numbers with intervals: by the jackknife, and shares of samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from regimes.core.check import checked
from regimes.core.error import UserError

__all__ = [
    "Estimate",
    "Scale",
    "delete_one",
    "jackknife",
    "jackknife_variance",
    "paired_share",
    "positive",
    "quantile",
    "share",
]


Scale = Literal["plain", "log", "fisher"]
"""Where the scatter of a statistic is taken: on itself, on its logarithm, or on its artanh."""


@dataclass(frozen=True)
class Estimate:
    """A value with its interval ``[low, high]`` (95 % unless ``method`` says otherwise).

    Arguments:
        value: the point estimate.
        low: lower end of the interval, nan if there is none.
        high: upper end of the interval, nan if there is none.
        n: how many independent things (seeds, members, points) it rests on.
        method: how value and interval were obtained, in words; printed on the page.
    """

    value: float
    low: float
    high: float
    n: int
    method: str = ""


@checked
def quantile(freedom: float, level: float = 0.95) -> float:
    """Two-sided quantile of Student's t: ``P(|t| < q) = level`` with ``freedom`` degrees of freedom, nan with none.

    >>> round(quantile(2), 3)
    4.303
    """
    from scipy.special import stdtrit

    if not 0 < level < 1:
        raise UserError(f"`level` is {level}: expected a number between 0 and 1, such as 0.95")
    if freedom < 0:
        raise UserError(f"`freedom`: got {freedom}, expected 0 or more")
    return float(stdtrit(freedom, 0.5 + level / 2)) if freedom > 0 else math.nan


@checked
def positive(values: np.ndarray, name: str) -> np.ndarray:
    """The same values if all are above zero, for a logarithm; else a UserError that counts the others."""
    if values.dtype.kind not in "biuf":
        raise UserError(f"`{name}`: got an array of {values.dtype}, expected real numbers")
    if (bad := int((values <= 0).sum())) > 0:
        raise UserError(
            f"`{name}` has {bad} of {len(values)} values at or below zero: a logarithm needs positive ones; "
            "leave these rows out or work on the plain scale"
        )
    return values


def jackknife_variance(without: np.ndarray) -> float:
    r"""The variance of a statistic, :math:`\frac{n - 1}{n} \sum_i (\theta_{(i)} - \bar\theta)^2`.

    Arguments:
        without: :math:`\theta_{(i)}`, its values that leave one of n things out each.

    Source: Efron and Stein, The jackknife estimate of variance, 1981.
    """
    n = len(without)
    return (n - 1) / n * float(np.sum((without - np.mean(without)) ** 2))


def delete_one(
    value: float, without: np.ndarray, *, scale: Scale = "plain", level: float = 0.95, method: str = ""
) -> Estimate:
    r"""A statistic of n independent things with its jackknife interval, :math:`\theta \pm t_{n-1}\, \mathrm{se}`.

    Like :func:`jackknife` with one sample, where the statistic without each thing is known by a shorter way.

    Arguments:
        value: :math:`\theta`, from all things.
        without: :math:`\theta_{(i)}`, (n,), each from all things but one.
        scale: on which to work: "log" for what is positive, "fisher" (artanh) for what lies between -1 and 1; the
            interval does so too. Where a value lies outside, the plain scale is taken.
        level: coverage of the interval.
        method: how the things were used, in words.

    Returns:
        The estimate; without an interval (nan) of fewer than two things, or where a value is not finite.

    >>> found, same = delete_one(2.0, np.array([2.5, 2.0, 1.5])), jackknife([[1.0, 2.0, 3.0]], np.mean)
    >>> (found.value, found.low, found.high) == (same.value, same.low, same.high)
    True
    """
    every = np.append(without, value)
    if scale == "log" and bool(np.all(every > 0)):
        there, back = np.log, np.exp
    elif scale == "fisher" and bool(np.all(np.abs(every) < 1)):
        there, back = np.arctanh, np.tanh
    else:
        there = back = np.positive
    half, n = math.nan, len(without)
    if n > 1 and bool(np.isfinite(every).all()):
        half = quantile(n - 1, level) * math.sqrt(jackknife_variance(there(without)))
    with np.errstate(over="ignore"):
        low, high = (float(back(there(value) + end)) for end in (-half, half))
    return Estimate(value, low, high, n, method)


@checked
def jackknife(
    samples: Sequence[Sequence[Any] | np.ndarray],
    statistic: Callable[..., float],
    *,
    log: bool = False,
    level: float = 0.95,
) -> Estimate:
    r"""Any statistic of one or several independent samples with its delete-one jackknife interval.

    With :math:`\theta_{s(i)}` the statistic without member ``i`` of sample ``s`` (of size :math:`M_s`),

    .. math:: \mathrm{se}^2 = \sum_s v_s, \qquad
        v_s = \frac{M_s - 1}{M_s} \sum_i \big(\theta_{s(i)} - \bar\theta_s\big)^2

    (Efron and Stein, *The jackknife estimate of variance*, 1981). The interval is
    :math:`\theta \pm t_\nu\, \mathrm{se}` with the Welch-Satterthwaite degrees of freedom
    :math:`\nu = (\sum v_s)^2 / \sum v_s^2/(M_s - 1)`. For the mean of one sample this is the Student t
    interval.

    Arguments:
        samples: the samples, each a sequence of members (numbers, or one vector per member).
        statistic: called as ``statistic(*samples)``.
        log: the statistic is positive; work on its logarithm, so that the interval stays positive.
        level: coverage of the interval.

    Raises:
        UserError: if a sample has no members.

    >>> found = jackknife([[1.0, 2.0, 3.0]], np.mean)
    >>> found.value, abs(found.high - 2 - quantile(2) / math.sqrt(3)) < 1e-12
    (2.0, True)
    """
    sizes = [len(sample) for sample in samples]
    if min(sizes, default=0) == 0:
        raise UserError(f"`samples` have sizes {sizes}: expected at least one member each")
    total = sum(sizes)

    def value(*chosen: Sequence[Any] | np.ndarray) -> float:
        found = float(statistic(*chosen))
        return math.log(positive(np.array([found]), "statistic")[0]) if log else found

    centre = value(*samples)
    half = _half(samples, value, level) if min(sizes) > 1 else math.nan
    ends = (centre, centre - half, centre + half)
    point, low, high = (math.exp(end) for end in ends) if log else ends
    return Estimate(point, low, high, total, f"jackknife over {total} seeds, {100 * level:g} %")


def _half(samples: Sequence[Sequence[Any] | np.ndarray], value: Callable[..., float], level: float) -> float:
    """Half the width of the jackknife interval; zero if no member matters."""
    parts = []
    for s, sample in enumerate(samples):
        size = len(sample)
        without = []
        for i in range(size):
            rest = [sample[j] for j in range(size) if j != i]
            without.append(value(*samples[:s], rest, *samples[s + 1 :]))
        parts.append((jackknife_variance(np.array(without)), size - 1))
    variance = sum(part for part, _ in parts)
    if not variance > 0:
        return variance
    freedom = variance**2 / sum(part**2 / below for part, below in parts)
    return quantile(freedom, level) * math.sqrt(variance)


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
    return Estimate(p, low, high, n, f"share of {n} samples; Wilson, {100 * level:g} %")


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
    return Estimate(value, low, high, n, f"paired difference on {n} samples; Tango, {100 * level:g} %")


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
