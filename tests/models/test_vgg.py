"""VGG-11: what it computes, its sizes and its start."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from regimes import control, measure, models
from regimes.core.error import UserError

POOLED = {0, 1, 3, 5, 7}  # the convolutions that a pool follows


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28), (2, (20, 33)), (1, 9)])
def test_is_its_formula(channels: int, size: int | tuple[int, int]) -> None:
    net = models.vgg(channels, 4, size=size, width_factor=1 / 32, seed=3)
    height, width = (size, size) if isinstance(size, int) else size
    x = torch.randn(2, channels, height, width, dtype=torch.float64)
    z, parameters = x, list(net.parameters())
    for k in range(8):
        z = functional.conv2d(z, parameters[2 * k], parameters[2 * k + 1], padding=1).relu()
        if k in POOLED:
            odd = (0, z.shape[3] % 2, 0, z.shape[2] % 2)
            z = functional.max_pool2d(functional.pad(z, odd, value=-math.inf), 2)
    torch.testing.assert_close(net(x), z.flatten(1) @ parameters[16].T + parameters[17])


def test_the_published_sizes() -> None:
    net = models.vgg()
    convolutions = [layer for layer in net if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [64, 128, 256, 256, 512, 512, 512, 512]
    assert {layer.kernel_size for layer in convolutions} == {(3, 3)}
    assert len([layer for layer in net if isinstance(layer, nn.MaxPool2d)]) == 5
    assert net[-1].in_features == 512, "32 x 32 pixels are pooled to one"
    assert models.vgg(1, 10, size=28)[-1].in_features == 512


@pytest.mark.parametrize(("factor", "first", "last"), [(1.5, 96, 768), (0.5, 32, 256), (1e-3, 1, 1)])
def test_the_width_factor(factor: float, first: int, last: int) -> None:
    net = models.vgg(width_factor=factor, dtype=torch.float32)
    assert net[0].out_channels == first and net[-1].in_features == last


def test_the_start() -> None:
    net = models.vgg(width_factor=0.5, gain=1.3)
    for layer in net:
        if isinstance(layer, nn.Conv2d):
            spread = 1.3 * math.sqrt(2 / (9 * (layer.in_channels + layer.out_channels)))
            tolerance = 5 / math.sqrt(2 * layer.weight.numel())
            assert layer.weight.std().item() == pytest.approx(spread, rel=tolerance)
    assert all(bool((p == 0).all()) for name, p in net.named_parameters() if name.endswith("bias"))


def test_the_seed_and_dtype_are_all_that_count() -> None:
    state = torch.get_rng_state()
    one, same, other = (models.vgg(width_factor=1 / 16, seed=seed) for seed in (0, 0, 1))
    first, again, another = (next(net.parameters()) for net in (one, same, other))
    assert torch.equal(first, again) and not torch.equal(first, another)
    assert torch.equal(torch.get_rng_state(), state)
    assert {p.dtype for p in models.vgg(dtype=torch.float32, width_factor=1 / 16).parameters()} == {
        torch.float32
    }


def test_scales_and_has_a_kernel() -> None:
    net = control.scale(models.vgg(1, 2, size=9, width_factor=1 / 32), alpha=100.0)
    x = torch.randn(3, 1, 9, 9, dtype=torch.float64)
    assert bool((net(x) == 0).all())
    kernel = measure.ntk(net, x, reduce="trace")
    assert float(torch.linalg.eigvalsh(kernel.detach()).min()) > 0


BAD: list[tuple[dict[str, Any], str]] = [
    ({"size": 8}, "`size`: got 8 x 8, expected at least 9 pixels a side.*models.cnn"),
    ({"size": (32, 5)}, "`size`: got 32 x 5"),
    ({"size": 0}, "`size`: got 0, expected a whole number of at least 1"),
    ({"size": "32"}, "`size`: got '32', expected a whole number of pixels, or"),
    ({"size": (32, 32, 3)}, r"`size`: got \(32, 32, 3\), expected"),
    ({"size": 32.0}, r"`size`: got 32\.0, expected"),
    ({"seed": 1.5}, r"`seed`: got 1\.5, expected a whole number"),
    ({"dtype": torch.int64}, r"`dtype`: got torch\.int64, expected a floating type"),
    ({"symmetric": True, "width_factor": 3 / 64}, "`width_factor`: gives 3 channels .* symmetric=True"),
    ({"channels": 0}, "`channels`: got 0"),
    ({"outputs": -1}, "`outputs`: got -1"),
    ({"width_factor": 0}, "`width_factor`: got 0, expected a positive finite number"),
    ({"gain": math.inf}, "`gain`: got inf"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_a_bad_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        inspect.unwrap(models.vgg)(**arguments)
