"""Every figure of the feature-lazy plane: the rows of a store in, a matplotlib Figure out."""

from __future__ import annotations

from regimes.report.figure_scale import fluctuation, kernel_change, learning_time, test_error, weight_change
from regimes.report.figure_width import (
    crossover,
    crossover_by_law,
    ensemble_error,
    fluctuation_width,
    phase_diagram,
)

__all__ = [
    "crossover",
    "crossover_by_law",
    "ensemble_error",
    "fluctuation",
    "fluctuation_width",
    "kernel_change",
    "learning_time",
    "phase_diagram",
    "test_error",
    "weight_change",
]
