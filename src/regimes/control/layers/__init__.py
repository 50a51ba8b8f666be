"""Which layers move at a step: the order by depth, what moves when, and the policy for a loop of one's own."""

from regimes.control.layers.least_variance import least_variance
from regimes.control.layers.moves import Cut, CyclicBlocks, Fixed, Moves, RandomLayers, UniformCut
from regimes.control.layers.plan import LayerPlan, layer_plan
from regimes.control.layers.policy import LayerwiseSparse

__all__ = [
    "Cut",
    "CyclicBlocks",
    "Fixed",
    "LayerPlan",
    "LayerwiseSparse",
    "Moves",
    "RandomLayers",
    "UniformCut",
    "layer_plan",
    "least_variance",
]
