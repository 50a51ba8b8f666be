"""What both experiments train: a fully connected or a convolutional network of ten outputs, on images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from regimes import control, models
from regimes.data import Dataset
from regimes.papers.recipe.data import ClassImages
from regimes.papers.recipe.device import OnDevice
from regimes.papers.recipe.engine import MomentumDescent
from regimes.papers.recipe.recipe import Recipe
from regimes.study.field import Count, Index, Positive

__all__ = ["ImageCnn", "ImageMlp", "Images"]

# The pixels and the side of an image; of what is not here those of CIFAR-10.
_PIXELS = {"digits": 64, "mnist": 784, "fashion-mnist": 784}
_SIDE = {"digits": 8, "mnist": 28, "fashion-mnist": 28}


class Images(ClassImages, MomentumDescent, OnDevice, Recipe):
    """A ReLU network without biases under a law of width, trained on the cross-entropy by descent.

    Each run is a program of its own: seeds differ in their start, in the order of their batches and in the layers that
    are drawn, so that they are independent.

    Attributes:
        law: of width: ntk, standard, mean-field or mup.
        width: of the hidden layers.
        seed: of the start, of the batches, and of the layers that are drawn.
    """

    kind: ClassVar[str]
    tells: ClassVar[Mapping[str, str]] = {"step": "step", "status": "status", "loss_end": "loss"}

    law: Literal["ntk", "standard", "mean-field", "mup"] = "standard"
    width: Count = 64
    seed: Index = 0
    loss: Literal["squared", "cross-entropy"] = "cross-entropy"
    lr: Positive = 0.2
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    batch_size: Count = 50

    @property
    def label(self) -> str:
        """Data, network, law and width."""
        return f"{self.dataset} {self.kind} {self.law} width={self.width}"

    @property
    def start(self) -> dict[str, Any]:
        """What the makers of both networks take by the same names."""
        return {
            "law": control.law(self.law),
            "activation": "relu",
            "seed": self.seed,
            "dtype": getattr(torch, self.dtype),
        }

    def seconds(self, products: float, overhead: float) -> float:
        """Rough seconds from the products of a forward pass and the overhead of a step."""
        return self.epochs * self.n * (6 * products / 2e10 + overhead / self.batch_size)


class ImageMlp(Images):
    """A fully connected network on images as vectors.

    Attributes:
        depth: hidden layers; one more layer holds the outputs.
    """

    kind: ClassVar[str] = "mlp"

    depth: Count = 3

    def cost(self) -> float:
        """Rough seconds."""
        pixels = _PIXELS.get(self.dataset, 3072)
        return self.seconds(self.width * (pixels + self.width * (self.depth - 1) + 10), 1.8e-3)

    def points(self, directory: Path | None) -> Dataset:
        """The images as vectors."""
        return self.laid_out(directory)

    def network(self, shape: tuple[int, ...]) -> nn.Module:
        """The network at its start."""
        return models.mlp(shape[0], self.width, self.depth, 10, **self.start)


class ImageCnn(Images):
    """Four convolutions 3 x 3 of equal width, strides 2, 1, 2 and 1, the mean over positions, a linear read-out.

    Attributes:
        size: side to which images are averaged; None as they come.
        width: channels of each convolution.
    """

    kind: ClassVar[str] = "cnn"

    size: Literal[14, 16] | None = None
    width: Count = 16

    def cost(self) -> float:
        """Rough seconds."""
        side = self.size or _SIDE.get(self.dataset, 32)
        first, second = (math.ceil(side / stride) ** 2 for stride in (2, 4))
        return self.seconds(9 * self.width**2 * (first + 2 * second), 3.5e-3)

    def points(self, directory: Path | None) -> Dataset:
        """The images."""
        return self.laid_out(directory, self.size, flat=False)

    def network(self, shape: tuple[int, ...]) -> nn.Module:
        """The network at its start."""
        return models.cnn(shape[0], self.width, 10, kernel=3, **self.start)
