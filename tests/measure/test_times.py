"""The two times of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regimes import measure
from regimes.core.state import State, Status


def run(losses: list[float], times: list[float], status: Status = "finished") -> Iterator[State]:
    nothing: Mapping[str, torch.Tensor] = {}
    for step, (loss, time) in enumerate(zip(losses, times, strict=True)):
        last = step == len(losses) - 1
        yield State(torch.nn.Identity(), nothing, nothing, step, time, loss, status if last else "running")


def end_of(states: Iterator[State]) -> dict[str, float | list[float]]:
    return list(measure.observe(states, [measure.Times()]))[-1].values


def test_crossing_lies_on_the_line() -> None:
    assert end_of(run([1.0, 0.8, 0.2, 0.0], [0.0, 1.0, 3.0, 4.0])) == {"t1": pytest.approx(2.0), "t2": 4.0}


@given(st.lists(st.floats(0, 2), min_size=2, max_size=8))
def test_t1_lies_in_the_first_step_that_ends_below(losses: list[float]) -> None:
    losses = [1.0, *losses]
    t1 = end_of(run(losses, [float(i) for i in range(len(losses))]))["t1"]
    assert isinstance(t1, float)
    first = next((i for i, loss in enumerate(losses) if loss < 0.5), None)
    assert math.isnan(t1) if first is None else first - 1 <= t1 <= first


def test_only_the_first_crossing_counts() -> None:
    assert end_of(run([1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]))["t1"] == 0.5


def test_a_run_that_starts_below() -> None:
    assert end_of(run([0.1, 0.0], [0.0, 1.0]))["t1"] == 0.0


@pytest.mark.parametrize("status", ["stopped", "diverged"])
def test_a_run_that_is_not_finished_has_no_end(status: Status) -> None:
    values = end_of(run([1.0, math.nan], [0.0, 1.0], status))
    assert all(isinstance(value, float) and math.isnan(value) for value in values.values())


def test_other_levels() -> None:
    states = run([1.0, 0.0], [0.0, 1.0])
    assert list(measure.observe(states, [measure.Times(level=0.25)]))[-1].values["t1"] == 0.75
