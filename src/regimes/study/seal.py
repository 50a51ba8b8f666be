"""One file of rows as bytes: sealed when it is written, examined whenever it is read.

A file carries what it says three times over, so that no part of it can change unseen: its key is the hash of the
run in its metadata, the run's parameters are columns of its rows, and a digest covers every value in them. A
difference is named in words; the file is then no file of rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from regimes.study.run import Run, canonical, key_of
from regimes.study.schema import conform

__all__ = ["UNREADABLE", "examine", "fit", "foreign", "seal", "sealed_run"]

UNREADABLE = (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError, pa.ArrowException)
TORN = "torn or not Parquet"
ALTERED = "altered since it was written"


def seal(table: pa.Table, run: str) -> bytes:
    """The file of a run's rows, with the run and a digest of the values as Parquet metadata.

    Args:
        table: the rows.
        run: its ``Run.canonical``.
    """
    identity = {"key": key_of(run), "class": json.loads(run)["run"], "run": run, "digest": _digest(table)}
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(identity), sink, write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def examine(content: bytes, key: str) -> pa.Table | str:
    """The rows in a file, or in words what is wrong with it, whatever is in it.

    Args:
        content: of the file.
        key: that its name gives.
    """
    try:
        # a file is too small for threads
        table = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True).read(
            use_threads=False
        )
        return _fault(table, key) or table
    except UNREADABLE:
        return TORN


def sealed_run(table: pa.Table) -> str:
    """The canonical JSON of the run that an examined file is of."""
    return table.schema.metadata[b"run"].decode()


def fit(table: pa.Table, schema: pa.Schema, classes: Mapping[str, type[Run]]) -> pa.Table | str:
    """Examined rows in the columns of a study, or in words why they are not of it as it is now."""
    run = sealed_run(table)
    if fault := foreign(run, classes):
        return fault
    try:
        conformed = conform(table, schema, classes[json.loads(run)["run"]])
    except pa.ArrowException:  # an integer that is no float
        conformed = None
    return conformed if conformed is not None else "of an earlier form of the study (other columns)"


def foreign(run: str, classes: Mapping[str, type[Run]]) -> str:
    """In words why a run, given its canonical JSON, is not of a study as it is now; or nothing."""
    content = json.loads(run)
    cls = classes.get(content["run"])
    if cls is None:
        return f"of another study (run class {content['run']})"
    try:
        same = cls(**content["fields"]).key == key_of(run)
    except (ValueError, TypeError):
        same = False
    return "" if same else "of an earlier form of the study (other run or version)"


def _fault(table: pa.Table, key: str) -> str:
    """What tells that a table is not the rows of the run of that key, or nothing."""
    told = {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}
    if not {"key", "class", "run"} <= told.keys() or "key" not in table.column_names:
        return "not written by a study"
    if len(set(table.column_names)) < table.num_columns:
        return ALTERED
    if told["key"] != key or set(table.column("key").to_pylist()) != {key}:
        return "of another key than its name says"
    run = json.loads(told["run"])
    if key_of(told["run"]) != key or run["run"] != told["class"]:
        return ALTERED
    if "digest" in told:
        return "" if told["digest"] == _digest(table) else ALTERED
    # written before rows had a digest: their parameters are known all the same
    return "" if _holds(table, run["fields"]) else ALTERED


def _digest(table: pa.Table) -> str:
    """SHA-256 of names and values, column by column."""
    columns = [[name, table.column(place).to_pylist()] for place, name in enumerate(table.column_names)]
    return hashlib.sha256(json.dumps(columns, default=repr).encode()).hexdigest()


def _holds(table: pa.Table, fields: Mapping[str, Any]) -> bool:
    """Whether every row has the parameters of its run."""
    return all(
        _tells(cell, value) for name, value in fields.items() for cell in table.column(name).to_pylist()
    )


def _tells(cell: Any, value: Any) -> bool:
    """Whether a cell is the canonical JSON value of a parameter, or its text in a column of texts."""
    if isinstance(cell, list) and isinstance(value, Sequence) and not isinstance(value, str):
        return len(cell) == len(value) and all(map(_tells, cell, value))
    if isinstance(cell, str) and not isinstance(value, str):
        return cell == json.dumps(value, sort_keys=True)
    return bool(canonical(cell) == value)
