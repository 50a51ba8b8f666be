"""The experiments: which parameters of a network move, and training in which few layers do."""

from regimes.papers.rich_regime.runs.activity import ABOVE, ActivityRun, ConvActivityRun
from regimes.papers.rich_regime.runs.sparse import (
    ConvSparseRun,
    SparseRun,
    backward_products,
    forward_products,
)

__all__ = [
    "ABOVE",
    "ActivityRun",
    "ConvActivityRun",
    "ConvSparseRun",
    "SparseRun",
    "backward_products",
    "forward_products",
]
