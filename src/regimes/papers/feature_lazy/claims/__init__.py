"""What Geiger et al. 2020 claim (R6 to R14), each with the range set before any run."""

from __future__ import annotations

import pandas as pd

from regimes.papers.feature_lazy.claims.frozen import frozen_claims
from regimes.papers.feature_lazy.claims.plane import plane_claims
from regimes.report.claim import Claim

__all__ = ["claims"]


def claims(frame: pd.DataFrame) -> list[Claim]:
    """The claims that the rows can speak of: those of the plane, and those of networks with frozen kernels."""
    return plane_claims(frame) + frozen_claims(frame) if len(frame) else []
