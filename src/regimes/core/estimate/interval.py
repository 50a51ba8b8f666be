"""A value with its interval, and the quantile that says how wide that is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from regimes.core.check import checked
from regimes.core.error import UserError

__all__ = ["Estimate", "Scatter", "quantile"]

Scatter = Literal["plain", "log", "fisher"]
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
        scale: on which value and ends lie evenly: there the interval is value +- quantile(freedom) standard errors.
        freedom: degrees of freedom of the standard error; None for n - 1.
    """

    value: float
    low: float
    high: float
    n: int
    method: str = ""
    scale: Scatter = "plain"
    freedom: float | None = None


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
