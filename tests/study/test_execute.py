"""Everything wanted is done once, by every back end; faults are told, and the rest goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from regimes.core.error import UserError
from regimes.study import Interrupted, Result, Run, Scale, Store, Study, forecast_study, run_study
from regimes.study.backend import parse_on
from regimes.study.record import read_record
from tests.study.toy import STUDY, Fragile, Toy, fragile

PLACES = ["here", "pool:2"]


def rows_of(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / "rows").drop(columns="seconds", errors="ignore")


def carry_out(study: Study, out: Path, on: str = "here", **settings: Any) -> Result:
    return run_study(study, "quick", out, on=on, settings=settings, command="regimes run toy", quiet=True)


def test_back_ends_agree_and_a_second_session_has_nothing_to_do(tmp_path: Path) -> None:
    for on in PLACES:
        result = carry_out(STUDY, tmp_path / on, on)
        assert result.wanted == result.finished == result.carried_out == len(Store(tmp_path / on)) > 27
        assert result.failures == ()
        again = carry_out(STUDY, tmp_path / on, on)
        assert (again.wanted, again.finished, again.carried_out) == (result.wanted, result.wanted, 0)
    pd.testing.assert_frame_equal(rows_of(tmp_path / "here"), rows_of(tmp_path / "pool:2"))


def test_the_record_tells_every_session(tmp_path: Path) -> None:
    for on in PLACES:
        carry_out(STUDY, tmp_path, on, seeds="2")
    record = read_record(Store(tmp_path))
    assert record is not None
    assert (record["study"], record["scale"], record["settings"]) == (
        "toy",
        "quick",
        {"seeds": 2, "pause": 0},
    )
    assert [session["on"] for session in record["sessions"]] == PLACES
    for session in record["sessions"]:
        assert session["command"] == "regimes run toy"
        assert session["finished"] == len(Store(tmp_path))
        assert session["seconds"] >= 0
        assert {"regimes", "torch", "pandas"} <= session["versions"].keys()
        assert session["machine"]["cores"] == os.cpu_count()


def test_a_directory_holds_one_study_at_one_scale_with_one_choice(tmp_path: Path) -> None:
    carry_out(STUDY, tmp_path)
    other = Study("other", "Other", (Toy,), STUDY.scales, options=STUDY.options)
    large = Study("toy", "A toy", (Toy,), {"large": STUDY.scales["quick"]}, options=STUDY.options)
    for study, scale, settings, words in (
        (other, "quick", {}, "it holds study toy; choose another --out for other"),
        (large, "large", {}, "it holds toy at scale quick; choose another --out for scale large"),
        (STUDY, "quick", {"pause": 1}, "it holds toy with pause=0, not 1, .*; choose another --out"),
    ):
        for act in (run_study, forecast_study):
            with pytest.raises(UserError, match=words):
                act(study, scale, tmp_path, settings=settings)


def test_rows_of_unknown_origin_are_left_alone(tmp_path: Path) -> None:
    carry_out(STUDY, tmp_path)
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(UserError, match=r"study\.json is damaged"):
        carry_out(STUDY, tmp_path)
    (tmp_path / "study.json").unlink()
    with pytest.raises(UserError, match="has rows but no study"):
        carry_out(STUDY, tmp_path)


def test_a_torn_file_is_set_aside_and_its_run_done_again(tmp_path: Path) -> None:
    carry_out(STUDY, tmp_path)
    whole = rows_of(tmp_path)
    victim = sorted((tmp_path / "rows").iterdir())[5]
    victim.write_bytes(victim.read_bytes()[:300])
    with pytest.warns(UserWarning, match=f"{victim.name} is torn"):
        assert carry_out(STUDY, tmp_path).carried_out == 1
    pd.testing.assert_frame_equal(rows_of(tmp_path), whole)
    assert [path.name for path in (tmp_path / "aside").iterdir()] == [victim.name]


@pytest.mark.parametrize("on", PLACES)
def test_a_run_that_raises_does_not_stop_the_others(tmp_path: Path, on: str) -> None:
    runs = [Fragile(number=number, fault="raise" if number in (3, 7) else "") for number in range(10)]
    result = carry_out(fragile(runs), tmp_path, on)
    assert {failure.run.key for failure in result.failures} == {runs[3].key, runs[7].key}
    assert (result.finished, result.wanted) == (8, 10)
    text = str(result)
    assert f"failed: {runs[3]!r} and 1 more: ArithmeticError: the loss is not a number (toy.py, line " in text
    assert text.endswith("to try again what failed: regimes run toy")
    assert "Traceback" in (tmp_path / "failures.txt").read_text()


def test_a_worker_that_dies_takes_only_its_run_with_it(tmp_path: Path) -> None:
    faults = {2: "die", 5: "die once"}
    runs = [Fragile(number=n, fault=faults.get(n, ""), marker=str(tmp_path / f"met {n}")) for n in range(8)]
    result = carry_out(fragile(runs), tmp_path / "out", "pool:2")
    assert [failure.run for failure in result.failures] == [runs[2]]
    assert (
        "its worker died (killed, most often for lack of memory: try fewer workers, such as --on pool:1)"
        in str(result)
    )
    assert result.finished == 7


def test_a_lone_run_whose_worker_dies_is_tried_once_more(tmp_path: Path) -> None:
    runs = [Fragile(number=1, fault="die once", marker=str(tmp_path / "met"))]
    assert carry_out(fragile(runs), tmp_path / "out", "pool:1").failures == ()


def test_what_failed_is_tried_again_by_the_next_session(tmp_path: Path) -> None:
    study = fragile([Fragile(number=1, fault="raise"), Fragile(number=2)])
    assert len(carry_out(study, tmp_path).failures) == 1
    again = carry_out(study, tmp_path)
    assert (again.finished, again.carried_out, len(again.failures)) == (1, 0, 1)


class Mistaken(Fragile):
    @classmethod
    def perform(cls, runs: Any, data: Any, tick: Any) -> Any:
        raise UserError("`data` is missing")


class Odd(Fragile):
    @classmethod
    def perform(cls, runs: Any, data: Any, tick: Any) -> Any:
        if runs[0].fault == "foreign":
            yield cls(number=99), [{"value": 1.0}]


@pytest.mark.parametrize("on", PLACES)
def test_a_mistake_of_the_user_stops_everything(tmp_path: Path, on: str) -> None:
    runs = [Mistaken(number=number) for number in range(4)]
    study = Study("mistaken", "", (Mistaken,), {"quick": Scale(lambda settings: lambda frame: runs, "", "")})
    with pytest.raises(UserError, match=r"^`data` is missing$"):
        carry_out(study, tmp_path, on)


@pytest.mark.parametrize(
    ("fault", "words"), [("foreign", "perform yielded Odd"), ("", "without having yielded all")]
)
def test_perform_must_yield_what_it_was_given(tmp_path: Path, fault: str, words: str) -> None:
    runs = [Odd(number=1, fault=fault)]
    study = Study("odd", "", (Odd,), {"quick": Scale(lambda settings: lambda frame: runs, "", "")})
    assert words in str(carry_out(study, tmp_path))


def test_a_sweep_may_want_declared_classes_only(tmp_path: Path) -> None:
    strange: list[Run] = [Toy(width=1)]
    study = Study("odd", "", (Odd,), {"quick": Scale(lambda settings: lambda frame: strange, "", "")})
    with pytest.raises(UserError, match="`sweep` of study odd wants Toy: expected Odd"):
        carry_out(study, tmp_path)


def test_an_interrupt_says_what_is_safe_and_how_to_continue(tmp_path: Path) -> None:
    runs = [Fragile(number=n, fault="interrupt" if n == 3 else "") for n in range(6)]
    with pytest.raises(Interrupted) as caught:
        carry_out(fragile(runs), tmp_path)
    assert isinstance(caught.value, KeyboardInterrupt)
    assert "3 of 6 runs finished" in str(caught.value)
    assert str(caught.value).endswith("to continue: regimes run toy")
    assert len(rows_of(tmp_path)) == 3


def test_a_forecast_writes_nothing_and_counts_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regimes.study.execute.pace", lambda: 1.0)
    forecast = forecast_study(STUDY, "quick", tmp_path / "out", on="pool:4", settings={"pause": "2"})
    assert (forecast.wanted, forecast.finished, forecast.workers) == (31, 0, 4)
    assert 31 * 2 / 4 <= forecast.seconds <= 31 * 2
    assert str(forecast).startswith("at least 31 runs, 0 finished; the rest: ")  # its search may want more
    assert not (tmp_path / "out").exists()
    carry_out(STUDY, tmp_path / "out")
    after = forecast_study(STUDY, "quick", tmp_path / "out")
    assert (after.finished, after.tasks, after.seconds) == (after.wanted, 0, 0.0)


@pytest.mark.parametrize(
    ("on", "words"),
    [
        ("ray", "not supported yet"),
        ("ray:auto", "not supported yet"),
        ("pool:0", "pool:N"),
        ("pool:x", "pool:N"),
        ("pol", "did you mean 'pool'"),
        ("here:2", "expected here, pool"),
        ("", "expected here"),
    ],
)
def test_an_unknown_back_end_is_named(on: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_on(on)


def test_back_ends_are_parsed() -> None:
    assert parse_on("here") == ("here", 1)
    assert parse_on("pool:3") == ("pool", 3)
    assert parse_on("pool")[1] >= 1


def test_a_script_without_guard_is_told_what_it_needs(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from regimes.study import run_study\nfrom tests.study.toy import STUDY\n"
        f"run_study(STUDY, 'quick', {str(tmp_path / 'out')!r}, on='pool:1')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=60
    )
    assert "needs `if __name__ == '__main__':`" in found.stderr.splitlines()[-1]


def test_study_json_is_json(tmp_path: Path) -> None:
    carry_out(STUDY, tmp_path)
    assert json.loads((tmp_path / "study.json").read_text())["title"] == "A toy"
