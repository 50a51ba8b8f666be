"""What rounding may make of outputs: at least what it does, and not much more."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from regimes import models
from regimes.core.derivative import call
from regimes.core.noise import noise
from regimes.core.tree import trainable


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_bounds_what_single_precision_makes_of_outputs(seed: int, symmetric: bool) -> None:
    net = models.mlp(5, 16, 1 + seed % 3, outputs=5, seed=seed, symmetric=symmetric).float()
    x = torch.randn(16, 5, generator=torch.Generator().manual_seed(seed))
    exact = copy.deepcopy(net).double()(x.double())
    away = float((net(x).double() - exact).detach().norm())
    bound = noise(partial(call, net, x=x), trainable(net))
    assert 0 < away <= bound <= 1e5 * away


def test_a_constant_has_none() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return x

    net = Constant()
    assert noise(partial(call, net, x=torch.ones(2, 1)), trainable(net)) == 0
