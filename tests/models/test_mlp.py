"""Fully connected networks: what they compute and how they start."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from regimes import control, models
from regimes.core.error import UserError
from regimes.core.stream import generator
from tests.train.plain import mlp_outputs

X = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sigma", ["softplus", "relu", "tanh"])
@pytest.mark.parametrize("law", list(control.LAWS))
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_is_its_formula(depth: int, law: str, sigma: str, bias: bool) -> None:
    net = models.mlp(4, 12, depth, 3, law=control.law(law), activation=sigma, bias=bias, seed=2)
    assert len([w for w in net.parameters() if w.dim() == 2]) == depth + 1
    wanted = mlp_outputs(list(net.parameters()), law, sigma, bias, X)
    torch.testing.assert_close(net(X), wanted, rtol=1e-12, atol=1e-12)
    assert wanted.shape == (9, 3)


def test_weights_are_drawn_layer_by_layer_from_the_seed() -> None:
    source = generator(7, "mlp", 4, 12, 2, 1)
    for p in models.mlp(4, 12, 2, seed=7).parameters():
        assert torch.equal(p, torch.randn(p.shape, generator=source, dtype=torch.float64))


def test_the_start() -> None:
    net = models.mlp(100, 300, 2, bias=True)
    for name, p in net.named_parameters():
        if name.endswith("bias"):
            assert bool((p == 0).all())
        else:
            assert p.std().item() == pytest.approx(1.0, abs=5 / math.sqrt(p.numel()))


def test_the_seed_is_all_that_counts() -> None:
    state = torch.get_rng_state()
    one, same, other = models.mlp(4, 12, 2), models.mlp(4, 12, 2), models.mlp(4, 12, 2, seed=1)
    assert torch.equal(one(X), same(X)) and not torch.equal(one(X), other(X))
    assert torch.equal(torch.get_rng_state(), state)


def test_dtype() -> None:
    assert models.mlp(4, 12, 2)(X).dtype == torch.float64
    assert models.mlp(4, 12, 2, dtype=torch.float32)(X.float()).dtype == torch.float32


@pytest.mark.parametrize("name", ["inputs", "width", "depth", "outputs"])
@pytest.mark.parametrize("size", [0, -3, True, 2.5, "8"])
def test_a_bad_size_is_named(name: str, size: object) -> None:
    mlp = inspect.unwrap(models.mlp)  # the types are checked while the tests run, before the function is
    sizes = {"inputs": 4, "width": 12, "depth": 2, "outputs": 1, name: size}
    if isinstance(size, int):
        with pytest.raises(UserError, match=f"`{name}`: got {size!r}, expected a whole number of at least 1"):
            mlp(**sizes)
    else:
        with pytest.raises((UserError, TypeError), match=name):
            mlp(**sizes)


@pytest.mark.parametrize("build", [models.mlp, models.cnn])
@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("law", "ntk", r"a law of width .* control\.law\('ntk'\)"),
        ("activation", None, "one of softplus, relu, tanh"),
        ("seed", True, "a whole number"),
        ("seed", 2**70, "a whole number of at most 64 bits"),
        ("dtype", torch.int32, r"a floating type such as torch\.float64"),
    ],
)
def test_a_bad_setting_is_named(build: Callable[..., Any], name: str, value: Any, expected: str) -> None:
    with pytest.raises(UserError, match=f"`{name}`: got {re.escape(repr(value))}, expected {expected}"):
        inspect.unwrap(build)(4, 12, 2, **{name: value})


def test_an_unknown_activation_is_named() -> None:
    with pytest.raises(
        UserError, match=r"`activation`: got 'sofplus', expected one of .*; did you mean 'softplus'"
    ):
        models.mlp(4, 12, 2, activation="sofplus")
