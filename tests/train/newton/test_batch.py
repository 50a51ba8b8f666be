"""A batch of Gauss-Newton: samples that keep to themselves, however small their outputs are."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from regimes import models, train
from regimes.core.loss import cross_entropy
from tests.train.newton.dense import F64


@pytest.mark.parametrize("kernel", ["full", "trace", "products"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_start_that_is_zero_but_for_rounding(kernel: Any, dtype: torch.dtype) -> None:
    """In mirrored pairs: what is left of the outputs differs in company, and couples no samples."""
    net = models.mlp(7, 32, 1, outputs=3, seed=0, symmetric=True).to(dtype)
    x = torch.randn(33, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    optimizer = train.GaussNewton(net, loss=cross_entropy, kernel=kernel)
    losses = [optimizer.step(x, torch.arange(33) % 3).loss for _ in range(2)]
    assert losses[1] < losses[0] == pytest.approx(math.log(3), rel=1e-5)
