"""What can be read off a state; nothing here knows who trained it."""

from regimes.measure.alignment import alignment
from regimes.measure.drift import KernelDrift, drift, kernel_distance
from regimes.measure.fluctuation import Averaging, Fluctuation, averaging, fluctuation
from regimes.measure.gap import Gap, gap, linearized
from regimes.measure.kappa import kappa
from regimes.measure.kernel import (
    Eigenpairs,
    KernelForecast,
    LayerForecast,
    Reduce,
    StochasticEstimate,
    TangentOperator,
    ntk,
    ntk_forecast,
    ntk_operator,
    ntk_sketch,
)
from regimes.measure.movement import Movement, movement
from regimes.measure.outputs import Error, Outputs, error_rate
from regimes.measure.pattern import Pattern, pattern
from regimes.measure.probe import Columns, Probe, Row, Snapshot, When, at_end, log_spaced, observe
from regimes.measure.times import Times

__all__ = [
    "Averaging",
    "Columns",
    "Eigenpairs",
    "Error",
    "Fluctuation",
    "Gap",
    "KernelDrift",
    "KernelForecast",
    "LayerForecast",
    "Movement",
    "Outputs",
    "Pattern",
    "Probe",
    "Reduce",
    "Row",
    "Snapshot",
    "StochasticEstimate",
    "TangentOperator",
    "Times",
    "When",
    "alignment",
    "at_end",
    "averaging",
    "drift",
    "error_rate",
    "fluctuation",
    "gap",
    "kappa",
    "kernel_distance",
    "linearized",
    "log_spaced",
    "movement",
    "ntk",
    "ntk_forecast",
    "ntk_operator",
    "ntk_sketch",
    "observe",
    "pattern",
]
