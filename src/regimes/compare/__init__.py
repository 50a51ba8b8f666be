"""Several models on one task: would a linear model do, and which layers to train.

Data go one way. ``problem`` is what is learnt, ``prepare`` checks it, ``fit`` and ``loop`` train. For a linear model:
``kernel`` and ``score``, ``comparison``, and the door ``linear``. For layers: ``candidates``, ``race`` with
``calibrate``, ``saving``, ``choice``, and the door ``which_layers``.
"""

from regimes.compare.choice import LayerChoice
from regimes.compare.comparison import Comparison
from regimes.compare.linear import would_linear_do
from regimes.compare.which_layers import which_layers

__all__ = ["Comparison", "LayerChoice", "which_layers", "would_linear_do"]
