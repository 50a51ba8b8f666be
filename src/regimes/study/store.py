"""Rows on disk by key: atomic, readable from anywhere, and what is finished is never run again."""

from __future__ import annotations

import errno
import itertools
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, final

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from regimes.core.error import UserError
from regimes.study.lock import locked
from regimes.study.run import Run
from regimes.study.schema import conform, schema_of, table_of

__all__ = ["Store"]

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


@final
class Store:
    """An output directory: ``rows/<key>.parquet`` per finished run, ``aside/``, and reports.

    A file of rows appears under its name whole or not at all: it is written beside ``rows``, flushed to the
    disk and renamed. It carries its key, the class and the run itself (JSON) as Parquet metadata, and
    checksums of its pages. ``pandas.read_parquet(out + "/rows")`` reads all of them at any moment.

    Args:
        out: the directory; made when something is written.
        classes: the Run classes of the study. Without them (a report) files of any class are read.

    >>> import tempfile
    >>> store = Store(tempfile.mkdtemp())
    >>> len(store), len(store.frame())
    (0, 0)
    """

    def __init__(self, out: str | Path, classes: Sequence[type[Run]] = ()) -> None:
        self.out = Path(os.path.expanduser(out))  # which leaves the home of nobody as it is
        self.rows = self.out / "rows"
        self.aside = self.out / "aside"
        self.classes = {cls.__name__: cls for cls in classes}
        self.schema = schema_of(classes)
        self._sound: dict[str, tuple[tuple[int, int], pa.Table]] = {}

    def __len__(self) -> int:
        """Number of finished runs, by their file names."""
        return sum(1 for _ in self.rows.glob("*.parquet"))

    def __contains__(self, run: Run) -> bool:
        return self._path(run.key).is_file()

    def put(self, run: Run, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep the rows of a finished run.

        Raises:
            UserError: the rows do not fit the declared columns, or the directory cannot be written.
        """
        if not rows:
            raise UserError(f"{run!r} was finished without rows: expected at least one")
        table = table_of(run, rows, self.schema).replace_schema_metadata(
            {"key": run.key, "class": type(run).__name__, "run": run.canonical}
        )
        self._write(self._path(run.key), table)

    def finished(self) -> frozenset[str]:
        """Keys of the runs whose files are sound."""
        return frozenset(path.stem for path, _ in self._tables())

    def frame(self) -> pd.DataFrame:
        """All rows of the sound files, ordered by key and within a run as they were measured."""
        tables = [table.replace_schema_metadata() for _, table in self._tables()]
        whole = (
            pa.concat_tables(tables, promote_options="permissive") if tables else self.schema.empty_table()
        )
        return whole.to_pandas()

    def tidy(self) -> list[Path]:
        """Move what is no file of rows of this study from ``rows`` to ``aside``, with a warning.

        Its run is done again. Rows from before the study was given another run class are kept, and written again
        with its columns. Also removes what an interrupted process left half written. To be called with the lock
        held.
        """
        moved = []
        with self._disk():
            for left in self.out.glob(".*.partial"):
                left.unlink(missing_ok=True)
            for path in sorted(self.rows.iterdir()) if self.rows.is_dir() else ():
                found = self._load(path)
                if isinstance(found, str):
                    moved.append(self._move(path))
                    warnings.warn(f"{path} is {found}: moved to {moved[-1]}", stacklevel=2)
                elif not pq.read_schema(path).equals(found.schema):
                    self._write(path, found)
        return moved

    def write_text(self, name: str, text: str) -> Path:
        """Write a file of the report (UTF-8), whole or not at all; ``name`` may be ``figures/x.svg``."""
        return self.write_bytes(name, text.encode(errors="backslashreplace"))

    def write_bytes(self, name: str, content: bytes) -> Path:
        """Write a file of the report, whole or not at all."""
        return self._replace(self.out / name, content)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep every other process out of the directory; made if it is not there."""
        with ExitStack() as held:
            with self._disk():
                self.out.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(self.out / ".lock"))
            try:
                yield
            finally:
                with suppress(OSError):
                    for left in self.out.glob(".*.partial"):
                        left.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.rows / f"{key}.parquet"

    def _write(self, path: Path, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, write_page_checksum=True)
        self._replace(path, sink.getvalue().to_pybytes())

    def _replace(self, target: Path, content: bytes) -> Path:
        # beside rows, not in it: whoever reads rows at this moment must not meet half a file
        partial = self.out / f".{target.name}.{os.getpid()}.partial"
        with self._disk():
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with partial.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(partial, target)
            except BaseException:
                with suppress(OSError):
                    partial.unlink(missing_ok=True)
                raise
        return target

    def _tables(self) -> Iterator[tuple[Path, pa.Table]]:
        for path in sorted(self.rows.glob("*.parquet")):
            found = self._load(path)
            if isinstance(found, str):
                warnings.warn(f"{path} is {found}: not read", stacklevel=3)
            else:
                yield path, found

    def _load(self, path: Path) -> pa.Table | str:
        """The table of a sound file, or in words what is wrong with it."""
        try:
            stat = path.stat()
            known = self._sound.get(path.name)
            if known is not None and known[0] == (stat.st_mtime_ns, stat.st_size):
                return known[1]
            if path.suffix != ".parquet":
                return "no file of rows"
            table = pq.ParquetFile(pa.BufferReader(path.read_bytes()), page_checksum_verification=True).read()
        except (OSError, pa.ArrowException) as error:
            if isinstance(error, PermissionError):
                raise UserError(
                    f"`out` is {str(self.out)!r}: {path} cannot be read (permission denied)"
                ) from None
            return "torn or not Parquet"
        table = self._sorted_out(table, path.stem)
        if isinstance(table, str):
            return table
        self._sound[path.name] = ((stat.st_mtime_ns, stat.st_size), table)
        return table

    def _sorted_out(self, table: pa.Table, key: str) -> pa.Table | str:
        """The rows of a readable file in the columns of the study, or in words what is wrong with it.

        Every part of its identity must say the same.
        """
        metadata = table.schema.metadata or {}
        name, text = metadata.get(b"class", b"").decode(), metadata.get(b"run", b"").decode()
        if not name or not text or "key" not in table.column_names:
            return "not written by a study"
        if metadata.get(b"key", b"").decode() != key or set(table.column("key").to_pylist()) != {key}:
            return "of another key than its name says"
        if not self.classes:
            return table
        if name not in self.classes:
            return f"of another study (run class {name})"
        conformed = conform(table, self.schema, self.classes[name])
        if conformed is None:
            return "of an earlier form of the study (other columns)"
        try:
            same = self.classes[name](**json.loads(text)["fields"]).key == key
        except (ValueError, KeyError, TypeError):
            same = False
        return conformed if same else "of an earlier form of the study (other run or version)"

    def _move(self, path: Path) -> Path:
        self.aside.mkdir(exist_ok=True)
        names = (
            path.name,
            *(f"{path.name}.{number}" for number in itertools.islice(itertools.count(1), 10_000)),
        )
        target = next(self.aside / name for name in names if not (self.aside / name).exists())
        os.replace(path, target)
        self._sound.pop(path.name, None)
        return target

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """Turn an error of the file system into one line that says what is safe and how to go on."""
        try:
            yield
        except OSError as error:
            count = 0
            with suppress(OSError):
                count = len(self)
            safe = f"the {count} finished runs there are safe" if count else "nothing was lost"
            reason = (error.strerror or str(error)).lower()
            if error.errno in FULL:
                way = "free some space and give the same command again"
            elif error.errno in FORBIDDEN:
                way = "make it writable and give the same command again, or choose another --out"
            else:
                way = "give the same command again, or choose another --out"
            raise UserError(
                f"`out` is {str(self.out)!r}: cannot write there ({reason}); {safe}; {way}"
            ) from error
