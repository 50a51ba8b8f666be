"""The plan of a race, its splits, and the rate of an optimiser."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import nn

from regimes.compare.layers.race import at_rate, frozen_but, planned, splits_of
from regimes.core.error import UserError


@given(
    some.integers(1, 60), some.integers(1, 30), some.integers(1, 9), some.floats(0.1, 99), some.integers(0, 5)
)
def test_a_plan_keeps_within_its_budget(
    entries: int, epochs: int, each: int, budget: float, spent: int
) -> None:
    run = 3 * epochs
    try:
        plan = planned(entries, epochs, each, budget, run, spent)
    except UserError as error:
        assert "expected at least" in str(error)
        # Two to the end, and all up to the first rung: that is what it takes at least.
        assert (
            spent + each * entries * -(-epochs // 4) > budget * run
            or entries > 1
            or spent + each * epochs > budget * run
        )
        return
    assert plan.epochs == tuple(sorted(set(plan.epochs))) and plan.epochs[-1] == epochs
    assert plan.counts[0] == entries and plan.counts[-1] >= min(2, entries)
    assert list(plan.counts) == sorted(plan.counts, reverse=True)
    steps, before = spent, 0
    for count, end in zip(plan.counts, plan.epochs, strict=True):
        steps, before = steps + each * count * (end - before), end
    assert steps == plan.steps <= budget * run


def test_with_enough_budget_nothing_is_left_behind() -> None:
    assert set(planned(7, 8, each=10, budget=7, run=80).counts) == {7}


@pytest.mark.parametrize(("samples", "folds", "repeats"), [(10, 3, 2), (4, 4, 1), (7, 2, 3)])
def test_every_sample_is_held_out_once_a_repeat(samples: int, folds: int, repeats: int) -> None:
    splits = splits_of(samples, folds, repeats, seed=5)
    assert len(splits) == folds * repeats == len({split.seed for split in splits})
    for repeat in range(repeats):
        some_of = splits[repeat * folds : (repeat + 1) * folds]
        assert torch.cat([split.held for split in some_of]).sort().values.tolist() == list(range(samples))
    for split in splits:
        assert sorted([*split.train.tolist(), *split.held.tolist()]) == list(range(samples))
    assert max(len(split.held) for split in splits) - min(len(split.held) for split in splits) <= 1


def test_a_rate_is_that_of_the_first_group() -> None:
    one, two = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    groups = [{"params": [one], "lr": 0.2}, {"params": [two], "lr": 0.1}]
    found = at_rate(lambda _: torch.optim.SGD(groups), 3.0)([one, two])
    assert [group["lr"] for group in found.param_groups] == pytest.approx([3.0, 1.5])


def test_what_is_frozen_is_shared_and_left_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    module[1].weight = nn.Parameter(torch.ones(1, 3))
    part = frozen_but(module, frozenset({"1.weight"}))
    assert [name for name, p in part.named_parameters() if p.requires_grad] == ["1.weight"]
    pairs = zip(module.parameters(), part.parameters(), strict=True)
    assert all(p.data_ptr() == q.data_ptr() for p, q in pairs)
    assert all(p.requires_grad for p in module.parameters())
