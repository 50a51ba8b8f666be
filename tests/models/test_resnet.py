"""ResNet-18: what it computes, its sizes and its start."""

from __future__ import annotations

import inspect
import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from regimes import control, measure, models
from regimes.core.error import UserError

Norm = Literal["none", "group"]


def conv(x: Tensor, layer: nn.Module, stride: int = 1) -> Tensor:
    assert isinstance(layer, nn.Conv2d)
    return functional.conv2d(x, layer.weight, layer.bias, stride, layer.weight.shape[-1] // 2)


def normed(x: Tensor, norm: Norm) -> Tensor:
    """Group norm as it starts: mean 0 and variance 1 over positions and 16 channels."""
    if norm == "none":
        return x
    n, c = x.shape[:2]
    groups = x.reshape(n, c // 16 if c % 16 == 0 else 1, -1)
    spread = (groups.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return ((groups - groups.mean(2, keepdim=True)) / spread).view_as(x)


def outputs(net: nn.Module, x: Tensor, norm: Norm) -> Tensor:
    """ResNet-18, line by line."""
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    z = normed(conv(x, layers.pop(0)), norm).relu()
    for block in range(8):
        stride = 2 if block in (2, 4, 6) else 1
        inner = normed(conv(z, layers.pop(0), stride), norm).relu()
        branch = normed(conv(inner, layers.pop(0)), norm)
        short = normed(conv(z, layers.pop(0), stride), norm) if stride == 2 else z
        z = (branch + short).relu()
    assert not layers
    *_, weight, bias = net.parameters()
    return z.mean((2, 3)) @ weight.T + bias


@pytest.mark.parametrize("norm", ["none", "group"])
@pytest.mark.parametrize(("channels", "size", "factor"), [(3, 32, 1 / 32), (1, 28, 1 / 8), (2, 9, 1 / 16)])
def test_is_its_formula(channels: int, size: int, factor: float, norm: Norm) -> None:
    net = models.resnet(channels, 4, width_factor=factor, norm=norm, seed=3)
    x = torch.randn(2, channels, size, size, dtype=torch.float64)
    torch.testing.assert_close(net(x), outputs(net, x, norm), rtol=1e-9, atol=1e-9)


def test_the_published_sizes() -> None:
    net = models.resnet(norm="group", dtype=torch.float32)
    convolutions = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    assert len([layer for layer in convolutions if layer.kernel_size == (3, 3)]) == 17
    assert convolutions[-1].out_channels == net[-1].in_features == 512
    # A batch norm has as many parameters as a group norm.
    assert sum(p.numel() for p in net.parameters()) == 11_173_962
    assert models.resnet(width_factor=0.5)[0].out_channels == 32


@pytest.mark.parametrize("norm", ["none", "group"])
def test_no_sample_sees_another(norm: Norm) -> None:
    net = models.resnet(1, 3, width_factor=1 / 16, norm=norm)
    x = torch.randn(4, 1, 28, 28, dtype=torch.float64)
    assert net.training
    torch.testing.assert_close(net(x), torch.cat([net(sample[None]) for sample in x]))
    kernel = measure.ntk(control.scale(net, 10.0), x, reduce="trace")
    assert kernel.shape == (4, 4)


@pytest.mark.parametrize("norm", ["none", "group"])
def test_the_start(norm: Norm) -> None:
    state = torch.get_rng_state()
    net, same, other = (
        models.resnet(width_factor=0.25, norm=norm, gain=1.2, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), same.parameters(), strict=True))
    assert not torch.equal(next(net.parameters()), next(other.parameters()))
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            fans = layer.kernel_size[0] ** 2 * (layer.in_channels + layer.out_channels)
            tolerance = 5 / math.sqrt(2 * layer.weight.numel())
            assert layer.weight.std().item() == pytest.approx(1.2 * math.sqrt(2 / fans), rel=tolerance)
    assert all(bool((p == 0).all()) for name, p in net.named_parameters() if name.endswith("bias"))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"norm": "batch"}, "`norm`: got 'batch', expected 'none' or 'group'; batch norm would couple"),
    ({"seed": None}, "`seed`: got None, expected a whole number"),
    ({"dtype": torch.complex64}, r"`dtype`: got torch\.complex64, expected a floating type"),
    ({"symmetric": True, "width_factor": 3 / 64}, "`width_factor`: gives 3 channels .* symmetric=True"),
    (
        {"symmetric": True, "width_factor": 0.75, "norm": "group"},
        "`width_factor`: gives 48 channels in 3 groups",
    ),
    ({"channels": 0}, "`channels`: got 0"),
    ({"outputs": 0}, "`outputs`: got 0"),
    ({"width_factor": -1.0}, r"`width_factor`: got -1\.0"),
    ({"gain": 0.0}, "`gain`: got 0"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_a_bad_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        inspect.unwrap(models.resnet)(**arguments)
