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
    outputs, y = torch.tensor([[2.0], [-1.0]]), torch.tensor([1.0, -1.0])
    assert error_rate(outputs, y) == 0
    wrong = (
        (outputs, y[:, None], r"`targets`: got torch.float32 \(2, 1\) for .* expected \(2,\) floats -1 and"),
        (outputs, y[:1], r"`targets`: got torch.float32 \(1,\) .* expected \(2,\) floats"),
        (outputs, torch.tensor([1.0, 0.0]), "`targets`: got values from 0 to 1, expected -1 and .1"),
        (outputs, y.long(), "`targets`: got torch.int64 .* expected .* floats -1 and"),
        (outputs, [1.0, -1.0], "`targets`: got list"),
        (torch.ones(2, 2), y, r"use \.long"),
        (torch.ones(2, 2), torch.tensor([True, False]), "`targets`: got torch.bool"),
        (torch.ones(2, 2), torch.tensor([0, 2]), "from 0 to 2, expected .* class indices from 0 to 1"),
        (torch.ones(2, 2, 2), torch.tensor([0, 1]), r"`outputs`: got \(2, 2, 2\)"),
        (torch.ones(0, 2), torch.zeros(0).long(), "at least one"),
    )
    for given, targets, message in wrong:
        with pytest.raises(UserError, match=message):
            error_rate(given, targets)


def test_probes_read_the_state() -> None:
    x, y = torch.randn(6, 3), torch.tensor([1.0, -1.0] * 3)
    state = State.of(nn.Linear(3, 1))
    expected = measure.error_rate(state(x), y)
    assert measure.Error(x, y).look(state) == {"test_error": expected}
    assert measure.Error(x, y, name="train").look(state) == {"train_error": expected}
    assert measure.Outputs(x).look(state) == {}
    stored = measure.Outputs(x).look(replace(state, status="finished"))["test_outputs"]
    assert torch.equal(torch.tensor(stored).view(6, 1), state(x).detach())
