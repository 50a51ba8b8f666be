"""Intervals cover the truth as often as they say; two routes to one interval meet."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from regimes import compare, study
from regimes.core.error import UserError
from regimes.core.estimate import (
    Estimate,
    Numbers,
    array,
    delete_one,
    jackknife,
    jackknife_variance,
    mean,
    paired_share,
    quantile,
    share,
    two_way,
)

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


@pytest.mark.parametrize(("b", "c", "n"), [(0, 0, 30), (3, 0, 12), (7, 2, 40), (12, 12, 24), (5, 0, 5)])
def test_a_paired_difference_changes_sign_with_the_pair(b: int, c: int, n: int) -> None:
    one, other = paired_share(b, c, n), paired_share(c, b, n)
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low), abs=1e-12)
    assert -1 <= one.low <= (b - c) / n <= one.high <= 1 and one.low < one.high


@pytest.mark.parametrize("n", [1, 20, 500])
def test_no_difference_seen_is_not_no_difference(n: int) -> None:
    z = float(stats.norm.ppf(0.975))
    found = paired_share(0, 0, n)
    assert (found.low, found.high) == pytest.approx((-(z**2) / (n + z**2), z**2 / (n + z**2)))


def test_paired_differences_of_many_samples_are_those_of_the_normal_law() -> None:
    n, b, c = 10**6, 30_000, 20_000
    apart = np.repeat([1.0, -1.0, 0.0], [b, c, n - b - c])
    found, normal = paired_share(b, c, n), mean(apart)
    assert (found.low, found.high) == pytest.approx((normal.low, normal.high), rel=1e-3)


@pytest.mark.parametrize(("n", "p", "q"), [(40, 0.1, 0.02), (200, 0.03, 0.03), (30, 0.3, 0.1)])
def test_paired_differences_cover_the_truth(n: int, p: float, q: float) -> None:
    draws = np.random.default_rng(0).multinomial(n, [p, q, 1 - p - q], size=TRIALS)
    found = [paired_share(int(b), int(c), n) for b, c, _ in draws]
    assert abs(np.mean([one.low <= p - q <= one.high for one in found]) - 0.95) < 0.03


@pytest.mark.parametrize(("count", "n"), [(0, 7), (3, 40), (40, 40)])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_shares_are_scipy_s(count: int, n: int, level: float) -> None:
    found = share(count, n, level=level)
    theirs = stats.binomtest(count, n).proportion_ci(level, "wilson")
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_parts_that_are_more_than_the_whole_are_named() -> None:
    with pytest.raises(UserError, match="`first`, `second`: got 3 and 2 of 4"):
        paired_share(3, 2, 4)
    with pytest.raises(UserError, match="`count`: got 5 of 4"):
        share(5, 4)


@pytest.mark.parametrize("seeds", [3, 6])
@pytest.mark.parametrize("by_seed", [0.0, 1.0, 5.0])
def test_two_way_covers_new_seeds_and_new_samples(seeds: int, by_seed: float) -> None:
    """Parts by seeds, by samples and by both; that by seeds is 0, as large as that by samples, or five times that."""
    rng, n, hits = np.random.default_rng(0), 100, []
    for _ in range(400):
        parts = (
            rng.normal(size=(seeds, 1)) * by_seed / math.sqrt(n),
            rng.normal(size=n),
            rng.normal(size=(seeds, n)),
        )
        found = two_way(sum(parts, np.zeros(())))
        hits.append(found.low <= 0 <= found.high)
    assert 0.92 < np.mean(hits) <= 1


def test_two_way_covers_differences_of_right_and_wrong() -> None:
    """Few samples tell the two apart, half of them in every seed; where none does the width is that of Tango."""
    rng, n, hits = np.random.default_rng(0), 200, []
    for _ in range(400):
        common, own, use = rng.uniform(size=n), rng.uniform(size=(4, n)), rng.uniform(size=n) < 0.5
        u, shift = np.where(use, common, own), 0.005 * rng.normal(size=(4, 1))
        found = two_way((u < 0.02 + shift) * 1.0 - (u > 0.98 + shift), (-1.0, 1.0))
        hits.append(found.low <= 0 <= found.high)
    assert np.mean(hits) > 0.94
    found, tango = two_way(np.zeros((4, n)), (-1.0, 1.0)), paired_share(0, 0, n)
    assert (found.low, found.high) == pytest.approx((tango.low, tango.high), rel=1e-2)


def test_two_way_is_blind_to_order_and_asks_for_two_of_each() -> None:
    values = np.random.default_rng(0).normal(size=(3, 20))
    one, other = two_way(values), two_way(values[::-1, ::-1])
    assert (one.low, one.high) == pytest.approx((other.low, other.high), rel=1e-12)
    for shape in ((1, 20), (3, 1)):
        with pytest.raises(UserError, match="`values`: got shape"):
            two_way(np.zeros(shape))


def without(values: np.ndarray) -> np.ndarray:
    return np.array([np.delete(values, i).mean() for i in range(len(values))])


@pytest.mark.parametrize("log", [False, True])
def test_is_the_jackknife_of_the_sample(log: bool) -> None:
    values = np.random.default_rng(0).lognormal(size=9)
    scale = "log" if log else "plain"
    found = delete_one(float(values.mean()), without(values), scale=scale, level=0.9)
    plain = jackknife([values.tolist()], np.mean, log=log, level=0.9)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), rel=1e-12)
    assert jackknife_variance(without(values)) == pytest.approx(values.var(ddof=1) / 9)


def test_fisher_s_scale_stays_within_one() -> None:
    found = delete_one(0.99, np.array([0.9, 0.999, 0.97]), scale="fisher")
    assert -1 < found.low < 0.99 < found.high < 1
    assert delete_one(1.0, np.array([1.0, 1.0]), scale="fisher") == Estimate(1.0, 1.0, 1.0, 2)


def test_has_no_interval_where_there_is_none() -> None:
    for value, left in ((1.0, [1.0]), (math.nan, [1.0, 2.0]), (1.0, [1.0, math.inf])):
        found = delete_one(value, np.array(left))
        assert math.isnan(found.low) and math.isnan(found.high)
    assert delete_one(0.0, np.zeros(3), scale="log") == Estimate(0.0, 0.0, 0.0, 3)


def test_needs_neither_torch_nor_pandas() -> None:
    check = "import sys, regimes.core.estimate; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.mark.parametrize(
    "values",
    [
        [1, "2.5", None],
        (1.0, 2.5, math.nan),
        np.array([1.0, 2.5, math.nan]),
        pd.Series([1.0, 2.5, None]),
        pd.Series([1.0, 2.5, None], dtype="Float64"),
        pd.Series(["1", "2.5", None], dtype="string"),
        pd.Series([1.0, 2.5, pd.NaT], dtype=object),
        pd.DataFrame({"x": [1.0, 2.5, math.nan]}),
    ],
    ids=lambda values: f"{type(values).__name__} {getattr(values, 'dtype', '')}",
)
def test_numbers_come_as_lists_arrays_and_columns(values: Numbers) -> None:
    assert array(values) == pytest.approx(np.array([1.0, 2.5, math.nan]), nan_ok=True)
    assert mean(values).n == 2


@pytest.mark.parametrize(
    "values", [["a"], [1j], [[1], [2, 3]], pd.Series(pd.to_datetime(["2020-01-01"])), [10**400], [object()]]
)
def test_what_is_no_number_is_refused(values: Numbers) -> None:
    with pytest.raises(UserError, match="`drift`: hold something other than numbers"):
        array(values, "drift")


def test_study_files_of_before_find_the_names_that_have_moved() -> None:
    assert study.estimate.mean is mean and study.would_linear_do is compare.would_linear_do
