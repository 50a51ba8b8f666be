"""What is stored is read back; what does not belong is set aside; a full or forbidden disk is one line."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from regimes.core.error import UserError
from regimes.study import store as module
from regimes.study.field import Rows, Tick
from regimes.study.run import Run
from regimes.study.seal import examine
from regimes.study.store import Store
from tests.study.toy import Toy


class Other(Run):
    columns: ClassVar[dict[str, Any]] = {"step": int, "depth": float}

    height: int

    @classmethod
    def perform(cls, runs: Sequence[Run], data: Path | None, tick: Tick) -> Iterator[tuple[Run, Rows]]:
        for run in runs:
            yield run, [{"step": 1, "depth": 2.0}]


RUNS = [
    Toy(width=width, seed=seed) for width in (1, 2) for seed in range(3)
]  # outputs: a list for width 1, null for 2


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = Store(tmp_path / "out", (Toy,))
    for run in RUNS:
        found.put(run, run.rows(0.5))
    return found


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_pandas_reads_all_rows_with_the_declared_types(store: Store) -> None:
    frame = pd.read_parquet(str(store.out) + "/rows")
    pd.testing.assert_frame_equal(frame, store.frame())
    assert set(frame["key"]) == {run.key for run in RUNS} == store.finished()
    assert len(frame) == 2 * len(RUNS) == 2 * len(store)
    assert {str(frame[name].dtype) for name in ("width", "step", "seed")} == {"int64"}
    assert {str(frame[name].dtype) for name in ("x", "value", "gap")} == {"float64"}
    last = frame.drop_duplicates("key", keep="last").set_index("key")
    for run in RUNS:
        expected = run.rows(0.5)[1]
        assert last.loc[run.key, "value"] == expected["value"]
        outputs = last.loc[run.key, "outputs"]
        assert (None if outputs is None else np.asarray(outputs).tolist()) == expected["outputs"]


@pytest.mark.parametrize("width", [1, 2])
def test_types_do_not_depend_on_which_run_comes_first(tmp_path: Path, width: int) -> None:
    alone = Store(tmp_path, (Toy,))
    alone.put(Toy(width=width), Toy(width=width).rows(0.5))
    assert pq.read_schema(next((tmp_path / "rows").iterdir())).equals(alone.schema)
    assert str(alone.frame()["gap"].dtype) == "float64"


def test_an_empty_store_has_the_columns_of_a_full_one(tmp_path: Path, store: Store) -> None:
    pd.testing.assert_series_equal(Store(tmp_path / "new", (Toy,)).frame().dtypes, store.frame().dtypes)
    assert not (tmp_path / "new").exists()


def test_a_report_reads_without_knowing_the_classes(store: Store) -> None:
    pd.testing.assert_frame_equal(Store(store.out).frame(), store.frame())


def test_a_reading_names_what_it_left_out_once_for_each_reason(store: Store) -> None:
    paths = [store.rows / f"{run.key}.parquet" for run in RUNS[:3]]
    paths[0].write_bytes(b"")
    for path in paths[1:]:
        path.write_bytes((store.rows / f"{RUNS[4].key}.parquet").read_bytes())
    found = Store(store.out, (Toy,)).read()
    assert set(found.frame["key"]) == {run.key for run in RUNS[3:]}
    one, several = sorted(found.left_out, key=lambda line: "2 files" in line)
    assert one.startswith(f"{paths[0].name} is torn or not Parquet: left out")
    first = min(path.name for path in paths[1:])
    assert several.startswith(f"2 files of rows are of another key than its name says (the first: {first})")
    with pytest.warns(UserWarning, match="left out") as caught:
        pd.testing.assert_frame_equal(Store(store.out, (Toy,)).frame(), found.frame)
    assert len(caught) == 2


def test_a_session_reads_each_file_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorting out what is there, asking what is finished and for the rows are one reading; so are later questions."""
    read: list[str] = []

    def counted(content: bytes, key: str) -> object:
        read.append(key)
        return examine(content, key)

    monkeypatch.setattr(module, "examine", counted)
    monkeypatch.setattr(module, "TOGETHER", 2)
    before = store.frame()
    fresh = Store(store.out, (Toy,))
    fresh.tidy()
    assert fresh.finished() == {run.key for run in RUNS}
    pd.testing.assert_frame_equal(fresh.frame(), before)
    assert sorted(read[len(RUNS) :]) == sorted(run.key for run in RUNS)
    # what is new, replaced or gone is seen
    more, gone = Toy(width=3), RUNS[2]
    fresh.put(more, more.rows(0.5))
    fresh.put(RUNS[0], RUNS[0].rows(0.25))
    (store.rows / f"{gone.key}.parquet").unlink()
    read.clear()
    found = fresh.frame()
    assert sorted(read) == sorted([more.key, RUNS[0].key])
    pd.testing.assert_frame_equal(found, pd.read_parquet(str(store.out) + "/rows"))
    assert set(found["key"]) == fresh.finished() == {run.key for run in [*RUNS, more]} - {gone.key}


