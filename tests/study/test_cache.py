"""With the cache a reading is what it is without it, whatever has changed; and parses what has changed alone."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from regimes.study import run as run_module
from regimes.study import store as module
from regimes.study.cache import digest_of
from regimes.study.run import Run
from regimes.study.seal import examine
from regimes.study.store import Reading, Store
from tests.study.test_store import Other
from tests.study.toy import Toy

RUNS = [Toy(width=width, seed=seed) for width in (1, 2) for seed in range(3)]
Change = Callable[[Store], object]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Six runs and their cache."""
    monkeypatch.setattr(module, "WORTH", 1)
    found = filled(tmp_path / "out")
    found.read()
    found.keep()
    assert len(list(found.cache.iterdir())) == 1
    return found


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the files that are parsed from now on."""
    keys: list[str] = []

    def counted(content: bytes, key: str) -> object:
        keys.append(key)
        return examine(content, key)

    monkeypatch.setattr(module, "examine", counted)
    return keys


def filled(out: Path, seconds: float = 0.5) -> Store:
    store = Store(out, (Toy,))
    for run in RUNS:
        store.put(run, run.rows(seconds))
    return store


def plain(out: Path, classes: tuple[type[Run], ...] = (Toy,)) -> Reading:
    """A reading without the cache."""
    store = Store(out, classes)
    store.cache = out / "nowhere"
    return store.read()


def assert_same(found: Reading, expected: Reading) -> None:
    pd.testing.assert_frame_equal(found.frame, expected.frame, check_exact=True)
    assert found.left_out == expected.left_out


def file_of(store: Store, place: int = 0) -> Path:
    return store.rows / f"{RUNS[place].key}.parquet"


def kept(store: Store) -> Path:
    return next(store.cache.iterdir())


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)


def other_values(store: Store) -> None:
    store.put(RUNS[0], RUNS[0].rows(0.25))


def altered(store: Store) -> None:
    table = pq.ParquetFile(pa.BufferReader(file_of(store).read_bytes())).read()
    pq.write_table(
        table.set_column(table.column_names.index("value"), "value", pa.array([7.0, 8.0])), file_of(store)
    )


def replaced(store: Store) -> None:
    file_of(store).write_bytes(file_of(store, 1).read_bytes())


def folder_in_place_of(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


def no_arrow(store: Store) -> None:
    kept(store).rename(store.cache / f"{digest_of(b'rows')}.arrow").write_bytes(b"rows")


def of_another_study(store: Store) -> None:
    """The same runs with other values: a cache that is sound in itself."""
    other = filled(store.out.parent / "other", 0.75)
    other.read()
    other.keep()
    shutil.rmtree(store.cache)
    shutil.copytree(other.cache, store.cache)


CHANGES: dict[str, Change] = {
    "nothing": lambda store: None,
    "a file altered": altered,
    "a byte of a file": lambda store: flip(file_of(store)),
    "a file replaced by that of another run": replaced,
    "a file emptied": lambda store: file_of(store).write_bytes(b""),
    "a directory in place of a file": lambda store: folder_in_place_of(file_of(store)),
    "a run stored again": other_values,
    "a file removed": lambda store: file_of(store).unlink(),
    "a file added": lambda store: store.put(Toy(width=9), Toy(width=9).rows(0.5)),
    "all files removed": lambda store: shutil.rmtree(store.rows),
    "the cache cut off": lambda store: os.truncate(kept(store), 1000),
    "a byte of the cache": lambda store: flip(kept(store)),
    "the cache emptied": lambda store: os.truncate(kept(store), 0),
    "the cache under another name": lambda store: kept(store).rename(store.cache / "rows.arrow"),
    "a cache that is no Arrow": no_arrow,
    "a directory in place of the cache": lambda store: folder_in_place_of(kept(store)),
    "a file in place of its directory": lambda store: shutil.rmtree(store.cache) or store.cache.touch(),
    "the cache of another study": of_another_study,
    "the cache removed": lambda store: shutil.rmtree(store.cache),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_reading_with_the_cache_is_one_without_it(store: Store, name: str) -> None:
    CHANGES[name](store)
    expected = plain(store.out)
    for _ in range(2):
        again = Store(store.out, (Toy,))
        assert_same(again.read(), expected)
        again.keep()
    again.tidy() if not expected.left_out else None
    assert again.finished() == set(expected.frame["key"])


def newer(**changes: object) -> type[Run]:
    return type("Toy", (Toy,), {**changes, "__module__": __name__})


@pytest.mark.parametrize(
    "classes",
    [
        (newer(version=2),),
        (newer(columns={**Toy.columns, "count": float}),),
        (newer(columns={name: kind for name, kind in Toy.columns.items() if name != "gap"}),),
        (Toy, Other),
        (Other,),
        (),
    ],
    ids=["version", "a column more", "a column less", "a class more", "another class", "none"],
)
def test_a_cache_is_of_a_study_as_it_is_now(store: Store, classes: tuple[type[Run], ...]) -> None:
    expected = plain(store.out, classes)
    for _ in range(2):
        again = Store(store.out, classes)
        assert_same(again.read(), expected)
        again.keep()
    assert_same(Store(store.out, (Toy,)).read(), plain(store.out))


def test_what_did_not_change_is_not_parsed(store: Store, parsed: list[str]) -> None:
    assert_same(Store(store.out, (Toy,)).read(), plain(store.out))
    assert sorted(parsed) == sorted(run.key for run in RUNS)  # by the plain one alone
    parsed.clear()
    Store(store.out, (Toy,)).tidy()
    assert not parsed
    other_values(store)
    again = Store(store.out, (Toy,))
    again.read()
    assert parsed == [RUNS[0].key]
    again.keep()
    parsed.clear()
    assert_same(Store(store.out, (Toy,)).read(), again.read())
    assert not parsed


def test_rows_that_lack_a_column_are_written_again_once(store: Store, parsed: list[str]) -> None:
    """A reading that knows of a column more does not hide from the next session which files lack it."""
    wide = newer(columns={**Toy.columns, "count": float})
    reader = Store(store.out, (wide,))
    expected = reader.read()
    reader.keep()
    session = Store(store.out, (wide,))
    assert session.tidy() == [] and session.finished() == {run.key for run in RUNS}
    session.keep()
    assert all("count" in pq.read_schema(path).names for path in store.rows.iterdir())
    parsed.clear()
    assert_same(Store(store.out, (wide,)).read(), expected)
    assert not parsed


def test_few_files_need_no_cache(tmp_path: Path) -> None:
    small = filled(tmp_path)
    small.read()
    small.keep()
    assert not small.cache.exists()


@pytest.mark.parametrize("step", ["mkdir", "open", "fsync", "replace", "unlink"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EROFS, "read-only file system")])
def test_a_cache_that_is_not_written_costs_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    """A kill or a directory that cannot be written, at each step."""

    def fail(*arguments: object, **options: object) -> None:
        raise error

    other_values(store)
    again = Store(store.out, (Toy,))
    expected = again.read()
    with monkeypatch.context() as broken:
        broken.setattr(os if step in ("fsync", "replace") else Path, step, fail)
        if isinstance(error, KeyboardInterrupt):
            with pytest.raises(KeyboardInterrupt):
                again.keep()
        else:
            again.keep()
    assert_same(Store(store.out, (Toy,)).read(), expected)
    again.keep()
    assert_same(Store(store.out, (Toy,)).read(), expected)


def test_two_processes_may_keep_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each removes what the other wrote, also while a third one is about to read it."""
    first, second = Store(store.out, (Toy,)), Store(store.out, (Toy,))
    for number, one in enumerate((first, second)):
        one.put(RUNS[number], RUNS[number].rows(0.125))
        one.read()
    first.keep()
    second.keep()
    first.read()
    first.keep()
    expected = plain(store.out)
    assert_same(Store(store.out, (Toy,)).read(), expected)
    read = Path.read_bytes

    def late(path: Path) -> bytes:
        if path.suffix == ".arrow":
            path.unlink()
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", late)
    assert_same(Store(store.out, (Toy,)).read(), expected)


def test_an_interrupted_reading_can_be_repeated(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    again = Store(store.out, (Toy,))
    read = Path.read_bytes

    def interrupted(path: Path) -> bytes:
        if path == max(store.rows.iterdir()):
            raise KeyboardInterrupt
        return read(path)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "read_bytes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            again.read()
    assert_same(again.read(), plain(store.out))


def test_a_key_is_computed_once_and_goes_with_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    count: list[str] = []
    whole = run_module.key_of

    def counted(text: str) -> str:
        count.append(text)
        return whole(text)

    monkeypatch.setattr(run_module, "key_of", counted)
    run = Toy(width=1)
    assert {run.key for _ in range(5)} == {run.key} and hash(run) == hash(run) and len(count) == 1
    assert run.model_copy(update={"width": 2}).key == Toy(width=2).key != run.key
    assert pickle.loads(pickle.dumps(run)).key == run.key == run.model_copy().key
    assert run == Toy(width=1) and dict(run) == dict(Toy(width=1)) and repr(run) == repr(Toy(width=1))
