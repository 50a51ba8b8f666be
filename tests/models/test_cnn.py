"""The convolutional network of the paper: what it computes and how it starts."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from regimes import control, models
from regimes.core.error import UserError
from tests.train.plain import cnn_outputs


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sigma", ["softplus", "relu", "tanh"])
@pytest.mark.parametrize("law", list(control.LAWS))
def test_is_its_formula(law: str, sigma: str, bias: bool) -> None:
    x = torch.randn(3, 2, 28, 28, dtype=torch.float64)
    net = models.cnn(2, 6, 3, law=control.law(law), activation=sigma, bias=bias, seed=2)
    wanted = cnn_outputs(list(net.parameters()), law, sigma, bias, x)
    torch.testing.assert_close(net(x), wanted, rtol=1e-12, atol=1e-12)
    assert wanted.shape == (3, 3)


def test_the_published_sizes() -> None:
    """Four 5 x 5 convolutions, of stride 2, 1, 2, 1, and a read-out."""
    shapes = [tuple(p.shape) for p in models.cnn(1, 8).parameters()]
    assert shapes == [(8, 1, 5, 5), *[(8, 8, 5, 5)] * 3, (1, 8)]
    maps = torch.zeros(1, 1, 28, 28, dtype=torch.float64)
    sizes = []
    for layer in models.cnn(1, 8):
        maps = layer(maps)
        sizes.append(tuple(maps.shape[2:]))
    assert sizes[:8:2] == [(13, 13), (11, 11), (5, 5), (3, 3)]
    assert models.cnn(1, 8)(torch.zeros(2, 1, 19, 19, dtype=torch.float64)).shape == (2, 1)
    assert models.cnn(1, 8, kernel=3)(torch.zeros(2, 1, 14, 14, dtype=torch.float64)).shape == (2, 1)


@pytest.mark.parametrize("law", list(control.LAWS))
def test_preactivations_have_variance_one_at_every_width(law: str) -> None:
    """Away from the padding, which is silence."""
    x = torch.randn(4, 1, 28, 28, dtype=torch.float64)
    for width in (8, 32, 128):
        nets = [models.cnn(1, width, law=control.law(law), seed=seed) for seed in range(512 // width)]
        for depth in (1, 3):
            with torch.no_grad():
                z = torch.stack([net[:depth](x)[..., 3:-3, 3:-3] for net in nets])
            assert float(z.square().mean()) == pytest.approx(1.0, abs=0.25), (width, depth)


def test_the_seed_is_all_that_counts() -> None:
    x = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    assert torch.equal(models.cnn(1, 4)(x), models.cnn(1, 4)(x))
    assert not torch.equal(models.cnn(1, 4)(x), models.cnn(1, 4, seed=1)(x))


@pytest.mark.parametrize("name", ["channels", "width", "outputs", "kernel"])
def test_a_bad_size_is_named(name: str) -> None:
    with pytest.raises(UserError, match=f"`{name}`: got 0, expected a whole number of at least 1"):
        sizes: dict[str, Any] = {"channels": 1, "width": 4, name: 0}
        models.cnn(**sizes)


@pytest.mark.parametrize("padding", [-1, True, 1.5])
def test_a_bad_padding_is_named(padding: Any) -> None:
    with pytest.raises(UserError, match=f"`padding`: got {padding}, expected a whole number of 0 or more"):
        inspect.unwrap(models.cnn)(1, 4, padding=padding)


def test_an_unknown_activation_is_named() -> None:
    with pytest.raises(UserError, match=r"`activation`: got 'Relu', expected one of .*; did you mean 'relu'"):
        models.cnn(1, 4, activation="Relu")
