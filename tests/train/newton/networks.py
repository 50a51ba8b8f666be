"""Small networks and tasks for Gauss-Newton, and the dense step that each form of it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from regimes import control, train
from regimes.core.loss import Loss, cross_entropy, squared
from tests.train.newton import dense
from tests.train.newton.dense import F64, flat

__all__ = ["EXACT", "NETWORKS", "STEPS", "bare", "mlp", "moved", "task"]

EXACT = {"tolerance": 1e-13, "max_products": 500}
STEPS: dict[Any, Callable[..., Tensor]] = {
    "full": dense.step,
    "products": dense.step,
    "trace": dense.kronecker_step,
}


class Tied(nn.Module):
    """A weight that is used twice, and one that is frozen."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, outputs)
        self.middle.weight = self.first.weight
        self.last.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.middle(torch.tanh(self.first(x)))))


def mlp(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs))


def conv(outputs: int) -> nn.Module:
    layers = nn.Conv2d(1, 2, 2), nn.Softplus(), nn.Flatten(), nn.Linear(2, outputs)
    return nn.Sequential(nn.Unflatten(1, (1, 2, 2)), *layers)


def scaled(outputs: int) -> nn.Module:
    module = control.scale(mlp(outputs).double(), 3.0)
    with torch.no_grad():
        for p in module.network.parameters():
            p.add_(torch.randn_like(p) / 3)
    return module


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "MLP": mlp,
    "convolution": conv,
    "tied": Tied,
    "scaled": scaled,
}


def task(n: int, c: int, loss: Loss) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 4, dtype=F64)
    if c > 1:
        return x, torch.randint(c, (n,)) if loss is cross_entropy else torch.randn(n, c, dtype=F64)
    return x, torch.randn(n, dtype=F64).sign()


def moved(
    optimizer: train.GaussNewton, x: Any, y: Tensor, **more: Any
) -> tuple[Tensor, train.GaussNewtonStep]:
    before = flat(optimizer.module)
    found = optimizer.step(x, y, **more)
    return flat(optimizer.module) - before, found


def bare(loss: Any = squared, outputs: Any = 3, **more: Any) -> train.GaussNewton:
    """Without the checks of shapes that the tests switch on."""
    return train.GaussNewton(mlp(outputs).double(), loss=loss, **more)
