"""The tangent kernel of any module: measurements read it, engines step by it; users find it in ``measure``."""

from regimes.kernel.factor import Reduce
from regimes.kernel.forecast import KernelForecast, LayerForecast, ntk_forecast
from regimes.kernel.ntk import ntk, ntk_sketch
from regimes.kernel.operator import TangentOperator, ntk_operator
from regimes.kernel.spectrum import Eigenpairs, StochasticEstimate

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
