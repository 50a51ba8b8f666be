"""How parameters move: each engine gives an iterable of states."""

from regimes.train.descent import Descent, descent
from regimes.train.flow import Flow, Tolerance, flow

__all__ = ["Descent", "Flow", "Tolerance", "descent", "flow"]
