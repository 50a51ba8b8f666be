"""The literature: one folder a paper, with its card, study, runs, claims and figures; a recipe for what runs share."""

import importlib
from types import ModuleType

__all__ = ["card", "catalog"]


def __getattr__(name: str) -> ModuleType:
    """Import a file or folder on first use: the cards are read before anything heavy is."""
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
