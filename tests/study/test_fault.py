"""Whatever the code of a study does, its user reads one line, and finished runs are kept."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from regimes.core.error import UserError
from regimes.study import Run, Scale, Store, Study, forecast_study, grid, pool, run_study
from regimes.study.fault import StudyFault, blame
from tests.study.toy import STUDY, Fragile, Toy, fragile


def study_of(sweep: Any, runs: Any = (Toy,)) -> Study:
    return Study("odd", "Odd", runs, {"quick": Scale(sweep, "", "")})


def act(study: Study, out: Path, on: str = "here", **settings: Any) -> Any:
    return run_study(study, "quick", out, on=on, settings=settings, quiet=True, command="regimes run odd")


def wild(*_: Any) -> Any:
    raise ValueError("wild\nwords")


class Exits(Fragile):
    """Ends the process, or tries to, in the ways a program may."""

    @classmethod
    def perform(cls, runs: Any, data: Path | None, tick: Callable[[str], None]) -> Iterator[Any]:
        for run in runs:
            if run.fault == "exit":
                sys.exit(run.number)
            if run.fault == "os exit":
                os._exit(run.number)
            if run.fault == "interrupt":
                raise KeyboardInterrupt
            if run.fault == "base":
                raise BaseException("odd")
            yield run, [{"value": 1.0}]


ENDINGS = {
    "exit": "SystemExit: 0",
    "base": "BaseException: odd",
    "interrupt": "KeyboardInterrupt",
    "os exit": "its worker died (exit code 3",
    "": "",
}


@pytest.mark.parametrize("on", ["here", "pool:1"])
def test_a_run_that_ends_the_process_is_a_failed_run(tmp_path: Path, on: str) -> None:
    # in one process Ctrl-C is Ctrl-C, and nothing survives os._exit
    faults = [fault for fault in ENDINGS if on != "here" or fault not in ("interrupt", "os exit")]
    runs = [Exits(number=3 if fault == "os exit" else 0, fault=fault) for fault in faults]
    result = act(study_of(lambda settings: lambda frame: runs, [Exits]), tmp_path, on)
    assert (result.finished, [failure.run for failure in result.failures]) == (1, runs[:-1])
    for fault, failure in zip(faults, result.failures, strict=False):
        assert failure.error.startswith(ENDINGS[fault])
    assert (tmp_path / "failures.txt").is_file()


class Yields(Run):
    columns: ClassVar[dict[str, Any]] = {"value": float}
    what: ClassVar[Any] = None
    number: int = 0

    @classmethod
    def perform(cls, runs: Any, data: Path | None, tick: Callable[[str], None]) -> Any:
        tick(np.float64(3))  # pyright: ignore[reportArgumentType]
        return cls.what


@pytest.mark.parametrize(
    "what", [3, None, [3], [(1, 2)], [(1, [{}])], [[]], "ab", [(Yields(), 3)], [(Yields(), [3])], [None]]
)
def test_what_perform_yields_is_checked(tmp_path: Path, what: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Yields, "what", what)
    result = act(study_of(lambda settings: lambda frame: [Yields()], [Yields]), tmp_path)
    assert len(result.failures) == 1
    assert result.failures[0].error.count("\n") == 0
    assert "perform" in result.failures[0].error or "not iterable" in result.failures[0].error


@pytest.mark.parametrize("late", [False, True])
def test_a_sweep_that_raises_is_named_and_its_traceback_kept(tmp_path: Path, late: bool) -> None:
    study = study_of((lambda settings: wild) if late else wild)
    with pytest.raises(StudyFault) as caught:
        act(study, tmp_path / "out")
    text = str(caught.value)
    assert text.startswith("`sweep` of ") and "study odd raised ValueError: wild words" in text
    assert "(test_fault.py, line " in text and "\n" not in text
    kept = tmp_path / "out" / "failures.txt"
    assert text.endswith(f"; the traceback is in {kept}")
    assert "Traceback" in kept.read_text() and "in wild" in kept.read_text()
    with pytest.raises(StudyFault, match="raised ValueError: wild words"):
        forecast_study(study, "quick", tmp_path / "forecast")
    assert not (tmp_path / "forecast").exists()


def test_finished_runs_outlive_a_sweep_that_raises_later(tmp_path: Path) -> None:
    runs = [Toy(width=1), Toy(width=2)]
    study = study_of(lambda settings: lambda frame: runs if frame.empty else sys.exit(0))
    with pytest.raises(StudyFault, match="raised SystemExit: 0"):
        act(study, tmp_path)
    assert len(Store(tmp_path)) == 2


@pytest.mark.parametrize("given", [3, None, [3], [None], "ab", [Toy], np.zeros(3), {"a": 1}])
def test_a_sweep_gives_runs(tmp_path: Path, given: Any) -> None:
    with pytest.raises(UserError, match="`sweep` of study odd"):
        act(study_of(lambda settings: lambda frame: given), tmp_path)


def test_a_sweep_may_be_a_generator(tmp_path: Path) -> None:
    study = study_of(lambda settings: lambda frame: (Toy(width=width) for width in (1, 2)))
    assert act(study, tmp_path).finished == 2


def test_an_endless_sweep_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regimes.study.sweep.MOST", 1000)

    def endless() -> Iterator[Run]:
        while True:
            yield Toy(width=1)

    with pytest.raises(UserError, match="has more than 1000 values"):
        act(study_of(lambda settings: lambda frame: endless()), tmp_path)


@pytest.mark.parametrize("seeds", [10**5 + 1, 10**9, 10**15])
def test_too_many_seeds_are_refused_before_anything_is_built(tmp_path: Path, seeds: int) -> None:
    with pytest.raises(UserError, match="a study has at most 100000"):
        act(STUDY, tmp_path / "out", seeds=str(seeds))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**400, 10**5000], ids=int.bit_length)
def test_a_whole_number_without_a_column_is_refused_before_anything_runs(tmp_path: Path, value: int) -> None:
    with pytest.raises(
        UserError, match="`width` of Toy is too large: expected a whole number of at most 64 bits"
    ):
        act(study_of(lambda settings: grid(Toy, width=value)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Anything hashable is a batch, and a cap below 1 is 1.
NO_TASKS: dict[str, list[Any]] = {
    "cost": ["raise", float("nan"), float("inf"), -1.0, "many", None, []],
    "batch": ["raise", []],
    "cap": ["raise", float("nan"), float("inf"), "many", None, []],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, one) for name, values in NO_TASKS.items() for one in values]
)
def test_what_tasks_are_made_by_is_checked(
    tmp_path: Path, name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def given(self: Run) -> Any:
        return wild() if value == "raise" else value

    monkeypatch.setattr(Toy, name, given if name == "cost" else property(given))
    with pytest.raises(UserError, match=f"^`{name}` of Toy"):
        act(study_of(lambda settings: lambda frame: [Toy(width=1)]), tmp_path)


def test_blame_lets_ctrl_c_and_mistakes_pass() -> None:
    for error in (KeyboardInterrupt(), UserError("known")):
        with pytest.raises(type(error)) as caught, blame("`sweep`"):
            raise error
        assert caught.value is error


def test_an_exception_without_words_is_told(tmp_path: Path) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    def mute(*_: Any) -> Any:
        raise Mute

    with pytest.raises(StudyFault, match="raised Mute: it has no words"):
        act(study_of(mute), tmp_path)


@pytest.mark.parametrize("times", [1, pool.STARTS])
def test_workers_killed_while_they_start_are_replaced(
    tmp_path: Path, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the system killed the first ones before they are ready."""
    original, count = pool._Worker.give, 0

    def give(self: Any, task: Any) -> None:
        nonlocal count
        count += 1
        if count <= times:
            self.process.kill()
            self.process.join()
        original(self, task)

    monkeypatch.setattr(pool._Worker, "give", give)
    study = fragile([Fragile(number=number) for number in range(4)])
    if times == pool.STARTS:
        with pytest.raises(UserError, match=r"5 worker processes in a row died.*lack of memory.*--on pool:1"):
            act(study, tmp_path, "pool:1")
    else:
        result = act(study, tmp_path, "pool:1")
        assert (result.finished, result.failures) == (4, ())


