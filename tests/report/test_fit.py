"""Fits recover the law that made the data, and their intervals cover it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from regimes.core.error import UserError
from regimes.papers.feature_lazy.tables.plane import tidy, transition
from regimes.report.fit import crossing, local_exponents, power_law
from tests.papers.feature_lazy import synthetic

X = np.geomspace(0.1, 100, 7)


def test_exact_law_is_found_exactly() -> None:
    law = power_law(X, 3 * X**-1.5)
    assert law.exponent == pytest.approx(-1.5, abs=1e-12)
    assert law.prefactor == pytest.approx(3.0)
    assert law.error == pytest.approx(0, abs=1e-12)
    assert law.r2 == pytest.approx(1.0)
    np.testing.assert_allclose(law(X), 3 * X**-1.5)


def test_plain_errors_are_scipy_s() -> None:
    y = X**-1.0 * np.exp(0.1 * np.random.default_rng(0).normal(size=X.size))
    law = power_law(X, y)
    other: Any = stats.linregress(np.log(X), np.log(y))
    assert (law.exponent, law.error) == pytest.approx((other.slope, other.stderr), rel=1e-10)
    assert law.high - law.low == pytest.approx(2 * stats.t.ppf(0.975, X.size - 2) * other.stderr)


def test_clustered_errors_are_those_of_the_seeds_own_slopes() -> None:
    generator = np.random.default_rng(0)
    y = np.exp(-np.log(X) + generator.normal(size=(5, 1)) + 0.1 * generator.normal(size=(5, X.size)))
    slopes = [power_law(X, row).exponent for row in y]
    law = power_law(np.tile(X, 5), y.ravel(), groups=np.repeat(np.arange(5), X.size))
    assert law.exponent == pytest.approx(np.mean(slopes))
    assert law.error == pytest.approx(stats.sem(slopes))
    assert (law.low, law.high) == pytest.approx(stats.t.interval(0.95, 4, np.mean(slopes), stats.sem(slopes)))


@pytest.mark.parametrize("seeds", [3, 8])
@pytest.mark.parametrize("balanced", [True, False])
def test_clustered_interval_covers_the_exponent(seeds: int, balanced: bool) -> None:
    """Each seed tilts its own curve; with gaps in the data the interval may only be wider than it says."""
    generator = np.random.default_rng(seeds)
    groups, u = np.repeat(np.arange(seeds), X.size), np.tile(np.log(X), seeds)
    hits = []
    for _ in range(300):
        tilt, lift = 0.1 * generator.normal(size=seeds), generator.normal(size=seeds)
        y = np.exp((tilt[groups] - 1.0) * u + lift[groups] * 0.2 + 0.05 * generator.normal(size=u.size))
        kept = generator.random(u.size) < 0.8 if not balanced else np.full(u.size, True)
        law = power_law(np.exp(u)[kept], y[kept], groups=groups[kept])
        hits.append(law.low <= -1.0 <= law.high)
    assert np.mean(hits) > 0.915
    assert np.mean(hits) < 0.995


def test_weights_count_like_repeated_points() -> None:
    y = np.array([1.0, 3.0, 2.0, 8.0])
    x = np.array([1.0, 2.0, 4.0, 8.0])
    weighted = power_law(x, y, weights=[1, 2, 1, 1])
    repeated = power_law(np.append(x, 2.0), np.append(y, 3.0))
    assert weighted.exponent == pytest.approx(repeated.exponent)


def test_window_and_missing_points() -> None:
    y = np.where(X < 5, X**2, 25.0)
    y[0] = np.nan
    law = power_law(X, y, window=(0.05, 4.0))
    assert law.exponent == pytest.approx(2.0)
    assert law.n == int(((X < 4) & np.isfinite(y)).sum())
    assert law.window == (0.05, 4.0)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"x": [1, 2], "y": [1, 2]}, "at least 3 points"),
        ({"x": [1, 1, 1], "y": [1, 2, 3]}, "2 values"),
        ({"x": [1, 2, 3], "y": [1, 2, 3], "window": (5.0, 9.0)}, r"window \[5, 9\]"),
        ({"x": [1, 2, 3], "y": [1, -2, 3]}, "positive"),
        ({"x": [1, 2, 3], "y": [1, 2]}, "`y` has 2 entries"),
        ({"x": [1, 2, 3], "y": [1, 2, 3], "groups": [0]}, "`groups` has 1 entries"),
        ({"x": [1, 1, 2], "y": [1, 2, 3], "groups": [0, 0, 1]}, "several values of `x`"),
    ],
)
def test_mistakes(arguments: dict[str, object], word: str) -> None:
    with pytest.raises(UserError, match=word):
        power_law(**arguments)  # type: ignore[arg-type]


def test_crossing_of_a_power_law_is_exact() -> None:
    for scale in (1e-9, 1.0, 1e9):
        assert crossing(X * scale, 7 * X**-2.0, 1.0) == pytest.approx(scale * math.sqrt(7))


def test_crossing_takes_the_middle_of_several() -> None:
    x, y = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0], [4.0, 0.5, 2.0, 0.5, 2.0, 0.1]
    assert 4.0 < crossing(x, y, 1.0) < 8.0


@pytest.mark.parametrize("y", [[4.0, 2.0, 1.0], [1.0, 0.5, 0.2], [3.0, 1.0, 0.3]])
def test_crossing_at_a_point(y: list[float]) -> None:
    assert crossing([1.0, 2.0, 4.0], y, 1.0) == pytest.approx([1.0, 2.0, 4.0][y.index(1.0)])


def test_no_crossing_is_told() -> None:
    with pytest.raises(UserError, match="above `level` = 1 at both ends"):
        crossing([1, 2, 3], [4, 3, 2], 1.0)


def test_local_exponents_of_a_bend() -> None:
    middle, slopes = local_exponents(X, np.minimum(X, 1.0))
    assert slopes[0] == pytest.approx(1.0)
    assert slopes[-1] == pytest.approx(0.0)
    assert len(middle) == X.size - 1


def test_known_exponents_of_a_study_are_recovered() -> None:
    rows = tidy(synthetic.study(outputs=False, noise=0.02))
    expected = {
        ("dK", (1e-2, 3.0)): synthetic.FEATURE_DK,
        ("dK", (3e3, 1e5)): synthetic.LAZY_DK,
        ("sqrt_h_dW", (1e-2, 3.0)): synthetic.FEATURE_DW,
        ("sqrt_h_dW", (3e3, 1e5)): synthetic.LAZY_DW,
    }
    for (column, window), exponent in expected.items():
        law = power_law(rows["x"], rows[column], window, groups=rows["network"])
        assert law.exponent == pytest.approx(exponent, abs=0.02)
        assert law.high - law.low < 0.05
    stars = transition(rows)
    law = power_law(stars["width"], stars["alpha_star"], groups=stars["seed"])
    assert law.low < -0.5 < law.high
    assert law.prefactor == pytest.approx(synthetic.CROSSOVER, rel=0.15)
