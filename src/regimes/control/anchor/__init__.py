"""When the anchor moves: rules of renewal, what an adaptive one goes by, and the rate that a linear block stands."""

from regimes.control.anchor.block import Block
from regimes.control.anchor.policy import IterativeLinearisation
from regimes.control.anchor.rules import Adaptive, AtSteps, Every
from regimes.control.anchor.stability import StableRate, stable_rate

__all__ = ["Adaptive", "AtSteps", "Block", "Every", "IterativeLinearisation", "StableRate", "stable_rate"]
