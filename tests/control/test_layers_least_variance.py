"""The cut of least variance: its cost is met, and no other cut of that cost has less, by a general convex solver."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import optimize

from regimes import control
from regimes.core.error import UserError

DRAWS = 25


def variance(squares: np.ndarray, p: np.ndarray) -> float:
    """sum |g_l|^2 / p_l, where 0 / 0 is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.nansum(np.where(squares == 0, 0.0, squares / p)))


def reference(squares: np.ndarray, costs: np.ndarray, budget: float, top: int) -> float:
    """The least variance that SLSQP finds, from two starts, in the steps s_l = p_l - p_(l-1), the last one up to 1."""
    n = len(costs)
    below = np.tril(np.ones((n, n - top + 1)))  # from s to p
    below[n - top :] = 1.0
    unit = squares.sum() or 1.0

    def loss(s: np.ndarray) -> tuple[float, np.ndarray]:
        p = np.maximum(below @ s, 1e-9)
        return float((squares / p).sum() / unit), (-squares / p**2 / unit) @ below

    limits = [
        optimize.LinearConstraint(np.ones(n - top + 1), 1.0, 1.0),
        optimize.LinearConstraint(costs @ below / costs.sum(), -math.inf, budget / costs.sum()),
    ]
    share = (budget - costs[n - top :].sum()) / (costs[: n - top].sum() or 1.0)
    best = math.inf
    for first in (1e-3, min(share, 1.0)):
        start = np.full(n - top + 1, 1e-3)
        start[0] = first
        start[-1] = 1 - start[:-1].sum()
        found = optimize.minimize(
            loss,
            start,
            jac=True,
            bounds=[(0, 1)] * len(start),
            constraints=limits,
            method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-13},
        )
        if abs(found.x.sum() - 1) < 1e-9 and costs @ below @ found.x <= budget * (1 + 1e-9):
            best = min(best, found.fun * unit)
    return best


