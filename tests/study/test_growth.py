"""More of the same goes on in the same directory and repeats nothing; another experiment is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytest

from regimes.core.error import UserError
from regimes.report.provenance import facts
from regimes.study import (
    Option,
    Result,
    Scale,
    Store,
    Study,
    Sweep,
    bisection,
    combine,
    forecast_study,
    grid,
    read_record,
    run_study,
)
from regimes.study.growth import setting
from tests.study.toy import Toy


def sweep(settings: Mapping[str, Any]) -> Sweep:
    seeds = range(settings["seeds"])
    chosen: dict[str, Any] = {"pause": 1e-6 * settings["step"]}
    curves = grid(Toy, width=settings["widths"], x=[0.5, 2], seed=seeds, **chosen)
    chosen |= {"width": 5, "factor": settings["factor"]}
    search = bisection(Toy, axis="x", column="value", level=50.0, start=[1, 2], seed=seeds, **chosen)
    return combine(curves, search)


OPTIONS = {
    "seeds": Option(int, 2),
    "widths": Option(tuple[int, ...], (1, 2)),
    "step": Option(float, 1.0),
    "factor": Option(float, 1.5),
    "place": Option(Literal["here", "there"], "here"),
}
STUDY = Study("growing", "It grows", (Toy,), {"quick": Scale(sweep, "", "")}, options=OPTIONS)


def carry_out(out: Path, study: Study = STUDY, **settings: Any) -> Result:
    return run_study(study, "quick", out, settings=settings, command="regimes run growing", quiet=True)


def rows_of(out: Path) -> pd.DataFrame:
    frame = pd.read_parquet(out / "rows").drop(columns="seconds")
    return frame.sort_values(["key", "step"], ignore_index=True)


@pytest.mark.parametrize(
    "grown",
    [
        {"seeds": 4},
        {"widths": (1, 2, 3)},
        {"widths": (3, 2, 1), "seeds": 3},
        {"factor": 1.1},
        {"place": "there"},
    ],
)
def test_more_of_the_same_continues_a_study(tmp_path: Path, grown: dict[str, Any]) -> None:
    before = carry_out(tmp_path / "grown")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "grown" / "rows").iterdir()}
    assert forecast_study(STUDY, "quick", tmp_path / "grown", settings=grown).finished > 0
    after = carry_out(tmp_path / "grown", **grown)
    alone = carry_out(tmp_path / "alone", **grown)
    assert (after.wanted, after.finished, after.failures) == (alone.wanted, alone.wanted, ())
    assert after.carried_out < after.wanted and after.carried_out + before.finished >= after.wanted
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())
    # rows of a search that went elsewhere stay; the others are those of a study of its own
    held, expected = rows_of(tmp_path / "grown"), rows_of(tmp_path / "alone")
    there = held.loc[held["key"].isin(expected["key"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(there, expected)


def test_fewer_of_the_same_find_all_done(tmp_path: Path) -> None:
    carry_out(tmp_path, seeds=4, widths=(1, 2, 3))
    fewer = carry_out(tmp_path, widths=(2,))
    assert (fewer.wanted, fewer.carried_out) == (fewer.finished, 0)
    assert carry_out(tmp_path, seeds=3, widths=(2, 7)).carried_out > 0


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"step": 2.0}, r"holds growing with step=1, not 2, .*choose another --out or the same settings"),
        (
            {"widths": (2, 3)},
            r"with widths=\[1, 2\], not \[2, 3\], .*give --set widths=1,2,3, or choose another --out",
        ),
        ({"seeds": 5, "step": 0.5}, "with step=1, not 0.5"),
    ],
)
def test_another_experiment_is_refused(tmp_path: Path, other: dict[str, Any], words: str) -> None:
    carry_out(tmp_path)
    before = {
        path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"
    }
    for act in (run_study, forecast_study):
        with pytest.raises(UserError, match=words) as caught:
            act(STUDY, "quick", tmp_path, settings=other)
        assert "\n" not in str(caught.value)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_the_record_keeps_the_history_of_settings(tmp_path: Path) -> None:
    for seeds in (2, 3, 2):
        run_study(STUDY, "quick", tmp_path, settings={"seeds": seeds}, data=tmp_path, quiet=True)
    record = read_record(Store(tmp_path))
    assert record is not None
    assert [session["settings"]["seeds"] for session in record["sessions"]] == [2, 3, 2]
    assert {session["data"] for session in record["sessions"]} == {str(tmp_path)}
    assert record["settings"] == record["sessions"][-1]["settings"]
    told = dict(facts(record))
    assert str(told["Earlier settings"]).startswith("seeds 3;")


def test_an_option_that_came_or_went_changes_nothing(tmp_path: Path) -> None:
    carry_out(tmp_path)
    options = {name: option for name, option in OPTIONS.items() if name != "place"} | {
        "later": Option(int, 7)
    }
    newer = Study("growing", "It grows", (Toy,), STUDY.scales, options=options)
    assert carry_out(tmp_path, newer).carried_out == 0
    assert carry_out(tmp_path, newer, later=8, seeds=3).carried_out > 0


def test_an_option_of_another_type_is_compared_as_it_was_written(tmp_path: Path) -> None:
    carry_out(tmp_path)
    record = json.loads((tmp_path / "study.json").read_text())
    record["settings"]["widths"] = "many"
    (tmp_path / "study.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="holds growing with widths='many'"):
        carry_out(tmp_path)


@pytest.mark.parametrize(
    ("value", "text"),
    [((8, 16), "8,16"), (True, "true"), (1e-3, "0.001"), (("a", "b"), "a,b"), ("x", "x"), ((), "")],
)
def test_a_setting_is_written_as_it_is_given(value: Any, text: str) -> None:
    assert setting("name", value) == f"name={text}"
