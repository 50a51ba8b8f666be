"""Layers of torch that start with Xavier-normal weights and zero biases, from a given generator."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

__all__ = ["Start"]

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


class Start:
    """Where the weights of a network come from: N(0, gain^2 2 / (fan-in + fan-out)), layer after layer.

    The global generator of torch is not touched.

    Args:
        generator: of the draws, such as that of :func:`regimes.core.stream.generator`.
        gain: what multiplies the weights.
        dtype: of the parameters.

    Source: Glorot, Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks".
    """

    def __init__(self, generator: torch.Generator, gain: float, dtype: torch.dtype) -> None:
        self.generator, self.gain, self.dtype = generator, gain, dtype

    def conv(
        self, inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, bias: bool = True
    ) -> nn.Conv2d:
        """A convolution, padded so that stride 1 keeps the size of the image."""
        empty = nn.Conv2d(
            inputs,
            outputs,
            kernel,
            stride=stride,
            padding=kernel // 2,
            bias=bias,
            device="meta",
            dtype=self.dtype,
        )
        return self._filled(empty)

    def linear(self, inputs: int, outputs: int) -> nn.Linear:
        """A linear layer with a bias."""
        return self._filled(nn.Linear(inputs, outputs, device="meta", dtype=self.dtype))

    def _filled(self, empty: Layer) -> Layer:
        layer = empty.to_empty(device="cpu")
        nn.init.xavier_normal_(layer.weight, self.gain, generator=self.generator)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
        return layer
