"""The rows of many files in one: made from them, good for speed alone, and of no use once it has changed.

A reading of a study reads and hashes every file of rows. What a file with this hash holds need not be found out again.
The one file of them is named by the hash of its own content, so that a damaged one is none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

import regimes
from regimes.study.seal import UNREADABLE

__all__ = ["Cache", "chosen", "digest_of", "find", "pack"]


@dataclass(frozen=True)
class Cache:
    """Rows of files that were examined, found sound, and have every column of the study.

    Attributes:
        rows: of all the files, those of one file together.
        files: key of a run -> SHA-256 of its file, and its ``Run.canonical``.
    """

    rows: pa.Table
    files: Mapping[str, tuple[str, str]]


def digest_of(content: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def chosen(rows: pa.Table, keys: set[str], *, out: bool = False) -> pa.Table:
    """The rows of these runs, in their order; with ``out`` the others."""
    among = rows.column("key").to_pandas().isin(keys).to_numpy(bool)
    return rows.filter(pa.array(among != out))


def pack(cache: Cache) -> bytes:
    """A cache as an Arrow file."""
    told = {"version": regimes.__version__, "files": json.dumps(cache.files)}
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, cache.rows.schema.with_metadata(told)) as file:
        file.write_table(cache.rows.replace_schema_metadata(told))
    return sink.getvalue().to_pybytes()


def find(folder: Path, schema: pa.Schema) -> Cache | None:
    """The cache in a folder, if there is a sound one in these columns, written by this version."""
    with suppress(OSError):
        for path in sorted(folder.glob("*.arrow")):
            with suppress(*UNREADABLE):
                content = path.read_bytes()
                if digest_of(content) == path.stem and (found := _unpacked(content, schema)) is not None:
                    return found
    return None


def _unpacked(content: bytes, schema: pa.Schema) -> Cache | None:
    rows = pa.ipc.open_file(pa.BufferReader(content)).read_all()
    told = rows.schema.metadata or {}
    if told.get(b"version") != regimes.__version__.encode() or not rows.schema.equals(schema):
        return None
    rows.validate(full=True)
    files = {key: (digest, run) for key, (digest, run) in json.loads(told[b"files"]).items()}
    return Cache(rows.replace_schema_metadata(), files)
