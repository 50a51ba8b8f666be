"""The literature: per paper its sweep at three scales, its figures, its claims."""

import importlib
from types import ModuleType

__all__ = [
    "catalog",
    "feature_lazy",
    "feature_lazy_claims",
    "feature_lazy_frozen",
    "feature_lazy_frozen_claims",
    "lazy_training",
    "lazy_training_claims",
    "lazy_training_images",
    "lazy_training_runs",
    "lazy_training_spectrum",
]


def __getattr__(name: str) -> ModuleType:
    """Import a file on first use: the catalogue is read before anything heavy is."""
    if name in __all__:
        return importlib.import_module(f"regimes.papers.{name}")
    raise AttributeError(f"module 'regimes.papers' has no attribute '{name}'")
