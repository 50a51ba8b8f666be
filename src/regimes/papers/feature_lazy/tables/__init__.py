"""Rows to what claims and figures share: tidy tables, and the fits."""

from regimes.papers.feature_lazy.tables import frozen, plane

__all__ = ["frozen", "plane"]
