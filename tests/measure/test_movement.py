"""The distance from the start."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regimes import measure, models
from regimes.core.error import UserError
from regimes.core.state import State
from regimes.core.tree import Flat, Layout


@given(st.floats(-3, 3), st.integers(0, 9))
def test_of_a_stretched_network(factor: float, seed: int) -> None:
    origin = State.of(models.mlp(3, 4, 2, bias=True, seed=seed)).origin
    now = {name: p * (1 + factor) for name, p in origin.items()}
    assert measure.movement(now, origin) == pytest.approx(abs(factor))
    layers = measure.movement(now, origin, by_layer=True)
    assert layers == pytest.approx({"0": abs(factor), "2": abs(factor), "4": abs(factor)})


def test_is_the_ratio_of_norms() -> None:
    origin = State.of(models.mlp(3, 4, 2)).origin
    layout = Layout(tuple(origin), tuple(tuple(p.shape) for p in origin.values()))
    start, now = layout.join(origin), torch.randn(layout.total, dtype=torch.float64)
    expected = float((now - start).norm() / start.norm())
    assert measure.movement(Flat(layout, now), origin) == pytest.approx(expected)


def test_from_zero() -> None:
    zero, one = {"a.bias": torch.zeros(2)}, {"a.bias": torch.ones(2)}
    assert measure.movement(zero, zero) == 0
    assert measure.movement(one, zero, by_layer=True) == {"a": math.inf}


def test_of_a_diverged_network_is_nan() -> None:
    one = {"a": torch.ones(2)}
    assert math.isnan(measure.movement({"a": torch.full((2,), math.nan)}, one))


def test_names_the_mistake() -> None:
    with pytest.raises(UserError, match="'b' is in one of"):
        measure.movement({"a": torch.ones(1)}, {"a": torch.ones(1), "b": torch.ones(1)})


def test_probe_reads_the_state() -> None:
    state = State.of(models.mlp(3, 4, 1))
    assert measure.Movement().look(state) == {"dW": 0.0}
