"""What an experimenter may change; each control takes a module, or an optimiser with it."""

from regimes.control.anchor import (
    Adaptive,
    AtSteps,
    Block,
    Every,
    IterativeLinearisation,
    StableRate,
    stable_rate,
)
from regimes.control.held import HeldBatch
from regimes.control.layers import (
    Cut,
    CyclicBlocks,
    Fixed,
    LayerPlan,
    LayerwiseSparse,
    Moves,
    RandomLayers,
    UniformCut,
    layer_plan,
    least_variance,
)
from regimes.control.linear import Linearized, linearize
from regimes.control.prefix import CachedPrefix
from regimes.control.scale import Scaled, scale, unscaled
from regimes.control.width import LAWS, MEAN_FIELD, MUP, NTK, STANDARD, Law, law, rates, table

__all__ = [
    "LAWS",
    "MEAN_FIELD",
    "MUP",
    "NTK",
    "STANDARD",
    "Adaptive",
    "AtSteps",
    "Block",
    "CachedPrefix",
    "Cut",
    "CyclicBlocks",
    "Every",
    "Fixed",
    "HeldBatch",
    "IterativeLinearisation",
    "Law",
    "LayerPlan",
    "LayerwiseSparse",
    "Linearized",
    "Moves",
    "RandomLayers",
    "Scaled",
    "StableRate",
    "UniformCut",
    "law",
    "layer_plan",
    "least_variance",
    "linearize",
    "rates",
    "scale",
    "stable_rate",
    "table",
    "unscaled",
]
