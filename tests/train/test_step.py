"""The rule of the adapted step, against the rule in plain numbers."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from regimes.train.step import Tolerance, attempt, is_lost, turn


def plain(limit: Tolerance, dt: float, rejected: int, turned: float, moved: float) -> tuple[bool, float, int]:
    """Whether it is kept, the next size, the steps taken back in a row."""
    if not (turned < limit.gradient and moved < limit.output and math.isfinite(turned)):
        return False, dt / limit.shrink, rejected + 1
    if turned < limit.gradient / 2 and moved < limit.output / 2:
        dt *= limit.grow
    return True, dt, 0


@pytest.mark.parametrize(
    "limit", [Tolerance(), Tolerance(gradient=math.inf, grow=2.0), Tolerance(output=math.inf)]
)
def test_is_the_rule_in_plain_numbers(limit: Tolerance) -> None:
    """Many steps of several members, with numbers at the limits and beyond them, and some that are none."""
    draw = random.Random(0)
    values = [0.0, 1e-5, 5e-5, 1e-4, 2e-4, 0.04, 0.05, 0.1, 0.2, math.inf, math.nan]
    dts, rejected = [1.0] * 5, [0] * 5
    state = torch.ones(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for _ in range(60):
        turned, moved = ([draw.choice(values) for _ in range(5)] for _ in range(2))
        finite = [draw.random() < 0.9 for _ in range(5)]
        tried = attempt(
            limit,
            *state,
            turned=torch.tensor(turned, dtype=torch.float64),
            moved=torch.tensor(moved, dtype=torch.float64),
            finite=torch.tensor(finite),
        )
        wanted = [
            plain(limit, dt, r, t if ok else math.nan, m)
            for dt, r, t, m, ok in zip(dts, rejected, turned, moved, finite, strict=True)
        ]
        kept, dts, rejected = (list(each) for each in zip(*wanted, strict=True))
        assert (
            tried.kept.tolist() == kept and tried.dt.tolist() == dts and tried.rejected.tolist() == rejected
        )
        state = tried.dt, tried.rejected


def norm(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).norm(dim=1)


def test_the_turn_is_that_of_the_difference() -> None:
    a, b = torch.randn(2, 6, 9, dtype=torch.float64)
    found = turn(a.norm(dim=1), b.norm(dim=1), (a * b).sum(1))
    wanted = (a - b).square().sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    torch.testing.assert_close(found, wanted)
    zero, one = norm([0.0]), norm([1.0])
    assert turn(zero, one, zero) == turn(one, zero, zero) == turn(zero, zero, zero) == 0
    assert turn(one, one, one) == 0


def test_lost_is_thirty_rejections_or_no_number() -> None:
    rejected = torch.tensor([0.0, 29.0, 30.0, 0.0, 0.0])
    number = torch.tensor([1.0, 1.0, 1.0, math.nan, math.inf])
    assert is_lost(rejected, number).tolist() == [False, False, True, True, True]
