"""Tidy rows hold one row per run; panels never mix what differs; the crossover is where the drift is one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from regimes.core.error import UserError
from regimes.core.estimate import array
from regimes.papers.feature_lazy.tables.plane import ends, panels, tidy, transition
from regimes.report.table import summary
from tests.papers.feature_lazy import synthetic


@pytest.fixture(scope="module")
def rows() -> Any:
    return synthetic.study(widths=(16, 64), seeds=3, outputs=False)


def test_one_row_per_run_and_derived_columns(rows: Any) -> None:
    table: Any = tidy(rows)
    assert table["key"].is_unique
    assert set(table["key"]) == set(rows["key"])
    np.testing.assert_allclose(table["x"], np.sqrt(table["width"]) * table["alpha"], rtol=1e-5)
    np.testing.assert_allclose(table["sqrt_h_dW"], np.sqrt(table["width"]) * table["dW"])
    np.testing.assert_allclose(table["t1_over_x"] * table["x"], table["t1"])
    assert table["x"].nunique() == 15  # equal values are equal, whatever the width rounded


def test_only_finished_runs_are_compared(rows: Any) -> None:
    broken = rows.copy()
    one = broken["key"].iloc[0]
    broken.loc[(broken["key"] == one) & (broken["status"] == "finished"), "status"] = "diverged"
    assert one not in set(tidy(broken)["key"])
    assert one in set(tidy(broken, "last")["key"])
    assert len(tidy(broken, "looks")) == len(rows)


def test_other_laws_have_no_x(rows: Any) -> None:
    assert np.isnan(array(tidy(rows.assign(law="mean-field"))["x"])).all()
    assert np.isfinite(array(tidy(rows.drop(columns="law"))["x"])).all()


def test_nothing_finished_is_told(rows: Any) -> None:
    with pytest.raises(UserError, match=r"no finished run \(rows: .* running\)"):
        tidy(rows[rows["status"] == "running"])
    with pytest.raises(UserError, match="no column 'key'"):
        tidy(pd.DataFrame())


def test_summary_has_an_interval_for_each_group(rows: Any) -> None:
    table: Any = summary(tidy(rows), ["width", "x"], "dK", log=True)
    assert list(table.columns) == ["width", "x", "mean", "low", "high", "n"]
    assert (table["low"] < table["mean"]).all()
    assert (table["mean"] < table["high"]).all()
    assert (table["n"] == 3).all()


def test_panels_split_and_name() -> None:
    both = pd.concat(
        [synthetic.study((8,), seeds=1), synthetic.study((8,), seeds=1, depth=5)], ignore_index=True
    )
    assert [name for name, _ in panels(tidy(both))] == ["digits, L = 2", "digits, L = 5"]
    mixed = both.assign(n=np.where(both["depth"] == 5, 100.0, 50.0), task=None)
    assert [name for name, _ in panels(tidy(mixed))] == ["digits, L = 2, n = 50", "digits, L = 5, n = 100"]


def test_transition_is_where_the_drift_is_one(rows: Any) -> None:
    table = transition(tidy(rows))
    assert len(table) == 6
    x = array(table["alpha_star"]) * np.sqrt(array(table["width"]))
    assert np.abs(np.log(x / synthetic.CROSSOVER)).max() < 0.3


def test_networks_that_do_not_cross_are_missing(rows: Any) -> None:
    table: Any = tidy(rows)
    some = table[(table["width"] == 16) | (table["x"] < 1)]
    assert transition(some).groupby("width")["alpha_star"].count().to_dict() == {16: 3, 64: 0}
    with pytest.raises(UserError, match="none of 6 networks"):
        transition(table[table["x"] < 1])


def test_ends_are_the_outermost_and_fullest(rows: Any) -> None:
    table: Any = tidy(rows)
    sides = ends(table)
    assert {name: set(part["x"]) for name, part in sides.items()} == {"feature": {0.01}, "lazy": {1e5}}
    thinner = table[(table["x"] != 0.01) | (table["seed"] == 0)]
    assert set(ends(thinner)["feature"]["x"]) == {0.0316228}
    assert set(ends(table, feature=0.1)["feature"]["x"]) == {0.1}
    with pytest.raises(UserError, match="no rows at x = 7"):
        ends(table, feature=7.0, lazy=7.0)


def test_ends_are_where_ensembles_are_not_where_a_search_went() -> None:
    """A search takes more seeds of narrow networks than of wide ones: most networks, but no ensembles."""
    both = tidy(synthetic.study((16, 64), (-2, 4), seeds=5))
    search = [tidy(synthetic.study((h,), (-1,), seeds=n)) for h, n in ((16, 9), (64, 4))]
    sides = ends(pd.concat([both, *search], ignore_index=True))
    assert set(sides["feature"]["x"]) == {0.01} and len(sides["feature"]) == 10


def test_nothing_is_interpolated_over_a_wide_gap() -> None:
    """A network trained deep in both regimes alone, for an ensemble, says nothing of where it crosses."""
    wide = tidy(synthetic.study((16, 64), (-1, 4), seeds=2))
    with pytest.raises(UserError, match="none of 4 networks"):
        transition(wide)
    close = tidy(synthetic.study((16, 64), (-1, 1.5, 2, 4), seeds=2))
    assert np.isfinite(transition(close)["alpha_star"]).all()
    assert np.isfinite(transition(wide, factor=1e6)["alpha_star"]).all()
