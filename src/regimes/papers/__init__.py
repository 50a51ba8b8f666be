"""The literature: one folder a paper, with its card, study, runs, claims and figures; a recipe for what runs share."""

import importlib
from types import ModuleType

__all__ = [
    "card",
    "catalog",
    "feature_lazy",
    "iterative_linearisation",
    "lazy_training",
    "recipe",
    "rich_regime",
    "two_regimes",
]


def __getattr__(name: str) -> ModuleType:
    """Import a file or folder on first use: the cards are read before anything heavy is."""
    if name in __all__:
        return importlib.import_module(f"regimes.papers.{name}")
    raise AttributeError(f"module 'regimes.papers' has no attribute '{name}'")
