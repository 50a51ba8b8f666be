"""Many runs: experiments as values, sweeps, rows on disk by key, and how they are carried out."""

import importlib
from typing import Any

from regimes.study.execute import Failure, Forecast, Interrupted, Result, forecast_study, run_study
from regimes.study.process import keep_memory
from regimes.study.protocol import Amendment
from regimes.study.record import read_record
from regimes.study.run import Run
from regimes.study.store import Store
from regimes.study.study import Option, Scale, Study, load_study_file, parse_settings
from regimes.study.sweep import Sweep, bisection, combine, grid

__all__ = [
    "Amendment",
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
    "forecast_study",
    "grid",
    "keep_memory",
    "load_study_file",
    "parse_settings",
    "read_record",
    "run_study",
]

# Names that have moved: study files written before still find them. `regimes.compare` needs PyTorch, which the list
# of studies must not load.
MOVED = {"Comparison": "regimes.compare", "estimate": "regimes.core", "would_linear_do": "regimes.compare"}


def __getattr__(name: str) -> Any:
    if name in MOVED:
        return getattr(importlib.import_module(MOVED[name]), name)
    raise AttributeError(f"module 'regimes.study' has no attribute '{name}'")
