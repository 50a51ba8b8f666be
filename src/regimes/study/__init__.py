"""Many runs: experiments as values, sweeps, rows on disk by key, and how they are carried out."""

import importlib
from typing import TYPE_CHECKING, Any

from regimes.study import estimate
from regimes.study.execute import Failure, Forecast, Interrupted, Result, forecast_study, run_study
from regimes.study.process import keep_memory
from regimes.study.record import read_record
from regimes.study.run import Run
from regimes.study.store import Store
from regimes.study.study import Option, Scale, Study, load_study_file, parse_settings
from regimes.study.sweep import Sweep, bisection, combine, grid

if TYPE_CHECKING:
    from regimes.study.compare import Comparison, would_linear_do

__all__ = [
    "Comparison",
    "Failure",
    "Forecast",
    "Interrupted",
    "Option",
    "Result",
    "Run",
    "Scale",
    "Store",
    "Study",
    "Sweep",
    "bisection",
    "combine",
    "estimate",
    "forecast_study",
    "grid",
    "keep_memory",
    "load_study_file",
    "parse_settings",
    "read_record",
    "run_study",
    "would_linear_do",
]

# They need PyTorch, which the list of studies must not load.
LATER = ("Comparison", "would_linear_do")


def __getattr__(name: str) -> Any:
    if name in LATER:
        return getattr(importlib.import_module("regimes.study.compare"), name)
    raise AttributeError(f"module 'regimes.study' has no attribute '{name}'")
