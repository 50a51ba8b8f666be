"""Rows without a value are told; means are over seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from regimes.core.error import UserError
from regimes.report.table import need, summary
from tests.papers.feature_lazy import synthetic


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
