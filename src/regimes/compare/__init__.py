"""Several models on one task: would a linear model do, how many feature updates are enough, which layers to train.

``task`` is what all of them have in common: what is learnt, how it is trained, scored and decided. ``linear``,
``updates``, ``layers`` and ``sampling`` are the four questions; each has a file with the name of its function.
"""

from regimes.compare.layers import LayerChoice, which_layers
from regimes.compare.linear import Comparison, would_linear_do
from regimes.compare.sampling import Payoff, would_sampling_pay
from regimes.compare.updates import FeatureUpdates, how_many_feature_updates

__all__ = [
    "Comparison",
    "FeatureUpdates",
    "LayerChoice",
    "Payoff",
    "how_many_feature_updates",
    "which_layers",
    "would_linear_do",
    "would_sampling_pay",
]