def test_things_aside_are_never_overwritten(store: Store) -> None:
    for _ in range(3):
        (store.rows / "notes.txt").write_text("mine")
        with pytest.warns(UserWarning, match="no file of rows"):
            store.tidy()
    assert sorted(path.name for path in store.aside.iterdir()) == ["notes.txt", "notes.txt.1", "notes.txt.2"]


def test_rows_of_an_earlier_version_are_done_again(store: Store) -> None:
    newer = type("Toy", (Toy,), {"version": 2, "__module__": __name__})
    with pytest.warns(UserWarning, match="other run or version"):
        assert len(Store(store.out, (newer,)).tidy()) == len(RUNS)


def test_rows_from_before_a_column_was_measured_are_kept(store: Store) -> None:
    """Nor is a column that is measured no longer thrown away: the files keep it."""
    before = store.frame()
    columns = {name: kind for name, kind in Toy.columns.items() if name != "gap"} | {
        "count": int,
        "word": str,
    }
    newer = type("Toy", (Toy,), {"columns": columns, "__module__": __name__})
    again = Store(store.out, (newer,))
    assert again.finished() == store.finished() and again.tidy() == []
    frame = Store(store.out, (newer,)).frame()
    assert frame[["count", "word"]].isna().to_numpy().all()
    pd.testing.assert_frame_equal(frame.drop(columns=["count", "word"]), before.drop(columns="gap"))
    run = newer(width=9)
    again.put(run, [{"step": 1, "status": "finished", "count": 3, "word": "x"}])
    assert {"gap", "count", "word"} <= set(pd.read_parquet(str(store.out) + "/rows").columns)


def test_a_study_that_is_given_another_run_class_keeps_its_rows(store: Store) -> None:
    """Finished work is not repeated; all files can again be read as one table."""
    before = store.frame()
    wider = Store(store.out, (Toy, Other))
    assert wider.finished() == store.finished() and wider.tidy() == []
    wider.put(Other(height=1), [{"step": 1, "depth": 2.0}])
    frame = pd.read_parquet(str(store.out) + "/rows")
    pd.testing.assert_frame_equal(frame, wider.frame())
    assert {str(frame[name].dtype) for name in ("width", "height", "value", "depth")} == {"float64"}
    kept = frame.loc[frame["run"] == "Toy", before.columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, before, check_dtype=False)
    assert frame.loc[frame["run"] == "Toy", ["height", "depth"]].isna().to_numpy().all()
    again = Store(store.out, (Toy, Other))
    assert again.finished() == wider.finished() and again.tidy() == []


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (
            errno.ENOSPC,
            "no space left .* the 6 finished runs there are safe; free some space and give the same command",
        ),
        (errno.EDQUOT, "quota exceeded.* 6 finished runs .*; free some space"),
        (errno.EROFS, "read-only .* 6 finished runs .* choose another --out"),
        (errno.EIO, "input/output error.* 6 finished runs"),
    ],
)
def test_a_failing_disk_is_one_line_and_leaves_nothing_behind(
    store: Store, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    before = names(store.out)
    monkeypatch.setattr(os, "fsync", fail)
    new = Toy(width=5)
    with pytest.raises(UserError, match=words) as caught:
        store.put(new, new.rows(0.5))
    assert "\n" not in str(caught.value)
    assert names(store.out) == before
    assert new not in store


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", fail)
    with (
        pytest.raises(UserError, match=r"`out` is .*permission denied.*nothing was lost.*--out"),
        Store(tmp_path / "a").lock(),
    ):
        pass


def test_a_file_in_the_way_of_the_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match=r"`out` is .*file exists"), Store(tmp_path / "out").lock():
        pass


def test_one_process_at_a_time(store: Store) -> None:
    code = "import sys\nfrom regimes.study import Store\nwith Store(sys.argv[1]).lock(): print('in')"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(store.out)]
    with store.lock():
        other = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert f"another process (id {os.getpid()}) works there" in other.stderr
    assert subprocess.run(command, env=environment, capture_output=True, text=True).stdout == "in\n"


def test_what_was_half_written_is_removed(store: Store) -> None:
    (store.out / ".abc.parquet.123.partial").write_bytes(b"half")
    with store.lock():
        store.tidy()
        assert not list(store.out.glob("*.partial"))


def test_files_of_the_report_are_written_whole(store: Store) -> None:
    assert store.write_text("figures/a.svg", "α").read_text(encoding="utf-8") == "α"
    assert store.write_bytes("figures/a.svg", b"b").read_bytes() == b"b"
    assert names(store.out / "figures") == {"a.svg"}


def test_a_run_without_rows_is_refused(store: Store) -> None:
    with pytest.raises(UserError, match="without rows"):
        store.put(Toy(width=7), [])
