"""What is shown, whatever the study: tables, fits, verdicts, the style of figures, one page. Never runs anything."""

import importlib
from types import ModuleType

__all__ = [
    "activity",
    "claim",
    "ensemble",
    "fit",
    "page",
    "power",
    "table",
]


def __getattr__(name: str) -> ModuleType:
    """Import a file on first use: a claim needs no matplotlib, a table no jinja2."""
    if name in __all__:
        return importlib.import_module(f"regimes.report.{name}")
    raise AttributeError(f"module 'regimes.report' has no attribute '{name}'")
