"""Who is trained: networks as ordinary modules."""

from regimes.models.cnn import cnn
from regimes.models.mlp import mlp
from regimes.models.resnet import resnet
from regimes.models.two_layer import two_layer
from regimes.models.vgg import vgg

__all__ = ["cnn", "mlp", "resnet", "two_layer", "vgg"]
