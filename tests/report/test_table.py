"""Rows without a value are told; means are over seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from regimes.core.error import UserError
from regimes.report.table import by_seed, ended, need, summary
from tests.papers.feature_lazy import synthetic
from tests.report import pages


@pytest.fixture(scope="module")
def rows() -> Any:
    return synthetic.study(widths=(16, 64), seeds=3, outputs=False)


def test_summary_averages_seeds_not_rows() -> None:
    frame = pd.DataFrame({"width": 8, "seed": [0, 0, 0, 1], "dK": [1.0, 1.0, 1.0, 3.0]})
    line = summary(frame, "width", "dK").iloc[0]
    assert line["mean"] == 2.0
    assert line["n"] == 2


def test_need_names_what_is_missing(rows: Any) -> None:
    for gap in (["gap"], "gap"):
        with pytest.raises(UserError, match="no column 'gap': expected"):
            need(rows, gap)
    assert len(need(rows, "width")) == len(rows)
    with pytest.raises(UserError, match="none with gap"):
        need(rows.assign(gap=np.nan), ["gap"])


def test_the_end_of_a_run_counts_if_it_is_finished() -> None:
    frame = pd.DataFrame(
        {"key": ["a", "a", "b", "c"], "status": ["running", "finished", "diverged", "finished"],
         "run": ["Plane", "Plane", "Plane", "Other"], "dK": [0.0, 1.0, 2.0, np.nan], "seed": [3, 3, 4, 5]}
    )  # fmt: skip
    assert ended(frame, "dK")["key"].tolist() == ["a"] and ended(frame, "dK")["dK"].tolist() == [1.0]
    assert ended(frame, ["seed"])["key"].tolist() == ["a", "c"]
    assert ended(frame, ["seed"], pages.Plane)["key"].tolist() == ["a"]
    assert by_seed(ended(frame, "seed"), "dK", {"status": "finished"}).to_dict() == {3.0: 1.0}
    with pytest.raises(UserError, match="no finished run at seed = 9"):
        by_seed(frame, "dK", {"seed": 9})
    with pytest.raises(UserError, match="none with dK"):
        by_seed(frame, "dK", {"seed": 5})
