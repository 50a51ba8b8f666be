"""Intervals of any statistic, by leaving out one of n independent things at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.estimate.column import positive
from regimes.core.estimate.interval import Estimate, Scatter, quantile

__all__ = ["delete_one", "jackknife", "jackknife_variance"]


def jackknife_variance(without: np.ndarray) -> float:
    r"""The variance of a statistic, :math:`\frac{n - 1}{n} \sum_i (\theta_{(i)} - \bar\theta)^2`.

    Arguments:
        without: :math:`\theta_{(i)}`, its values that leave one of n things out each.

    Source: Efron and Stein, The jackknife estimate of variance, 1981.
    """
    n = len(without)
    return (n - 1) / n * float(np.sum((without - np.mean(without)) ** 2))


def delete_one(
    value: float, without: np.ndarray, *, scale: Scatter = "plain", level: float = 0.95, method: str = ""
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
        scale = "plain"
    half, n = math.nan, len(without)
    if n > 1 and bool(np.isfinite(every).all()):
        half = quantile(n - 1, level) * math.sqrt(jackknife_variance(there(without)))
    with np.errstate(over="ignore"):
        low, high = (float(back(there(value) + end)) for end in (-half, half))
    return Estimate(value, low, high, n, method, scale)


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
    half, freedom = _half(samples, value, level) if min(sizes) > 1 else (math.nan, None)
    ends = (centre, centre - half, centre + half)
    point, low, high = (math.exp(end) for end in ends) if log else ends
    method = f"jackknife over {total} seeds, {100 * level:g} %"
    return Estimate(point, low, high, total, method, "log" if log else "plain", freedom)


def _half(
    samples: Sequence[Sequence[Any] | np.ndarray], value: Callable[..., float], level: float
) -> tuple[float, float | None]:
    """Half the width of the jackknife interval, zero if no member matters; and its degrees of freedom."""
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
        return variance, None
    freedom = variance**2 / sum(part**2 / below for part, below in parts)
    return quantile(freedom, level) * math.sqrt(variance), freedom
