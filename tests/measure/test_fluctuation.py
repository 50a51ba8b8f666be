"""Spread over members and the gain of averaging."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from regimes import measure
from regimes.core.error import UserError
from tests import reference


def members(m: int, n: int, c: int, seed: int = 0) -> Tensor:
    return torch.randn(m, n, c, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(st.integers(2, 6), st.integers(1, 5), st.integers(1, 3), st.integers(0, 99), st.floats(-10, 10))
def test_variance(m: int, n: int, c: int, seed: int, shift: float) -> None:
    outputs = members(m, n, c, seed)
    found = measure.fluctuation(outputs)
    assert found.members == m
    assert found.variance == pytest.approx(reference.variance(outputs))
    assert measure.fluctuation(outputs + shift).variance == pytest.approx(found.variance)
    assert measure.fluctuation(3 * outputs).variance == pytest.approx(9 * found.variance)
    assert measure.fluctuation(outputs.flip(0)).variance == pytest.approx(found.variance)


@given(st.integers(3, 6), st.integers(0, 99))
def test_standard_error_is_the_jackknife(m: int, seed: int) -> None:
    outputs = members(m, 4, 2, seed)
    left = torch.tensor([reference.variance(outputs[[j for j in range(m) if j != i]]) for i in range(m)])
    expected = math.sqrt((m - 1) / m * float(((left - left.mean()) ** 2).sum()))
    assert measure.fluctuation(outputs).stderr == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_standard_error_covers() -> None:
    found = [measure.fluctuation(members(8, 1, 1, seed)) for seed in range(300)]
    covered = sum(abs(each.variance - 1) < 2 * each.stderr for each in found) / len(found)
    assert 0.75 < covered < 1


def test_two_members_have_no_standard_error() -> None:
    assert math.isnan(measure.fluctuation(members(2, 3, 1)).stderr)


def test_averaging_helps_members_that_err_apart() -> None:
    truth = torch.tensor([1.0, -1.0, 1.0])
    outputs = truth.repeat(3, 1)
    outputs = outputs - 1.5 * truth * torch.eye(3)
    found = measure.averaging(outputs, truth)
    assert (found.single, found.ensemble, found.members) == (pytest.approx(1 / 3), 0.0, 3)
    assert found.gain == pytest.approx(1 / 3)
    assert found.single_stderr == 0


@given(st.integers(2, 5), st.integers(0, 99))
def test_averaging_of_classes(m: int, seed: int) -> None:
    outputs, y = members(m, 20, 3, seed), torch.arange(20) % 3
    found = measure.averaging(outputs, y)
    wrong = [float((each.argmax(1) != y).double().mean()) for each in outputs]
    assert found.single == pytest.approx(sum(wrong) / m)
    assert found.ensemble == pytest.approx(float((outputs.mean(0).argmax(1) != y).double().mean()))
    assert found.gain == pytest.approx(found.single - found.ensemble)
    left = [measure.error_rate((outputs.sum(0) - each) / (m - 1), y) for each in outputs]
    spread = sum((e - sum(left) / m) ** 2 for e in left)
    assert found.ensemble_stderr == pytest.approx(math.sqrt((m - 1) / m * spread))


def test_names_the_mistake() -> None:
    with pytest.raises(UserError, match="got 1 member"):
        measure.fluctuation(torch.ones(1, 3))
    with pytest.raises(UserError, match="`outputs`"):
        measure.fluctuation(torch.ones(3, 0))
    with pytest.raises(UserError, match=r"`outputs`: \[1, 0, 0\] is nan, .* leave out members that diverged"):
        measure.fluctuation(torch.tensor([[1.0], [math.nan]]))
