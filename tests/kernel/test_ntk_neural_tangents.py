"""The tangent kernel against values from another library, on another framework: see neural_tangents_make.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regimes import measure
from regimes.core.layer import Conv2d, Linear, Scaling, SpatialMean

with np.load(Path(__file__).with_name("neural_tangents.npz")) as stored:
    VALUES = {name: torch.from_numpy(stored[name]) for name in stored.files if name != "versions"}
NETWORKS = ("mlp", "cnn")
REDUCTIONS: dict[Literal["full", "diagonal", "trace"], Callable[[Tensor], Tensor]] = {
    "full": lambda kernel: kernel,
    "diagonal": lambda kernel: kernel.diagonal(dim1=2, dim2=3),
    "trace": lambda kernel: kernel.diagonal(dim1=2, dim2=3).mean(2),
}


def layer(network: str, index: int, stride: int = 1) -> Linear | Conv2d:
    """The stored weights in a layer that divides by the root of its fan-in."""
    weight, bias = VALUES[f"{network}_weight_{index}"], VALUES[f"{network}_bias_{index}"]
    scaling = Scaling(multiplier=1 / math.sqrt(weight[0].numel()))
    outputs, inputs = weight.shape[:2]
    if weight.dim() == 2:
        made = Linear(inputs, outputs, scaling=scaling, bias=True, dtype=torch.float64)
    else:
        made = Conv2d(
            inputs, outputs, weight.shape[2], stride=stride, padding=1,
            scaling=scaling, bias=True, dtype=torch.float64,
        )  # fmt: skip
    made.load_state_dict({"weight": weight, "bias": bias})
    return made


def build(network: str) -> nn.Module:
    if network == "mlp":
        return nn.Sequential(layer("mlp", 0), nn.Tanh(), layer("mlp", 1), nn.Tanh(), layer("mlp", 2))
    convolutions = (layer("cnn", 0), nn.ReLU(), layer("cnn", 1, stride=2), nn.ReLU())
    return nn.Sequential(*convolutions, SpatialMean(), layer("cnn", 2))


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("network", NETWORKS)
def test_equals_the_stored_kernels(network: str, reduce: Literal["full", "diagonal", "trace"]) -> None:
    module, x1, x2 = build(network), VALUES[f"{network}_x1"], VALUES[f"{network}_x2"]
    reduced = REDUCTIONS[reduce]
    assert_same(measure.ntk(module, x1, reduce=reduce), reduced(VALUES[f"{network}_square"]))
    assert_same(measure.ntk(module, x1, x2, reduce=reduce), reduced(VALUES[f"{network}_rectangle"]))


@pytest.mark.parametrize("network", NETWORKS)
def test_the_stored_kernels_can_tell(network: str) -> None:
    """No entry is so small, and no two samples or outputs so alike, that a wrong order would pass."""
    for name in ("square", "rectangle"):
        kernel = VALUES[f"{network}_{name}"]
        for other in (kernel.transpose(2, 3), kernel.flip(0), kernel.flip(1)):
            assert (other - kernel).abs().max() > 1e-4 * kernel.abs().max()
