"""Numbers with intervals: means, shares, and by the jackknife any statistic."""

from regimes.core.estimate.column import Column, Numbers, array, positive
from regimes.core.estimate.interval import Estimate, Scatter, quantile
from regimes.core.estimate.jackknife import delete_one, jackknife, jackknife_variance
from regimes.core.estimate.mean import mean, two_way, two_way_variances
from regimes.core.estimate.share import paired_share, share

__all__ = [
    "Column",
    "Estimate",
    "Numbers",
    "Scatter",
    "array",
    "delete_one",
    "jackknife",
    "jackknife_variance",
    "mean",
    "paired_share",
    "positive",
    "quantile",
    "share",
    "two_way",
    "two_way_variances",
]
