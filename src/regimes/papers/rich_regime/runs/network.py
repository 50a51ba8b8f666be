"""What both experiments train: a fully connected network of ten outputs on images as vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from regimes import control, models
from regimes.papers.recipe.data import ClassImages
from regimes.papers.recipe.device import OnDevice
from regimes.papers.recipe.engine import MomentumDescent
from regimes.papers.recipe.recipe import Recipe
from regimes.study.field import Count, Index, Positive

__all__ = ["ImageMlp"]


class ImageMlp(ClassImages, MomentumDescent, OnDevice, Recipe):
    """A fully connected ReLU network without biases, trained on the cross-entropy by descent.

    Each run is a program of its own: seeds differ in their start, in the order of their batches and in the layers that
    are drawn, so that they are independent.

    Attributes:
        law: of width: ntk, standard, mean-field or mup.
        depth: hidden layers; one more layer holds the outputs.
        width: of the hidden layers.
        seed: of the start, of the batches, and of the layers that are drawn.
    """

    flat: ClassVar[bool] = True
    tells: ClassVar[Mapping[str, str]] = {"step": "step", "status": "status", "loss_end": "loss"}

    law: Literal["ntk", "standard", "mean-field", "mup"] = "standard"
    depth: Count = 3
    width: Count = 64
    seed: Index = 0
    loss: Literal["squared", "cross-entropy"] = "cross-entropy"
    lr: Positive = 0.2
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    batch_size: Count = 50

    def cost(self) -> float:
        """Rough seconds: products of all passes, and the overhead of a step."""
        pixels = {"digits": 64, "mnist": 784, "fashion-mnist": 784}.get(self.dataset, 3072)
        size = self.width * (pixels + self.width * (self.depth - 1) + 10)
        return self.epochs * self.n * (6 * size / 2e10 + 1.2e-3 / self.batch_size)

    @property
    def label(self) -> str:
        """Data, law and width."""
        return f"{self.dataset} {self.law} width={self.width}"

    def network(self, shape: tuple[int, ...]) -> nn.Module:
        """The network at its start."""
        return models.mlp(
            shape[0],
            self.width,
            self.depth,
            10,
            law=control.law(self.law),
            activation="relu",
            seed=self.seed,
            dtype=getattr(torch, self.dtype),
        )
