"""Intervals cover the truth as often as they say; two routes to one interval meet."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from regimes.core.error import UserError
from regimes.report.estimate import jackknife, mean, quantile

TRIALS = 600


@pytest.mark.parametrize("size", [3, 10])
@pytest.mark.parametrize("log", [False, True])
def test_mean_covers_the_truth(size: int, log: bool) -> None:
    draws = np.random.default_rng(0).normal(1.0, 0.5, size=(TRIALS, size))
    found = [mean(np.exp(row) if log else row, log=log) for row in draws]
    truth = math.e if log else 1.0
    covered = np.mean([one.low <= truth <= one.high for one in found])
    assert abs(covered - 0.95) < 0.03


def test_mean_is_scipy_s_interval() -> None:
    values = np.array([0.3, 0.9, 1.1, 0.2])
    one = mean(values)
    assert (one.low, one.high) == pytest.approx(
        stats.t.interval(0.95, 3, loc=values.mean(), scale=stats.sem(values)), rel=1e-12
    )
    assert (one.n, one.value) == (4, pytest.approx(values.mean()))


def test_missing_values_are_left_out() -> None:
    assert mean([1.0, math.nan, 3.0, None]).value == 2.0


def test_one_value_has_no_interval() -> None:
    one = mean([2.0])
    assert one.value == 2.0
    assert math.isnan(one.low)
    assert math.isnan(one.high)


def test_jackknife_of_a_mean_is_student() -> None:
    values = [0.3, 0.9, 1.1, 0.2]
    a, b = jackknife([values], lambda some: float(np.mean(some))), mean(values)
    assert (a.low, a.high) == pytest.approx((b.low, b.high), rel=1e-12)


def test_jackknife_of_a_difference_is_welch() -> None:
    a, b = [0.3, 0.9, 1.1, 0.2, 0.5], [2.0, 2.5, 1.0]
    found = jackknife([a, b], lambda x, y: float(np.mean(x) - np.mean(y)))
    welch = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((welch.low, welch.high), rel=1e-9)


@pytest.mark.parametrize("log", [False, True])
def test_jackknife_covers_a_ratio(log: bool) -> None:
    draws = np.random.default_rng(1).normal([[2.0], [1.0]], 0.2, size=(TRIALS, 2, 12))
    found = [jackknife([a, b], lambda x, y: float(np.mean(x) / np.mean(y)), log=log) for a, b in draws]
    assert abs(np.mean([one.low <= 2.0 <= one.high for one in found]) - 0.95) < 0.03


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: mean([]), "no finite number"),
        (lambda: mean([1.0, -1.0], log=True), "positive"),
        (lambda: jackknife([[], [1.0]], lambda *_: 0.0), "at least one"),
        (lambda: quantile(3, 1.5), "`level`"),
    ],
)
def test_mistakes(call: object, word: str) -> None:
    with pytest.raises(UserError, match=word):
        call()  # type: ignore[operator]
