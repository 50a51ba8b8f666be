"""When probes look, at whom, and what they forget."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from regimes import measure
from regimes.core.error import UserError
from regimes.core.state import State, Status

NOTHING: Mapping[str, torch.Tensor] = {}


def stream(lengths: list[int], stride: int = 1) -> Iterator[State]:
    """Members with so many steps each, interleaved."""
    for step in range(0, max(lengths) + stride, stride):
        for member, length in enumerate(lengths):
            if step < length + stride:
                status: Status = "running" if step < length else "finished"
                yield State(nn.Identity(), NOTHING, NOTHING, step, 0.5 * step, 1.0, status, member)


@dataclass(frozen=True)
class Counter(measure.Probe):
    """How many states this probe has seen."""

    seen: list[int] = field(default_factory=list, init=False)

    def follow(self, state: State) -> None:
        self.seen.append(state.step)

    def look(self, state: State) -> Mapping[str, float]:
        return {"seen": float(len(self.seen)), "member": float(state.member)}


@given(st.integers(1, 7), st.integers(-1, 10**6))
def test_log_spaced_goes_to_the_next_moment(per_decade: int, step: int) -> None:
    moments = sorted({round(10 ** (k / per_decade)) for k in range(per_decade * 8)})
    assert measure.log_spaced(per_decade)(step) == next(m for m in moments if m > step)
    assert measure.log_spaced(per_decade, start=True)(-1) == 0


def test_looks_at_the_moments_and_at_the_last_state() -> None:
    rows = list(measure.observe(stream([14]), []))
    assert [row.step for row in rows] == [1, 2, 3, 6, 10, 14]
    assert [row.status for row in rows] == ["running"] * 5 + ["finished"]
    assert rows[3].time == 3.0 and rows[3].loss == 1.0
    rows = list(measure.observe(stream([2]), [], measure.log_spaced(start=True)))
    assert [row.step for row in rows] == [0, 1, 2]


def test_looks_late_where_a_moment_has_no_state() -> None:
    assert [row.step for row in measure.observe(stream([20], stride=4), [])] == [4, 8, 12, 20]


def test_a_run_that_ends_where_it_starts_has_one_row() -> None:
    assert [row.step for row in measure.observe(stream([0]), [])] == [0]


def test_members_do_not_see_each_other() -> None:
    lengths = [3, 11, 7]
    together = list(measure.observe(stream(lengths), [Counter()]))
    for member, length in enumerate(lengths):
        own = [row for row in together if row.member == member]
        alone = list(measure.observe(stream([length]), [Counter()]))
        assert [row.step for row in own] == [row.step for row in alone]
        assert [row.values["seen"] for row in own] == [row.values["seen"] for row in alone]
        assert [row.values["seen"] for row in own] == [row.step + 1 for row in own]
        assert all(row.values["member"] == member for row in own)


def test_a_probe_forgets_from_run_to_run() -> None:
    probe = Counter()
    first = list(measure.observe(stream([5]), [probe]))
    assert list(measure.observe(stream([5]), [probe])) == first
    assert probe.seen == []


def test_memory_ends_with_the_member() -> None:
    kept: list[weakref.ref[Counter]] = []

    @dataclass(frozen=True, eq=False)
    class Kept(measure.Probe):
        inner: Counter = field(default_factory=Counter, init=False)

        def follow(self, state: State) -> None:
            if state.step == 0:
                kept.append(weakref.ref(self.inner))

        def look(self, state: State) -> Mapping[str, float]:
            return {}

    for row in measure.observe(stream([1, 5]), [Kept()]):
        if row.member == 1 and row.step == 2:
            gc.collect()
            assert kept[0]() is None and kept[1]() is not None


def test_rows_come_as_soon_as_they_are_known() -> None:
    states = stream([100])
    row = next(measure.observe(states, []))
    assert row.step == 1 and next(states).step == 2


def test_names_the_mistake() -> None:
    x, y = torch.ones(1, 2), torch.ones(1)
    state = State.of(nn.Linear(2, 1), step=1)
    with pytest.raises(UserError, match="two of them give 'test_error'"):
        list(measure.observe([state], [measure.Error(x, y), measure.Error(x, y)]))
    with pytest.raises(UserError, match="per_decade"):
        measure.log_spaced(0)


def test_everything_together() -> None:
    module = nn.Linear(2, 1).double()
    origin = {name: p.detach().clone() for name, p in module.named_parameters()}
    x, y = torch.randn(8, 2, dtype=torch.float64), torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)
    names: list[Status] = ["running", "running", "running", "finished"]
    states = [
        State(
            module, {key: p * (1 + k) for key, p in origin.items()}, origin, k, float(k), 1 / (1 + k), status
        )
        for k, status in enumerate(names)
    ]
    probes = [
        measure.KernelDrift(x, y),
        measure.Movement(),
        measure.Gap(x),
        measure.Error(x, y),
        measure.Error(x, y, name="train"),
        measure.Times(),
        measure.Outputs(x),
    ]
    rows = list(measure.observe(states, probes))
    always = {"dK", "kernel_distance", "alignment", "alignment0", "dW", "gap", "t1", "t2"}
    always |= {"test_error", "train_error"}
    assert [set(row.values) for row in rows] == [always, always, always | {"test_outputs"}]
    last = rows[-1].values
    assert last["dW"] == pytest.approx(3)
    assert last["dK"] == pytest.approx(0, abs=1e-12)
    assert last["t2"] == 3
