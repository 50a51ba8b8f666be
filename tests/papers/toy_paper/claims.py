"""Its one claim."""

from __future__ import annotations

import pandas as pd

from regimes.core.estimate import Estimate, mean
from regimes.report.claim import Claim
from regimes.report.table import last

from . import CARD

__all__ = ["CLAIMS"]


def ratio(frame: pd.DataFrame) -> Estimate:
    """How much less the weights move: the geometric mean over seeds."""
    table = last(frame).pivot_table(index="seed", columns="alpha", values="dW")
    return mean(table[100.0] / table[1.0], log=True)


CLAIMS = (
    Claim("T1", CARD.name, "weights move less: alpha = 100 over 1", 0.1, "made up", (None, 0.5), ratio),
)
