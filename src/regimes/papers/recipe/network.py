"""Parts of networks: who is trained, and under which output scale."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from pydantic import BaseModel
from torch import nn

from regimes import control, models
from regimes.core.stream import generator
from regimes.models.xavier import Start
from regimes.study.field import Count, Index, Positive

__all__ = ["Convolutional", "FullyConnected", "OutputScale"]

# The channels of the convolutions of "conv"; a 2 x 2 max-pool follows the first and the third.
_CHANNELS = (16, 16, 32, 32)


class OutputScale(BaseModel, ABC):
    """What puts a network under an output scale, F = alpha (f(w) - f(w0)).

    Attributes:
        alpha: the output scale, in the convention of the law of width.
    """

    alpha: Positive = 1.0

    @abstractmethod
    def start(self, shape: tuple[int, ...]) -> nn.Module:
        """f at its start, for inputs of this shape, without the samples."""

    def network(self, shape: tuple[int, ...]) -> nn.Module:
        """F at its start."""
        return control.scale(self.start(shape), self.alpha)


class FullyConnected(BaseModel):
    """A fully connected network with softplus under a law of width (``models.mlp``).

    Attributes:
        law: of width: ntk, standard, mean-field or mup.
        depth: L, hidden layers.
        width: h.
        seed: of the start.
    """

    law: Literal["ntk", "standard", "mean-field", "mup"] = "ntk"
    depth: Count = 2
    width: Count = 64
    seed: Index = 0

    def start(self, shape: tuple[int, ...]) -> nn.Module:
        """The network at its start."""
        return models.mlp(shape[0], self.width, self.depth, law=control.law(self.law), seed=self.seed)


class Convolutional(BaseModel):
    """A convolutional network of ten outputs: ReLU, no normalisation, weights Xavier-normal and biases 0 at the start.

    Attributes:
        model: conv (four convolutions of 16, 16, 32 and 32 channels), vgg (VGG-11) or resnet (ResNet-18).
        width_factor: what multiplies the channels of vgg and resnet.
        gain: what multiplies the weights of the start.
        dtype: of the weights.
        seed: of the start.
    """

    model: Literal["conv", "vgg", "resnet"] = "conv"
    width_factor: Positive = 1.0
    gain: Positive = 1.0
    seed: Index = 0
    dtype: Literal["float32", "float64"] = "float32"

    def start(self, shape: tuple[int, ...]) -> nn.Module:
        """The network on images of that shape, (channels, height, width)."""
        channels, height, width = shape
        dtype = getattr(torch, self.dtype)
        if self.model == "conv":
            return self._conv(channels, (height // 4) * (width // 4), dtype)
        if self.model == "resnet":
            return models.resnet(
                channels, width_factor=self.width_factor, gain=self.gain, seed=self.seed, dtype=dtype
            )
        return models.vgg(
            channels,
            size=(height, width),
            width_factor=self.width_factor,
            gain=self.gain,
            seed=self.seed,
            dtype=dtype,
        )

    def _conv(self, channels: int, pixels: int, dtype: torch.dtype) -> nn.Sequential:
        """Four convolutions with ReLU, two max-pools, one linear layer."""
        start = Start(generator(self.seed, "conv", channels, pixels, *_CHANNELS), self.gain, dtype)
        layers: list[nn.Module] = []
        maps = channels
        for level, wanted in enumerate(_CHANNELS):
            layers += [start.conv(maps, wanted), nn.ReLU()]
            if level % 2 == 0:
                layers.append(nn.MaxPool2d(2))
            maps = wanted
        return nn.Sequential(*layers, nn.Flatten(), start.linear(maps * pixels, 10))
