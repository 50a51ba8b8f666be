"""Error rates and stored outputs."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from regimes import measure
from regimes.core.error import UserError
from regimes.core.state import State


def test_binary_tasks_go_by_the_sign() -> None:
    outputs, y = torch.tensor([[1.0], [-2.0], [3.0], [-4.0]]), torch.tensor([1.0, 1.0, 1.0, -1.0])
    assert measure.error_rate(outputs, y) == 0.25
    assert measure.error_rate(outputs[:, 0], y) == 0.25
    assert measure.error_rate(-outputs, y) == 0.75


def test_classes_go_by_the_largest_output() -> None:
    outputs = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.4]])
    assert measure.error_rate(outputs, torch.tensor([1, 0, 0])) == pytest.approx(1 / 3)


def test_what_decides_nothing_is_wrong() -> None:
    y = torch.tensor([1.0, -1.0])
    assert measure.error_rate(torch.zeros(2, 1), y) == 1
    assert measure.error_rate(torch.full((2, 1), math.nan), y) == 1
    assert measure.error_rate(torch.full((2, 3), math.nan), torch.tensor([0, 1])) == 1


def test_names_the_mistake() -> None:
    error_rate = inspect.unwrap(measure.error_rate)
    with pytest.raises(UserError, match="got 2, expected one for each of 3"):
        error_rate(torch.ones(3), torch.ones(2))
    with pytest.raises(UserError, match=r"use \.long"):
        error_rate(torch.ones(3, 2), torch.ones(3))
    with pytest.raises(UserError, match="floats -1 and"):
        error_rate(torch.ones(3, 1), torch.ones(3).long())


def test_probes_read_the_state() -> None:
    x, y = torch.randn(6, 3), torch.tensor([1.0, -1.0] * 3)
    state = State.of(nn.Linear(3, 1))
    expected = measure.error_rate(state(x), y)
    assert measure.Error(x, y).look(state) == {"test_error": expected}
    assert measure.Error(x, y, name="train").look(state) == {"train_error": expected}
    assert measure.Outputs(x).look(state) == {}
    stored = measure.Outputs(x).look(replace(state, status="finished"))["test_outputs"]
    assert torch.equal(torch.tensor(stored).view(6, 1), state(x).detach())
