"""Networks of ``benchmarks/sparse.py``, and the loops of others: LISA and BAdam as they are published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn

from regimes import models

__all__ = ["NETWORKS", "BAdam", "Lisa", "blocks"]


def mlp() -> tuple[nn.Sequential, Callable[[int], Tensor], int]:
    """784-512-512-512-512-10, 128 samples."""
    sizes = [784, 512, 512, 512, 512]
    hidden = [each for n, m in pairwise(sizes) for each in (nn.Linear(n, m), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(512, 10)), lambda n: torch.randn(n, 784), 128


def cnn() -> tuple[nn.Sequential, Callable[[int], Tensor], int]:
    """Four convolutions with group norm and a linear layer, 64 images of 3 x 32 x 32."""
    channels = [3, 32, 64, 128, 128]
    parts = [
        nn.Sequential(
            nn.Conv2d(n, m, 3, stride=1 if n == 3 else 2, padding=1, bias=False),
            nn.GroupNorm(8, m),
            nn.ReLU(),
        )
        for n, m in pairwise(channels)
    ]
    net = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
    return net, _images, 64


def vgg() -> tuple[nn.Sequential, Callable[[int], Tensor], int]:
    """VGG-11, 16 images of 3 x 32 x 32."""
    return models.vgg(dtype=torch.float32), _images, 16


def resnet() -> tuple[nn.Sequential, Callable[[int], Tensor], int]:
    """ResNet-18 with group norm, 4 images of 3 x 32 x 32."""
    return models.resnet(norm="group", dtype=torch.float32), _images, 4


class LastToken(nn.Module):
    """What is known at the last place, (n, places, d) to (n, d)."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, d)."""
        return x[:, -1]


def transformer() -> tuple[nn.Sequential, Callable[[int], Tensor], int]:
    """An embedding, four encoder layers of 128 features, a linear layer; 16 texts of 64 tokens."""
    parts = [nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True) for _ in range(4)]
    net = nn.Sequential(nn.Embedding(1000, 128), *parts, LastToken(), nn.Linear(128, 10))
    return net, lambda n: torch.randint(1000, (n, 64)), 16


def _images(n: int) -> Tensor:
    return torch.randn(n, 3, 32, 32)


NETWORKS: Mapping[str, tuple[Callable[[], tuple[nn.Sequential, Callable[[int], Tensor], int]], int]] = {
    "mlp": (mlp, 1),
    "cnn": (cnn, 2),
    "vgg": (vgg, 2),
    "resnet": (resnet, 1),
    "transformer": (transformer, 1),
}
"""By name: the network, its inputs, and the size of a batch; how many layers at the top have a tenth of the
multiplications of a backward pass, or less."""


def blocks(net: nn.Sequential) -> list[str]:
    """The names of the parts of a sequence that have parameters: a layer is one of them."""
    return [name for name, each in net.named_children() if any(True for _ in each.parameters())]


@final
class Lisa:
    """LISA: the first and the last layer always, and one of the others, drawn each ``interval`` steps; AdamW of all.

    Source: Pan et al. 2024, algorithm 1.
    """

    def __init__(self, net: nn.Sequential, interval: int) -> None:
        self._layers = [net.get_submodule(name) for name in blocks(net)]
        self._interval, self._drawn = interval, torch.Generator().manual_seed(0)
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)

    def begin(self, step: int) -> None:
        """Before the pass of a step."""
        if step % self._interval == 0:
            place = 1 + int(torch.randint(len(self._layers) - 2, (), generator=self._drawn))
            _thaw(self._layers, [0, place, len(self._layers) - 1])


@final
class BAdam:
    """BAdam: one layer after another, each for ``interval`` steps, each time with an AdamW that knows nothing yet.

    Source: Luo, Yu, Li 2024, algorithm 1.
    """

    def __init__(self, net: nn.Sequential, interval: int) -> None:
        self._layers = [net.get_submodule(name) for name in blocks(net)]
        self._interval = interval
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)

    def begin(self, step: int) -> None:
        """Before the pass of a step."""
        if step % self._interval == 0:
            place = len(self._layers) - 1 - step // self._interval % len(self._layers)
            _thaw(self._layers, [place])
            self.optimizer = torch.optim.AdamW(self._layers[place].parameters(), lr=1e-4)


def _thaw(layers: Sequence[nn.Module], places: Sequence[int]) -> None:
    for place, layer in enumerate(layers):
        layer.requires_grad_(place in places)
        if place not in places:
            for p in layer.parameters():
                p.grad = None
