"""Means with intervals: over seeds (Student t), and over seeds and samples together (the two-way layout)."""

from __future__ import annotations

import math

import numpy as np

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.estimate.column import Numbers, array, positive
from regimes.core.estimate.interval import Estimate, quantile

__all__ = ["mean", "two_way", "two_way_variances"]


@checked
def mean(values: Numbers, *, log: bool = False, level: float = 0.95) -> Estimate:
    r"""The mean of independent values with its Student t interval.

    .. math:: \bar v \pm t_{n-1}\, s / \sqrt n

    Missing values are left out. A single value has a mean but no interval (nan): nothing is known of its
    spread.

    Arguments:
        values: one number per seed.
        log: take the mean of the logarithms, i.e. the geometric mean with an interval that stays positive.
        level: coverage of the interval.

    Raises:
        UserError: if there are no values, or ``log`` is asked of values that are not positive.

    >>> mean([1.0, 2.0, 3.0]).value
    2.0
    >>> round(mean([1.0, 10.0, 100.0], log=True).value, 6)
    10.0
    """
    found = array(values)
    found = found[np.isfinite(found)]
    if found.size == 0:
        raise UserError(
            "`values` has no finite number: expected one per seed; no run is finished, or none has it"
        )
    kind = "geometric mean" if log else "mean"
    sample = np.log(positive(found, "values")) if log else found
    centre = float(sample.mean())
    n = int(sample.size)
    half = quantile(n - 1, level) * float(sample.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    ends = (centre, centre - half, centre + half)
    value, low, high = (math.exp(end) for end in ends) if log else ends
    method = f"{kind} over {n} seeds; Student t, {100 * level:g} %"
    return Estimate(value, low, high, n, method, "log" if log else "plain")


def _check_layout(values: np.ndarray, ends: tuple[float, float] | None) -> None:
    """Raise unless these are real numbers of at least 2 seeds and 2 samples, and the ends come in order."""
    if values.ndim != 2 or min(values.shape) < 2:
        raise UserError(f"`values`: got shape {values.shape}, expected (seeds, samples), at least 2 of each")
    if values.dtype.kind not in "biuf":
        raise UserError(f"`values`: got an array of {values.dtype}, expected real numbers")
    if ends is not None and not -math.inf < ends[0] < ends[1] < math.inf:
        raise UserError(f"`ends`: got {ends}, expected two finite numbers, the least first")


@checked
def two_way_variances(
    values: np.ndarray, ends: tuple[float, float] | None = None, *, level: float = 0.95
) -> tuple[float, float, float]:
    r"""The mean of values (R seeds, n samples), and its variance by the seeds and by the samples.

    With :math:`v_{si} = \mu + a_s + b_i + e_{si}`, independent draws of seeds s and samples i, and the mean squares
    :math:`M_a, M_b, M_e` of the two-way layout, the variance of the mean is :math:`\max(M_a - M_e, 0) / (R n)` by the
    seeds and :math:`M_b / (R n)` by the samples and what they do with the seeds. ``ends``, errors: see
    :func:`two_way`.
    """
    _check_layout(values, ends)
    seeds, n = values.shape
    z = quantile(math.inf, level)
    extra = 0.0 if ends is None else z**2 / 2
    low, high = ends or (0.0, 0.0)
    total = n + 2 * extra
    rows = (values.sum(1) + extra * (low + high)) / total
    centre = float(rows.mean())
    added = extra * ((low - centre) ** 2 + (high - centre) ** 2)
    by_seed = total * float(np.square(rows - centre).sum())
    by_sample = seeds * (float(np.square(values.mean(0) - centre).sum()) + added)
    rest = float(np.square(values - centre).sum()) + seeds * added - by_seed - by_sample
    m_a, m_b, m_e = by_seed / (seeds - 1), by_sample / (total - 1), rest / ((seeds - 1) * (total - 1))
    return centre, max(m_a - m_e, 0.0) / (seeds * total), m_b / (seeds * total)


@checked
def two_way(values: np.ndarray, ends: tuple[float, float] | None = None, *, level: float = 0.95) -> Estimate:
    r"""The mean over seeds and samples, both drawn anew: rows are R seeds, columns n samples that all of them saw.

    .. math:: \bar v \pm \sqrt{t_{R-1}^2 V_a + t_{n-1}^2 V_b}

    with the variances :math:`V_a` by the seeds and :math:`V_b` by the samples of :func:`two_way_variances`. In
    simulations it holds what it promises from 3 seeds on, for normal values and for right or wrong; with 2 seeds that
    differ much it is too short.

    Where the values are counts, ``ends`` names what a sample may give: (0, 1) for a share, (-1, 1) for the difference
    of two. Then :math:`z^2 / 2` samples at each end are added, as Agresti and Coull do for a share, so that the
    interval has a width where all samples agree: that of Tango's, :math:`z^2 / (n + z^2)`, if no difference was seen.

    Arguments:
        values: (R, n), at least 2 of each.
        ends: the least and the most that a sample may give, or None.
        level: coverage of the interval.

    Raises:
        UserError: if there are fewer than 2 seeds or samples, or the ends are not finite and in order.

    Source: Searle, Casella, McCulloch, Variance components, 1992, chapter 4; Agresti and Coull 1998; Zou and Donner
    2008 for the sum of two intervals.

    >>> found = two_way(np.array([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]))
    >>> once = mean([0.0, 1.0, 2.0])
    >>> found.value, abs(found.low - once.low) < 1e-12
    (1.0, True)
    """
    _check_layout(values, ends)
    seeds, n = values.shape
    centre, by_seed, by_sample = two_way_variances(values, ends, level=level)
    half = math.hypot(
        quantile(seeds - 1, level) * math.sqrt(by_seed), quantile(n - 1, level) * math.sqrt(by_sample)
    )
    low, high = centre - half, centre + half
    if ends is not None:
        low, high = max(low, ends[0]), min(high, ends[1])
    method = f"mean over {seeds} seeds and {n} samples; two-way, {100 * level:g} %"
    return Estimate(float(values.mean()), low, high, n, method)
