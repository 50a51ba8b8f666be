"""The examples run; with the library and without it they print the same numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

import pytest

from tests.conftest import ROOT


@cache
def table(name: str) -> list[list[str]]:
    """The table that an example prints, row by row, without its head."""
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / name)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()[1:]]


def printed(name: str) -> list[list[float]]:
    """The numbers of the table that an example prints, row by row."""
    return [[float(word) for word in line] for line in table(name)]


def test_the_library_prints_what_plain_pytorch_prints() -> None:
    plain, library = printed("minimal.py"), printed("minimal_with_regimes.py")
    assert len(plain) == len(library) == 5
    for one, other in zip(plain, library, strict=True):
        assert other == pytest.approx(one, rel=1e-6)


def test_small_alpha_is_rich_and_large_alpha_lazy() -> None:
    drifts = [row[3] for row in printed("minimal_with_regimes.py")]
    assert drifts == sorted(drifts, reverse=True)
    assert drifts[0] > 1 and drifts[-1] < 0.05


def test_a_kernel_solve_replaces_a_lazy_run() -> None:
    """The differences fall as 1/alpha (asserted in the script), and are small beside predictions of order 1."""
    rows = {
        (name, float(alpha)): [float(word) for word in rest]
        for name, alpha, *rest in table("kernel_solve.py")
    }
    assert set(rows) == {(name, alpha) for name in ("squared", "soft-hinge") for alpha in (1e4, 1e5)}
    for (name, alpha), (_steps, slow, fast, _ratio, difference, _scaled, error, other) in rows.items():
        assert difference < (500 if name == "squared" else 10) / alpha
        assert fast < slow
        assert abs(error - other) <= 0.01 and other < 0.15


def test_a_linear_model_does_on_digits_and_not_where_features_matter() -> None:
    lines = [" ".join(words) for words in table("would_linear_do.py")]
    easy, hard = (line for line in lines if line.startswith("A linear model"))
    assert easy.startswith("A linear model would do:") and hard.startswith("A linear model would not do:")


@pytest.mark.slow
def test_a_lazy_network_needs_its_first_features_and_a_product_new_ones() -> None:
    lines = [" ".join(words) for words in table("how_many_feature_updates.py")]
    few, many = (line for line in lines if line.startswith("Against plain training"))
    assert "1 feature update is enough" in few and "100 feature updates are enough" in many
