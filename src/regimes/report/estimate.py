"""Numbers with intervals, where readers of a report look for them; they are those of ``regimes.study.estimate``."""

from __future__ import annotations

from regimes.study.estimate import Estimate, Values, array, jackknife, mean, positive, quantile

__all__ = ["Estimate", "Values", "array", "jackknife", "mean", "positive", "quantile"]
