"""Which layers to train: ``candidates``, a ``race`` (scored by ``calibrate``), what each saves, and the ``choice``."""

from regimes.compare.layers.choice import LayerChoice
from regimes.compare.layers.which_layers import which_layers

__all__ = ["LayerChoice", "which_layers"]
