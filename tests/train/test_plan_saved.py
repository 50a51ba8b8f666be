"""A run with plans goes on exactly, wherever it was broken off, and only with the plans it had."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from regimes import control, models, train
from regimes.core.error import UserError
from regimes.core.state import State
from tests.train.plain import task
from tests.train.test_plan import ENGINES, PLANS, every_third, members, turns


def same(a: State, b: State, x: torch.Tensor) -> bool:
    """Bit for bit, the function of it as well."""
    numbers = (a.step, a.time, a.status, a.loss) == (b.step, b.time, b.status, b.loss)
    trees = all(torch.equal(a.parameters[n], b.parameters[n]) for n in a.parameters)
    starts = torch.equal(a.initial()(x), b.initial()(x))
    return numbers and trees and starts and torch.equal(a(x), b(x))


def through_a_file(saved: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def broken_off(
    engine: str, plans: dict[str, Any], states: int, **given: Any
) -> tuple[list[State], dict[str, Any]]:
    """The states before the break, and what was saved there."""
    x, y = task(10, 5)
    run = ENGINES[engine](members(seeds=[0, 2]), x, y, **plans, **given)
    head = list(itertools.islice(run, states))
    return head, through_a_file(run.state_dict())


def check_breaks(engine: str, plans: dict[str, Any], breaks: Sequence[int] | None) -> None:
    """k states, save, load in fresh objects, the rest: the states of the run without the break; at every k if None."""
    x, y = task(10, 5)

    def fresh() -> Any:
        return ENGINES[engine](members(seeds=[0, 2]), x, y, **plans)

    whole = list(fresh())
    assert len(whole) > 10
    for k in range(len(whole) + 1) if breaks is None else breaks:
        head, saved = broken_off(engine, plans, k)
        run = fresh()
        run.load_state_dict(saved)
        tail = list(run)
        assert [(s.member, s.step) for s in [*head, *tail]] == [(s.member, s.step) for s in whole]
        assert all(same(a, b, x) for a, b in zip(tail, whole[k:], strict=True))


@pytest.mark.parametrize("engine", ENGINES)
def test_goes_on_exactly(engine: str) -> None:
    """With momentum and batches; between two members, before and after the anchor has moved."""
    check_breaks(engine, PLANS["both"], (7, 12))


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("engine", ENGINES)
def test_goes_on_exactly_at_every_state(engine: str, plan: str) -> None:
    check_breaks(engine, PLANS[plan], None)


LATER: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        r"`layers`: moves network.0.bias, network.0.weight, network.4.* at step 1, which is not",
        PLANS["layers"],
        {"layers": lambda _: ["network.0", "network.4"]},
    ),
    (
        r"`layers`: moves .* at step 1, which is not what the saved run moved there",
        PLANS["layers"],
        {"layers": lambda step: turns(step) if step != 1 else ["network"]},
    ),
    (r"`layers`: moves .* at step 0", {}, PLANS["layers"]),
    (r"`anchor`: got a plan, expected none", {}, PLANS["third"]),
    (r"`anchor`: got none, expected a plan", PLANS["third"], {}),
    (r"`anchor`: got True for step 1, expected False", PLANS["third"], {"anchor": lambda step: True}),
    (
        r"`anchor`: got False for step 3, expected True",
        PLANS["third"],
        {"anchor": lambda step: step % 6 == 0},
    ),
]


@pytest.mark.parametrize(("match", "then", "now"), LATER)
@pytest.mark.parametrize(
    "engine", ["descent", *(pytest.param(e, marks=pytest.mark.slow) for e in ("flow", "runge-kutta"))]
)
def test_plans_that_differ_in_the_past_are_refused(
    engine: str, match: str, then: dict[str, Any], now: dict[str, Any]
) -> None:
    """Nothing of the engine has changed after the refusal: it runs as if nothing had been loaded."""
    x, y = task(10, 5)
    saved = broken_off(engine, then, 9)[1]
    run = ENGINES[engine](members(seeds=[0, 2]), x, y, **now)
    with pytest.raises(UserError, match=match):
        run.load_state_dict(saved)
    fresh = ENGINES[engine](members(seeds=[0, 2]), x, y, **now)
    assert all(same(a, b, x) for a, b in zip(run, fresh, strict=True))


@pytest.mark.parametrize("engine", ENGINES)
def test_plans_may_differ_in_the_steps_to_come(engine: str) -> None:
    """Where a plan begins to say something, the states of the run with both parts go on."""
    x, y = task(10, 5)
    head, saved = broken_off(engine, {"layers": turns}, 7)
    last = max(s.step for s in head) + 1

    def later(step: int) -> Sequence[str]:
        return list(turns(step)) if step <= last else ["network.2"]

    runs = [ENGINES[engine](members(seeds=[0, 2]), x, y, layers=later) for _ in range(2)]
    runs[0].load_state_dict(saved)
    whole = list(runs[1])
    assert all(same(a, b, x) for a, b in zip(runs[0], whole[7:], strict=True))


@pytest.mark.parametrize(
    "engine", ["descent", *(pytest.param(e, marks=pytest.mark.slow) for e in ("flow", "runge-kutta"))]
)
def test_before_the_first_step_every_plan_is_to_come(engine: str) -> None:
    x, y = task(10, 5)
    saved = broken_off(engine, PLANS["both"], 0)[1]
    run, fresh = (
        ENGINES[engine](members(seeds=[0, 2]), x, y, layers=lambda _: ["network.2"], anchor=every_third)
        for _ in range(2)
    )
    run.load_state_dict(saved)
    assert all(same(a, b, x) for a, b in zip(run, fresh, strict=True))


@pytest.mark.parametrize("engine", ["flow", "descent"])
def test_a_state_of_a_version_without_plans_is_one_where_all_moved(engine: str) -> None:
    x, y = task(10, 5)
    saved = broken_off(engine, {}, 8)[1]
    del saved["plans"], saved["anchors"]
    whole = list(ENGINES[engine](members(seeds=[0, 2]), x, y))
    for plans in ({}, {"layers": lambda _: ["network"]}):
        run = ENGINES[engine](members(seeds=[0, 2]), x, y, **plans)
        run.load_state_dict(saved)
        assert all(same(a, b, x) for a, b in zip(run, whole[8:], strict=True))
    with pytest.raises(UserError, match=r"`layers`: moves .* at step 0"):
        ENGINES[engine](members(seeds=[0, 2]), x, y, layers=turns).load_state_dict(saved)
    with pytest.raises(UserError, match="`anchor`: got a plan, expected none"):
        ENGINES[engine](members(seeds=[0, 2]), x, y, anchor=every_third).load_state_dict(saved)


def test_a_run_of_other_members_is_refused_before_its_plans() -> None:
    x, y = task(10, 5)
    saved = broken_off("descent", PLANS["both"], 6)[1]
    others: list[nn.Module] = [
        control.scale(models.mlp(5, 6, 2, bias=True, seed=s), a) for s, a in ((7, 0.3), (8, 20.0))
    ]
    with pytest.raises(UserError, match="`modules`: member 0 differs from the saved one"):
        ENGINES["descent"](others, x, y, **PLANS["both"]).load_state_dict(saved)
    longer = train.descent(
        members(seeds=[0, 2]), x, y, lr=0.1, momentum=0.9, batch_size=5, steps=9, **PLANS["both"]
    )
    longer.load_state_dict(saved)
    assert [s.step for s in longer if s.member == 0] == [3, 4, 5, 6, 7, 8, 9]
