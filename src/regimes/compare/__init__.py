"""Several models on one task: would a linear model do, which layers to train, and would sampling them pay.

``task`` is what all of them have in common: what is learnt, how it is trained, scored and decided. ``linear``,
``layers`` and ``sampling`` are the three questions; each has a file with the name of its function.
"""

from regimes.compare.layers import LayerChoice, which_layers
from regimes.compare.linear import Comparison, would_linear_do
from regimes.compare.sampling import Payoff, would_sampling_pay

__all__ = [
    "Comparison",
    "LayerChoice",
    "Payoff",
    "which_layers",
    "would_linear_do",
    "would_sampling_pay",
]
