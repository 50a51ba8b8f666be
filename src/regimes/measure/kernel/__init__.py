"""The tangent-kernel engine."""

from regimes.measure.kernel.factor import Reduce
from regimes.measure.kernel.forecast import KernelForecast, LayerForecast, ntk_forecast
from regimes.measure.kernel.ntk import ntk, ntk_sketch
from regimes.measure.kernel.operator import TangentOperator, ntk_operator
from regimes.measure.kernel.spectrum import Eigenpairs, StochasticEstimate

__all__ = [
    "Eigenpairs",
    "KernelForecast",
    "LayerForecast",
    "Reduce",
    "StochasticEstimate",
    "TangentOperator",
    "ntk",
    "ntk_forecast",
    "ntk_operator",
    "ntk_sketch",
]
