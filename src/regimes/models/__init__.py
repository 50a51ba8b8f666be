"""Who is trained: networks as ordinary modules."""

from regimes.models.cnn import cnn
from regimes.models.mlp import mlp

__all__ = ["cnn", "mlp"]
