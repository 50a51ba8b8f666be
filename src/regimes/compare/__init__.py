"""Several models on one task: would a linear model do, which layers to train, and would sampling them pay.

Data go one way. ``problem`` is what is learnt, ``prepare`` checks it, ``fit`` and ``loop`` train. For a linear model:
``kernel`` and ``score``, ``comparison``, and the door ``linear``. For layers: ``candidates``, ``race`` with
``calibrate``, ``saving``, ``choice``, and the door ``which_layers``. For sampled layers: ``score``, ``payoff``, and the
door ``sampling``.
"""

from regimes.compare.choice import LayerChoice
from regimes.compare.comparison import Comparison
from regimes.compare.linear import would_linear_do
from regimes.compare.payoff import Payoff
from regimes.compare.sampling import would_sampling_pay
from regimes.compare.which_layers import which_layers

__all__ = [
    "Comparison",
    "LayerChoice",
    "Payoff",
    "which_layers",
    "would_linear_do",
    "would_sampling_pay",
]
