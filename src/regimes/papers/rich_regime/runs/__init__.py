"""The experiments: which parameters of a network move, and training in which few layers do."""

from regimes.papers.rich_regime.runs.activity import ABOVE, ActivityRun
from regimes.papers.rich_regime.runs.sparse import SparseRun, backward_products

__all__ = ["ABOVE", "ActivityRun", "SparseRun", "backward_products"]
