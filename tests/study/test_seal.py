"""No part of a file of rows changes unseen: an altered one is named, is in no table, and its run is done again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from regimes.study.schema import schema_of, table_of
from regimes.study.seal import examine, seal
from regimes.study.store import Store
from tests.study.test_schema import FULL, Wide
from tests.study.toy import Fragile, Toy

RUNS = [Toy(width=width, seed=seed) for width in (1, 2) for seed in range(3)]
Change = Callable[[pa.Table], pa.Table]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = Store(tmp_path / "out", (Toy,))
    for run in RUNS:
        found.put(run, run.rows(0.5))
    return found


def table_in(path: Path) -> pa.Table:
    return pq.ParquetFile(pa.BufferReader(path.read_bytes())).read()


def file_of(store: Store, place: int = 0) -> Path:
    return store.rows / f"{RUNS[place].key}.parquet"


def set_to(
    table: pa.Table, name: str, change: Callable[[Any], Any], kind: pa.DataType | None = None
) -> pa.Table:
    """The table with every value of a column changed, its metadata as it was."""
    place = table.column_names.index(name)
    values = [change(value) for value in table.column(name).to_pylist()]
    column = pa.array(values, kind or table.schema.field(name).type)
    return table.set_column(place, name, column)


def told(table: pa.Table, **changes: str | None) -> pa.Table:
    """The table with other metadata; None takes a name away."""
    metadata = {name.decode(): value.decode() for name, value in table.schema.metadata.items()} | changes
    return table.replace_schema_metadata({name: text for name, text in metadata.items() if text is not None})


def run_with(table: pa.Table, **changes: Any) -> str:
    """The run in the metadata of a table, changed."""
    content = json.loads(table.schema.metadata[b"run"])
    return json.dumps({**content, **changes}, sort_keys=True, separators=(",", ":"))


def twice(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table, table])


ALTERED: dict[str, Change] = {
    "a value": lambda table: set_to(table, "value", lambda value: 2 * value + 1),
    "the last bit of a value": lambda table: set_to(
        table, "value", lambda value: value * (1 + 2**-52) + 5e-324
    ),
    "a missing value": lambda table: set_to(table, "gap", lambda value: 1.0),
    "a value taken away": lambda table: set_to(table, "value", lambda value: None),
    "a value in a list": lambda table: set_to(table, "outputs", lambda value: [9.0]),
    "a word": lambda table: set_to(table, "status", lambda value: "diverged"),
    "a parameter": lambda table: set_to(table, "width", lambda value: value + 1),
    "the class of a row": lambda table: set_to(table, "run", lambda value: "Other"),
    "a row twice": twice,
    "a row less": lambda table: table.slice(1),
    "the order of rows": lambda table: table.take([1, 0]),
    "a foreign row": lambda table: pa.concat_tables([table, table.slice(1)]),
    "a column less": lambda table: table.drop_columns(["gap"]),
    "a column more": lambda table: table.append_column("more", pa.array([1.0, 2.0])),
    "a column twice": lambda table: table.append_column("value", table.column("value")),
    "columns exchanged": lambda table: table.rename_columns(
        [{"value": "gap", "gap": "value"}.get(name, name) for name in table.column_names]
    ),
    "single precision": lambda table: set_to(table, "value", lambda value: value, pa.float32()),
    "numbers as texts": lambda table: set_to(table, "value", str, pa.string()),
    "the run": lambda table: told(table, run=run_with(table, fields={"width": 9})),
    "the version": lambda table: told(table, run=run_with(table, version=2)),
    "the class": lambda table: told(table, **{"class": "Fragile"}),
    "the digest": lambda table: told(table, digest="0" * 64),
    "no JSON": lambda table: told(table, run="{"),
    "nested without end": lambda table: told(table, run="[" * 100_000),
    "no text": lambda table: table.replace_schema_metadata({**table.schema.metadata, b"run": b"\xff\xfe"}),
    "the key in a row": lambda table: set_to(table, "key", lambda value: RUNS[1].key),
    "the key": lambda table: told(table, key=RUNS[1].key),
    "no metadata": lambda table: table.replace_schema_metadata(None),
    "nothing": lambda table: table.slice(0, 0),
}

# What was written before rows had a digest: all that can be checked without one.
OLD = (
    "a parameter", "numbers as texts", "a column twice", "the run", "the version", "the class", "the key in a row",
)  # fmt: skip
CHANGES = {**ALTERED, **{f"{name}, in an old file": ALTERED[name] for name in OLD}}


def assert_left_out(store: Store, victim: Toy, before: pd.DataFrame) -> None:
    """Named and in no table, whoever reads; moved aside and done again by the next session."""
    for classes in ((Toy,), (Toy, Fragile)):
        found = Store(store.out, classes).read()
        assert victim.key not in set(found.frame["key"])
        assert victim.key not in Store(store.out, classes).finished()
        assert [line for line in found.left_out if victim.key in line]
    fresh = Store(store.out, (Toy,))
    with pytest.warns(UserWarning, match=victim.key):
        assert [path.parent for path in fresh.tidy()] == [store.aside]
    assert fresh.finished() == {run.key for run in RUNS} - {victim.key}
    fresh.put(victim, victim.rows(0.5))
    pd.testing.assert_frame_equal(Store(store.out, (Toy,)).frame(), before)
    assert fresh.tidy() == []


@pytest.mark.parametrize("name", CHANGES)
def test_an_altered_file_is_named_and_left_out(store: Store, name: str) -> None:
    before, path = store.frame(), file_of(store)
    table = table_in(path)
    if name.endswith("old file"):
        table = told(table, digest=None)
    changed = CHANGES[name](table)
    assert not changed.equals(table, check_metadata=True)
    pq.write_table(changed, path)
    assert_left_out(store, RUNS[0], before)


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[40] ^= 0xFF  # within the first page, which its checksum guards
    path.write_bytes(content)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def swapped(path: Path) -> None:
    path.write_bytes((path.parent / f"{RUNS[1].key}.parquet").read_bytes())


def plain(path: Path) -> None:
    pd.DataFrame({"key": [path.stem]}).to_parquet(path)


def by_pandas(path: Path) -> None:
    pd.read_parquet(path).assign(value=7.0).to_parquet(path)


def is_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def of_other_columns(path: Path) -> None:
    pq.write_table(set_to(told(table_in(path), digest=None), "gap", str, pa.string()), path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (torn, "torn"),
        (flipped, "torn"),
        (emptied, "torn"),
        (is_folder, "torn"),
        (swapped, "of another key"),
        (plain, "not written by a study"),
        (by_pandas, "not written by a study"),
        (of_other_columns, "other columns"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(store: Store, spoil: Callable[[Path], None], words: str) -> None:
    before = store.frame()
    spoil(file_of(store))
    assert [line for line in Store(store.out, (Toy,)).read().left_out if words in line]
    assert_left_out(store, RUNS[0], before)


def test_rows_of_a_class_that_the_study_has_not_are_left_out(store: Store) -> None:
    before = store.frame()
    stranger = Fragile(number=1)
    Store(store.out, (Fragile,)).put(stranger, [{"value": 1.0}])
    found = Store(store.out, (Toy,)).read()
    pd.testing.assert_frame_equal(found.frame, before)
    assert [
        stranger.key in line and "of another study (run class Fragile)" in line for line in found.left_out
    ] == [True]


def test_rows_from_before_there_was_a_digest_are_read(store: Store) -> None:
    before = store.frame()
    for path in store.rows.iterdir():
        pq.write_table(told(table_in(path), digest=None), path)
    assert Store(store.out, (Toy,)).tidy() == []
    pd.testing.assert_frame_equal(Store(store.out, (Toy,)).frame(), before)


def test_any_byte_of_a_file_may_change(store: Store) -> None:
    """Every 7th byte in turn: the rows are as they were, or the file is refused."""
    content, key = file_of(store).read_bytes(), RUNS[0].key
    whole = table_in(file_of(store))
    for place in range(0, len(content), 7):
        found = examine(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :], key)
        assert isinstance(found, str) or found.equals(whole)


def test_a_parameter_of_any_kind_is_known_again() -> None:
    from regimes.study.seal import examine

    for run in (Wide(), Wide(size=3, classes=(1, 2), pair=(4, 5)), Wide(law="mup", classes="odd")):
        whole = table_of(run, [FULL, FULL], schema_of([Wide]))
        table = pq.ParquetFile(pa.BufferReader(seal(whole, run.canonical))).read()
        assert not isinstance(examine(rewritten(told(table, digest=None)), run.key), str)
        for name in Wide.model_fields:
            empty = pa.nulls(2, table.schema.field(name).type)
            altered = table.set_column(table.column_names.index(name), name, empty)
            if table.column(name).null_count < 2:
                assert isinstance(examine(rewritten(told(altered, digest=None)), run.key), str)


def rewritten(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()
