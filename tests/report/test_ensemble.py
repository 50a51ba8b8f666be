"""The ensemble table against its definitions, and its intervals against the truth."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from regimes import measure
from regimes.core.error import UserError
from regimes.report.ensemble import ensemble, ensemble_error, outputs, single_error, variance

TARGETS = np.array([1.0, -1.0, 1.0, -1.0])


def frame(members: np.ndarray, targets: np.ndarray = TARGETS, width: int = 8) -> pd.DataFrame:
    lists = {
        "test_outputs": [row.tolist() for row in members],
        "test_targets": [targets.tolist()] * len(members),
    }
    return pd.DataFrame({"width": width, "seed": range(len(members)), **lists})


def test_definitions() -> None:
    members = np.random.default_rng(0).normal(size=(5, 4))
    line = ensemble(frame(members), "width").iloc[0]
    mean = members.mean(0)
    assert line["variance"] == pytest.approx(sum(((row - mean) ** 2).mean() for row in members) / 4)
    assert line["single"] == pytest.approx(np.mean([(np.sign(row) != TARGETS).mean() for row in members]))
    assert line["ensemble"] == pytest.approx((np.sign(mean) != TARGETS).mean())
    assert line["members"] == 5
    assert 0 <= line["ensemble_low"] <= line["ensemble"] <= line["ensemble_high"] <= 1


def test_classes_are_decided_by_the_largest_output() -> None:
    members = np.array([[0.1, 0.9, 0.8, 0.2], [0.6, 0.4, 0.9, 0.1]])
    assert single_error(members, np.array([1.0, 0.0])) == pytest.approx(0.25)
    assert ensemble_error(members, np.array([1.0, 0.0])) == 0.0


def test_an_undecided_output_is_an_error() -> None:
    assert single_error([np.zeros(4)], TARGETS) == 1.0


def test_equal_members_do_not_fluctuate() -> None:
    same = np.tile(TARGETS, (3, 1))
    assert variance(same) == 0.0
    assert single_error(same, TARGETS) == ensemble_error(same, TARGETS) == 0.0


def test_the_variance_is_that_of_measure_for_any_number_of_outputs() -> None:
    """Summed over outputs, averaged over samples, as both say."""
    members = np.random.default_rng(0).normal(size=(5, 3 * 4))
    expected = measure.fluctuation(torch.from_numpy(members).view(5, 4, 3)).variance
    line = ensemble(frame(members, np.array([0.0, 1.0, 2.0, 0.0])), "width").iloc[0]
    assert line["variance"] == variance(members, 4) == pytest.approx(expected)
    assert line["variance"] == pytest.approx(3 * variance(members))


def test_outputs_that_do_not_fit_the_targets_are_named() -> None:
    with pytest.raises(UserError, match="`members`: got 5 outputs for 4 samples"):
        single_error(np.ones((2, 5)), TARGETS)
    with pytest.raises(UserError, match="`targets`: got values from 0 to 1"):
        single_error(np.ones((2, 4)), np.array([0.0, 1.0, 1.0, 0.0]))
    with pytest.raises(UserError, match="`targets`: got fractions"):
        single_error(np.ones((2, 8)), TARGETS / 2)


def test_interval_covers_the_variance() -> None:
    generator = np.random.default_rng(0)
    hits = []
    for _ in range(200):
        # Members that differ in 20 independent directions, as networks on a test set do in a few.
        line = ensemble(frame(2.0 * generator.normal(size=(10, 20)), np.ones(20)), "width").iloc[0]
        hits.append(line["variance_low"] <= 4.0 <= line["variance_high"])
    assert 0.90 < np.mean(hits) <= 0.99


def test_few_members() -> None:
    members = np.random.default_rng(0).normal(size=(2, 4))
    assert np.isnan(ensemble(frame(members), "width")["variance_low"]).all()
    with pytest.raises(UserError, match="no two members"):
        ensemble(frame(members[:1]), "width")


def test_different_test_sets_are_refused() -> None:
    mixed = pd.concat([frame(np.ones((1, 4))), frame(np.ones((1, 4)), -TARGETS)])
    with pytest.raises(UserError, match="different test sets"):
        outputs(mixed)
