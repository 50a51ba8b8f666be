"""The networks of the kernel benchmark: plain torch.nn in float32, as PyTorch initialises them.

``_neural_tangents.py`` has the same functions in JAX; both read the weights from one file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

WIDTH, HEADS, TOKENS = 128, 4, 64


def mlp(outputs: int) -> nn.Module:
    """784-512-512-512-c, ReLU."""
    return nn.Sequential(
        *(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU()),
        nn.Linear(512, outputs),
    )


def cnn(outputs: int) -> nn.Module:
    """1-64-64-64, 3x3 with strides 1, 2, 2, ReLU, the mean over positions, linear; images of 28x28."""
    return nn.Sequential(
        *(nn.Conv2d(1, 64, 3, 1, 1), nn.ReLU(), nn.Conv2d(64, 64, 3, 2, 1), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(64, outputs),
    )


class Block(nn.Module):
    """The basic block of a ResNet, with group norm."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(32, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(32, outputs)
        shorter = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.GroupNorm(32, outputs))
        self.shortcut = nn.Identity() if inputs == outputs and stride == 1 else shorter

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) -> (n, outputs, h / stride, w / stride)."""
        z = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(z)) + self.shortcut(x))


def resnet(outputs: int) -> nn.Module:
    """ResNet-18 with group norm and the stem for images of 32x32 (3x3, stride 1, no pooling)."""
    blocks, width = [], 64
    for stage in (64, 128, 256, 512):
        for first in (True, False):
            blocks.append(Block(width, stage, 2 if first and stage > 64 else 1))
            width = stage
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.GroupNorm(32, 64), nn.ReLU()),
        nn.Sequential(*blocks),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, outputs)),
    )


class Transformer(nn.Module):
    """Four encoder layers of width 128, 4 heads, hidden width 512, on 64 tokens of 32 numbers; mean, linear."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(32, WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn(TOKENS, WIDTH))
        self.layers = nn.Sequential(
            *(nn.TransformerEncoderLayer(WIDTH, HEADS, 512, dropout=0.0, batch_first=True) for _ in range(4))
        )
        self.head = nn.Linear(WIDTH, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 64, 32) -> (n, c)."""
        return self.head(self.layers(self.embedding(x) + self.position).mean(1))


NETWORKS: dict[str, tuple[str, Callable[[int], nn.Module], tuple[int, ...]]] = {
    "mlp": ("MLP 784-512-512-512", mlp, (784,)),
    "cnn": ("CNN 1-64-64-64, 28x28", cnn, (1, 28, 28)),
    "resnet": ("ResNet-18 (GroupNorm), 32x32", resnet, (3, 32, 32)),
    "transformer": ("transformer, 4 layers of 128, 64 tokens", Transformer, (TOKENS, 32)),
}
"""What the table calls it, what builds it, and the shape of one input."""


def build(name: str, outputs: int) -> nn.Module:
    """The network with seed 0."""
    torch.manual_seed(0)
    return NETWORKS[name][1](outputs).eval()


def inputs(name: str, samples: int) -> Tensor:
    """(n, ...) normal inputs; the first rows do not depend on how many there are."""
    draw = np.random.default_rng(1).standard_normal((samples, *NETWORKS[name][2]))
    return torch.from_numpy(draw.astype(np.float32))


def parameters(module: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in module.parameters())


def save(module: nn.Module, x: Tensor, path: Path) -> None:
    """Weights and inputs for those who cannot build the network themselves."""
    arrays: dict[str, Any] = {f"weight:{name}": w.detach().numpy() for name, w in module.named_parameters()}
    np.savez(path, x=x.numpy(), **arrays)
