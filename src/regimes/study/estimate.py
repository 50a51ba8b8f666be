"""Numbers with intervals of columns and seeds: means (Student t), and what ``core.estimate`` has for any statistic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.estimate import Estimate, jackknife, paired_share, positive, quantile, share

__all__ = [
    "Estimate",
    "Values",
    "array",
    "jackknife",
    "mean",
    "paired_share",
    "positive",
    "quantile",
    "share",
]

Values = Sequence[Any] | np.ndarray | pd.Series | pd.DataFrame
"""Numbers as they come: a list, an array, a column of a data frame (which pandas may call a frame)."""


@checked
def array(values: Values) -> np.ndarray:
    """The numbers as a float64 vector; what is missing becomes nan."""
    try:
        return np.asarray(pd.to_numeric(pd.Series(np.asarray(values).ravel())), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"`values`: hold something other than numbers ({error}); leave it out") from error


@checked
def mean(values: Values, *, log: bool = False, level: float = 0.95) -> Estimate:
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
    return Estimate(value, low, high, n, f"{kind} over {n} seeds; Student t, {100 * level:g} %")