def problem(draw: int) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Sizes that coincide, ties, layers without gradient or cost, budgets from one end to the other."""
    random = np.random.default_rng(draw)
    n = int(random.integers(1, 7))
    squares = random.choice([0.5, 1.0, 2.0, 30.0], n) if draw % 3 else random.lognormal(0, 2, n)
    costs = random.choice([0.5, 1.0, 1.0, 3.0], n) if draw % 2 else random.lognormal(0, 1, n)
    if draw % 5 == 0:
        squares[random.integers(n)] = 0.0
    if draw % 4 == 0 and n > 1:
        costs[random.integers(n - 1)] = 0.0
    top = int(random.integers(1, n + 1))
    least, most = costs[n - top :].sum(), costs.sum()
    return squares, costs, float(least + random.choice([0.03, 0.3, 0.6, 0.9]) * (most - least)), top


@pytest.mark.parametrize("draw", range(DRAWS))
def test_no_cut_of_that_cost_has_less_variance(draw: int) -> None:
    squares, costs, budget, top = problem(draw)
    found = control.least_variance(squares.tolist(), costs.tolist(), budget, top=top)
    p = np.array(found.probabilities([str(place) for place in range(len(costs))]))
    assert math.isclose(float(costs @ p), budget, rel_tol=1e-9)
    assert all(below <= above for below, above in pairwise(p)) and (p[len(p) - top :] == 1).all()
    least = reference(squares, costs, budget, top)
    assert least < math.inf and variance(squares, p) <= least * (1 + 1e-6)


@pytest.mark.parametrize("draw", range(DRAWS))
def test_no_small_change_at_equal_cost_is_better(draw: int) -> None:
    """Which needs no solver: the variance is convex, so a change along any line that is allowed does not lower it."""
    squares, costs, budget, top = problem(draw)
    p = np.array(control.least_variance(squares.tolist(), costs.tolist(), budget, top=top).p)
    random = np.random.default_rng(draw)
    for _ in range(30):
        other = np.sort(random.random(len(p)))
        other[len(p) - top :] = 1.0
        while costs @ other > budget:  # nearer to the top alone, which costs no more than the budget
            other[: len(p) - top] *= 0.8
        mixed = 0.99 * p + 0.01 * other
        assert variance(squares, p) <= variance(squares, mixed) * (1 + 1e-9)


def test_without_order_and_bounds_it_is_the_root_of_the_ratio() -> None:
    squares, costs = np.array([1.0, 2.0, 5.0, 9.0]), np.array([3.0, 2.0, 1.0, 1.0])
    p = np.array(control.least_variance(squares.tolist(), costs.tolist(), 1.9).p)
    ratio = p[:-1] / np.sqrt(squares / costs)[:-1]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-12)


def test_neither_unit_nor_size_matters() -> None:
    squares, costs = [3.0, 1.0, 2.0, 4.0], [1.0, 2.0, 0.5, 1.0]
    plain = control.least_variance(squares, costs, 2.5).p
    large = control.least_variance(
        [1e200 * each for each in squares], [1e-90 * each for each in costs], 2.5e-90
    )
    np.testing.assert_allclose(np.array(large.p), np.array(plain), rtol=1e-12)


def test_both_ends() -> None:
    squares, costs = [1.0, 2.0, 3.0], [1.0, 2.0, 4.0]
    assert control.least_variance(squares, costs, 7.0).p == (1.0, 1.0, 1.0)
    assert control.least_variance(squares, costs, 4.0).p == (0.0, 0.0, 1.0)
    assert control.least_variance(squares, costs, 6.0, top=2).p == (0.0, 1.0, 1.0)
    assert control.least_variance([0.0, 2.0, 3.0], costs, 7.0).p == (1.0, 1.0, 1.0)
    assert control.least_variance([5.0], [2.0], 2.0).p == (1.0,)
    sums = [0.1] * 10  # ten times 0.1 is not 1.0
    assert control.least_variance(sums, sums, 1.0).p == (1.0,) * 10


def test_what_costs_nothing_moves_with_the_one_above() -> None:
    p = control.least_variance([1.0, 9.0, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0], 2.0).p
    assert isinstance(p, tuple) and p[1] == p[2] < 1
    p = control.least_variance([1.0, 0.0, 2.0, 1.0], [1.0, 0.0, 1.0, 1.0], 2.0).p
    assert isinstance(p, tuple) and p[1] == p[2]
    assert control.least_variance([1.0, 1.0, 1.0], [1.0, 0.0, 1.0], 1.5).p == (0.5, 1.0, 1.0)


def test_what_has_no_gradient_gets_what_is_left() -> None:
    """As at a start where the last layer is 0."""
    assert control.least_variance([0.0, 0.0, 1.0], [1.0, 1.0, 1.0], 2.0).p == (0.5, 0.5, 1.0)
    assert control.least_variance([0.0, 1.0, 1.0], [1.0, 1.0, 1.0], 1.5).p == (0.0, 0.5, 1.0)


def test_the_interval_is_handed_on() -> None:
    assert control.least_variance([1.0, 1.0], [1.0, 1.0], 1.5, interval=7) == control.Cut(
        p=(0.5, 1.0), interval=7
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"budget": 0.9}, "`budget`: got 0.9, expected from 1, what the top costs"),
        ({"budget": 3.1}, "to 3, what all layers cost"),
        ({"squared_norms": [1.0]}, "`squared_norms`: got 1 numbers, expected 2"),
        ({"squared_norms": [1.0, -1.0]}, "`squared_norms`: got -1, expected finite numbers of 0 or more"),
        ({"costs": [math.inf, 1.0]}, "`costs`: got inf"),
        ({"costs": []}, "`costs`: got none"),
        ({"top": 3}, "`top`: got 3, expected from 1 to 2"),
        ({"top": 0}, "`top`: got 0"),
        ({"interval": 0}, "`interval`: got 0"),
    ],
)
def test_what_cannot_be_met_is_refused(change: dict[str, object], words: str) -> None:
    good: dict[str, object] = {"squared_norms": [1.0, 1.0], "costs": [2.0, 1.0], "budget": 2.0}
    with pytest.raises(UserError) as caught:
        control.least_variance(**good | change)  # pyright: ignore[reportArgumentType]
    assert words in str(caught.value)
