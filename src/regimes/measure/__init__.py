"""What can be read off a state; nothing here knows who trained it."""

from regimes.kernel import (
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
from regimes.measure.activity import ActiveSet, Activity, Changes, LayerChange, activity
from regimes.measure.alignment import alignment
from regimes.measure.drift import KernelDrift, drift, kernel_distance
from regimes.measure.fluctuation import Averaging, Fluctuation, averaging, fluctuation
from regimes.measure.gap import Gap, gap, linearized
from regimes.measure.kappa import kappa
from regimes.measure.layer_cost import LayerCosts, Prediction, layer_costs
from regimes.measure.movement import Movement, movement
from regimes.measure.outputs import Error, Outputs, error_rate
from regimes.measure.pattern import Pattern, pattern
from regimes.measure.probe import Columns, Probe, Row, Snapshot, When, at_end, log_spaced, observe
from regimes.measure.reset import Reset, reset_test
from regimes.measure.times import Times
from regimes.measure.unmoved import Unmoved, unmoved

__all__ = [
    "ActiveSet",
    "Activity",
    "Averaging",
    "Changes",
    "Columns",
    "Eigenpairs",
    "Error",
    "Fluctuation",
    "Gap",
    "KernelDrift",
    "KernelForecast",
    "LayerChange",
    "LayerCosts",
    "LayerForecast",
    "Movement",
    "Outputs",
    "Pattern",
    "Prediction",
    "Probe",
    "Reduce",
    "Reset",
    "Row",
    "Snapshot",
    "StochasticEstimate",
    "TangentOperator",
    "Times",
    "Unmoved",
    "When",
    "activity",
    "alignment",
    "at_end",
    "averaging",
    "drift",
    "error_rate",
    "fluctuation",
    "gap",
    "kappa",
    "kernel_distance",
    "layer_costs",
    "linearized",
    "log_spaced",
    "movement",
    "ntk",
    "ntk_forecast",
    "ntk_operator",
    "ntk_sketch",
    "observe",
    "pattern",
    "reset_test",
    "unmoved",
]
