"""What the tests of the cached prefix share: networks with something below the cut, and loops with and without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regimes import control, models
from regimes.core.batch import feed, transform
from tests.control.sparse import loss_of

__all__ = ["NETWORKS", "Inner", "Loop", "N", "X", "loop_of", "orders"]

N = 10
X = torch.randn(N, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


class Residual(nn.Module):
    """Connections around blocks, from the start to the end, and out of the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.out = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        start, middle = x, x
        for place, block in enumerate(self.blocks):
            x = x + block(x).tanh()
            middle = x if place == 1 else middle
        return self.out(x.relu_() + start * middle)


class Several(nn.Module):
    """Layers that give and take tuples and mappings; a layer that is used below the cut and above it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.GRU(3, 4, batch_first=True), nn.Linear(6, 6)
        self.act, self.out = nn.ReLU(inplace=True), nn.Linear(14, 3)
        self.register_buffer("mask", torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0]))

    def forward(self, x: Tensor, shift: float = 0.5) -> dict[str, Any]:
        h = self.act(self.a(x)) + shift
        states, last = self.b(h.view(len(h), 2, 3))
        joined = torch.cat([states.flatten(1), self.c(h) * self.mask], 1)
        out = self.out(self.act(joined))
        return {"out": self.act(out - 1), "kept": last.transpose(0, 1), "sizes": h.shape}


class Images(nn.Module):
    """Convolutions with batch norm, frozen in eval mode, and maps that are read with the channels in the end."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 2))
        )
        self.drop, self.norm, self.out = nn.Dropout(0.0), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.train()

    def train(self, mode: bool = True) -> Images:
        super().train(mode)
        self.body.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        maps = self.body(x.view(len(x), 1, 2, 3)).permute(0, 2, 3, 1)
        return self.out(self.norm(self.drop(maps.mean((1, 2)))))


class Encoder(nn.Module):
    """A transformer in which the samples are the second axis, with a mask and positions that are constants."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = [nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0) for _ in range(3)]
        self.embed, self.where = nn.Linear(2, 4), nn.Embedding(3, 4)
        self.layers, self.out = nn.ModuleList(self.listed), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(3, 3, dtype=torch.bool).triu(1)
        h = self.embed(x.view(len(x), 3, 2)) + self.where(torch.arange(3))
        h = h.transpose(0, 1)
        for layer in self.listed:
            h = layer(h, src_mask=mask)
        return self.out(h[-1])


class Checkpointed(nn.Module):
    """Blocks whose activations are computed again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)]
        self.blocks, self.out = nn.ModuleList(self.listed), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.listed:
            x = checkpoint(block, x, use_reentrant=False)
        return self.out(x)


def _mlp() -> nn.Module:
    return models.mlp(6, 5, 3, outputs=2, seed=1)


NETWORKS: Mapping[str, tuple[Callable[[], nn.Module], int]] = {
    "mlp": (_mlp, 3),
    "as wide as a batch": (lambda: models.mlp(6, N, 2, outputs=N, seed=1), 2),
    "residual": (Residual, 3),
    "several": (Several, 2),
    "images": (Images, 2),
    "encoder": (Encoder, 3),
    "checkpointed": (Checkpointed, 2),
    "scaled": (lambda: control.scale(_mlp(), 2.0), 2),
}
"""By name: how to make it, and how many layers there are at the bottom that never move."""


def orders(epochs: int, size: int = 4, seed: int = 0) -> Iterator[Tensor]:
    """The samples of each batch, in another order in each epoch; the last batch is smaller."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from torch.randperm(N, generator=generator).split(size)


class Inner(nn.Module):
    """A prefix of two layers with something between."""

    def __init__(self, between: Callable[[Inner, Tensor], Tensor] | nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(
            self.between(self.a(x)) if isinstance(self.between, nn.Module) else self.between(self, self.a(x))
        )
        return self.out(h)


class Loop:
    """Training by hand, with a cached prefix or without."""

    def __init__(
        self, name: str, cached: bool, moves: control.Moves | None = None, kind: str = "adamw", **more: Any
    ) -> None:
        torch.manual_seed(0)
        make, still = NETWORKS[name]
        self.module = make().double()
        names = control.layer_plan(self.module, control.UniformCut(), example=X[:2]).layers
        moves = moves or control.Cut(p=[0.0] * still + [0.5] * (len(names) - still - 1) + [1.0])
        if kind == "adamw":
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(self.module.parameters(), lr=0.01)
        else:
            self.optimizer = torch.optim.SGD(self.module.parameters(), lr=0.01, momentum=0.9)
        self.policy = control.LayerwiseSparse(self.module, self.optimizer, moves, example=X[:2], seed=3)
        self.prefix = control.CachedPrefix(self.policy, samples=N, **more) if cached else None

    def run(
        self, batches: Iterator[Tensor], x: Tensor = X, each: Callable[[Loop], None] | None = None
    ) -> Loop:
        for rows in batches:
            if each is not None:
                each(self)
            self.optimizer.zero_grad()
            loss_of(feed(self.module, transform(x, lambda t, rows=rows: t[rows]))).backward()
            self.optimizer.step()
        return self

    @property
    def cache(self) -> control.CachedPrefix:
        """That there is one is known."""
        assert self.prefix is not None
        return self.prefix


def loop_of(module: nn.Module, moves: control.Moves | None = None, x: Any = X) -> control.LayerwiseSparse:
    """A policy, by default with the top layer moving."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    return control.LayerwiseSparse(module.double(), optimizer, moves or control.Fixed(top=1), example=x)
