"""The jackknife from values that leave one out: that of the sample itself."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from regimes.core.estimate import Estimate, delete_one, jackknife, jackknife_variance
from regimes.study import estimate


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


def test_the_public_names_of_study_are_the_same_objects() -> None:
    assert estimate.Estimate is Estimate and estimate.jackknife is jackknife


def test_needs_neither_torch_nor_pandas() -> None:
    check = "import sys, regimes.core.estimate; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