@pytest.mark.parametrize("number", [*signal.Signals, 60])
def test_the_signal_that_ended_a_worker_is_named(number: int) -> None:
    known = getattr(number, "name", "60")
    assert known in pool.cause(-number) or "lack of memory" in pool.cause(-number)


def test_classes_of_a_function_cannot_go_to_workers(tmp_path: Path) -> None:
    class Inner(Toy):
        pass

    runs = [Inner(width=1)]
    with pytest.raises(UserError, match="define run classes at the top"):
        act(study_of(lambda settings: lambda frame: runs, [Inner]), tmp_path, "pool:1")


DAMAGED = [
    *("", "null", "[]", "3", '"a"', "{}", "nan", "\xff", "[" * 100_000, '{"study": null, "sessions": []}'),
    '{"study": 1, "sessions": []}',
    *(
        '{"study": "toy", "sessions": ' + rest
        for rest in ("{}}", "[1]}", '[], "scale": 3}', '[], "source": [1]}')
    ),
    *(
        '{"study": "toy", "sessions": ' + rest
        for rest in ('[], "settings": []}', '[], "more": ' + "[" * 9999)
    ),
]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_wrong_study_json_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "study.json").write_text(text, encoding="latin-1")
    for do in (lambda: act(STUDY, tmp_path), lambda: forecast_study(STUDY, "quick", tmp_path)):
        with pytest.raises(UserError, match=r"its study\.json is damaged"):
            do()
    assert (tmp_path / "study.json").read_text(encoding="latin-1") == text


def test_directories_in_the_places_of_files(tmp_path: Path) -> None:
    for name in ("study.json", ".lock"):
        out = tmp_path / name.strip(".")
        (out / name).mkdir(parents=True)
        with pytest.raises(UserError, match=r"^`out` is .*directory"):
            act(STUDY, out)
    (out := tmp_path / "done" / "failures.txt").mkdir(parents=True)
    assert act(STUDY, out.parent, seeds="1").failures == ()
    (out := tmp_path / "failed" / "failures.txt").mkdir(parents=True)
    with pytest.raises(UserError, match="the 1 finished runs there are safe"):
        act(fragile([Fragile(number=0), Fragile(number=1, fault="raise")]), out.parent)
