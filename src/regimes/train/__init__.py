"""How parameters move: each engine gives an iterable of states; ``kernel`` moves a function without parameters."""

from regimes.train.descent import Descent, descent
from regimes.train.flow import Flow, Tolerance, flow
from regimes.train.kernel import kernel
from regimes.train.path import KernelPath, KernelState

__all__ = ["Descent", "Flow", "KernelPath", "KernelState", "Tolerance", "descent", "flow", "kernel"]
