"""How parameters move: each engine gives an iterable of states; ``kernel`` moves a function without parameters."""

from regimes.train.blocks import BlockDescent, blocks
from regimes.train.descent import Descent, descent
from regimes.train.filters import damping_filter, descent_filter, filter_gap
from regimes.train.flow import Flow, flow
from regimes.train.kernel import kernel
from regimes.train.newton import GaussNewton, GaussNewtonStep
from regimes.train.path import KernelPath, KernelState
from regimes.train.runge_kutta import RungeKutta, runge_kutta
from regimes.train.step import Tolerance

__all__ = [
    "BlockDescent",
    "Descent",
    "Flow",
    "GaussNewton",
    "GaussNewtonStep",
    "KernelPath",
    "KernelState",
    "RungeKutta",
    "Tolerance",
    "blocks",
    "damping_filter",
    "descent",
    "descent_filter",
    "filter_gap",
    "flow",
    "kernel",
    "runge_kutta",
]
