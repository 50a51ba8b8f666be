"""Rows on disk by key: atomic, readable from anywhere, and what is finished is never run again."""

from __future__ import annotations

import errno
import itertools
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import pandas as pd
import pyarrow as pa

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.study.lock import locked
from regimes.study.run import Run
from regimes.study.schema import covers, schema_of, table_of, widened
from regimes.study.seal import examine, fit, seal, sealed_run

__all__ = ["Reading", "Store"]

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


State = tuple[int, int]
"""When a file was written, in ns, and its size."""
TOGETHER = 500


@dataclass(frozen=True)
class Reading:
    """The rows of a directory.

    Attributes:
        frame: all rows of the sound files, ordered by key and within a run as they were measured.
        left_out: which files are not in it and why, one line for each reason.
    """

    frame: pd.DataFrame
    left_out: tuple[str, ...]


@final
@checked
class Store:
    """An output directory: ``rows/<key>.parquet`` per finished run, ``aside/``, and reports.

    A file of rows appears under its name whole or not at all: it is written beside ``rows``, flushed to the
    disk and renamed. It carries its key, the class, the run itself (JSON) and a digest of its values as Parquet
    metadata, and checksums of its pages. ``pandas.read_parquet(out + "/rows")`` reads all of them at any moment.

    The store is the only reader of rows in the library: what is run, what is claimed and what is shown rest on the
    same files. One that is damaged, altered, or not of this study is left out by name.

    Args:
        out: the directory; made when something is written.
        classes: the Run classes of the study. Without them files of any class are read.

    >>> import tempfile
    >>> store = Store(tempfile.mkdtemp())
    >>> len(store), len(store.frame())
    (0, 0)
    """

    def __init__(self, out: str | Path, classes: Sequence[type[Run]] = ()) -> None:
        self.out = Path(out)
        self.rows = self.out / "rows"
        self.aside = self.out / "aside"
        self.classes = {cls.__name__: cls for cls in classes}
        self.schema = schema_of(classes)
        self._known: dict[
            str, tuple[State, str]
        ] = {}  # of each file that was read, and what is wrong with it
        self._tables: list[pa.Table] = []  # the rows of the sound ones, in as few tables as will do

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
        self._replace(self._path(run.key), seal(table_of(run, rows, self.schema), run.canonical))

    def finished(self) -> frozenset[str]:
        """Keys of the runs whose files are sound."""
        self._refresh()
        return frozenset(Path(name).stem for name, (_, fault) in self._known.items() if not fault)

    def read(self) -> Reading:
        """All rows of the sound files, and what was left out.

        Raises:
            UserError: a file may not be read.
        """
        self._refresh()
        faults: defaultdict[str, list[str]] = defaultdict(list)
        for name in sorted(self._known):
            faults[self._known[name][1]].append(name)
        frame = self._whole().to_pandas()
        if not frame["key"].is_monotonic_increasing:
            frame = frame.sort_values("key", kind="stable", ignore_index=True)
        return Reading(frame, tuple(_left_out(names, fault) for fault, names in faults.items() if fault))

    def frame(self) -> pd.DataFrame:
        """The rows of ``read``, with a warning for what was left out."""
        found = self.read()
        for line in found.left_out:
            warnings.warn(line, stacklevel=2)
        return found.frame

    def tidy(self) -> list[Path]:
        """Move what is no file of rows of this study from ``rows`` to ``aside``, with a warning.

        Its run is done again. Rows from before the study had another run class or measured another column are kept,
        and written again with its columns; what it no longer measures stays in the file. Also removes what an
        interrupted process left half written. To be called with the lock held.
        """
        moved = []
        self._known.clear()
        self._tables.clear()
        with self._disk():
            for left in self.out.glob(".*.partial"):
                left.unlink(missing_ok=True)
            for path in sorted(self.rows.iterdir()) if self.rows.is_dir() else ():
                state = _state(path)
                raw = self._examined(path)
                found = self._fitted(raw)
                if isinstance(raw, str) or isinstance(found, str):
                    moved.append(self._move(path))
                    warnings.warn(f"{path} is {found}: moved to {moved[-1]}", stacklevel=2)
                    continue
                if not covers(raw, self.schema):
                    self._replace(path, seal(widened(raw, found), sealed_run(raw)))
                    state = _state(path)
                self._learn(path.name, state, found)
        return moved

    def write_text(self, name: str, text: str) -> Path:
        """Write a file of the report (UTF-8), whole or not at all; ``name`` may be ``figures/x.svg``."""
        return self.write_bytes(name, text.encode(errors="backslashreplace"))

    def write_bytes(self, name: str, content: bytes) -> Path:
        """Write a file of the report, whole or not at all."""
        return self._replace(self.out / name, content)

    def remove(self, name: str) -> None:
        """Remove a file of the report, if it is there."""
        with self._disk():
            (self.out / name).unlink(missing_ok=True)

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

    def _refresh(self) -> None:
        """Read the files that are new or have changed; every other one is known."""
        there: dict[str, State] = {}
        for path in sorted(self.rows.glob("*.parquet")):
            with suppress(OSError):
                there[path.name] = _state(path)
        if gone := {name for name, (state, _) in self._known.items() if there.get(name) != state}:
            self._forget(gone)
        for name, state in there.items():
            if name not in self._known:
                self._learn(name, state, self._fitted(self._examined(self.rows / name)))

    def _learn(self, name: str, state: State, found: pa.Table | str) -> None:
        """Keep what a file holds. A table by itself takes many times the memory of its rows."""
        if isinstance(found, str):
            self._known[name] = (state, found)
            return
        self._known[name] = (state, "")
        self._tables.append(found.replace_schema_metadata())
        if len(self._tables) > TOGETHER:
            self._tables = [self._whole().combine_chunks()]

    def _forget(self, names: set[str]) -> None:
        """Drop files and their rows."""
        for name in names:
            del self._known[name]
        keys = {Path(name).stem for name in names}
        whole = self._whole()
        self._tables = [
            whole.filter(pa.array([key not in keys for key in whole.column("key").to_pylist()], pa.bool_()))
        ]

    def _whole(self) -> pa.Table:
        """All rows that were read, in the order in which they were."""
        if not self._tables:
            return self.schema.empty_table()
        return pa.concat_tables(self._tables, promote_options="permissive")

    def _examined(self, path: Path) -> pa.Table | str:
        """The table in a file, or in words what is wrong with it."""
        if path.suffix != ".parquet":
            return "no file of rows"
        try:
            return examine(path.read_bytes(), path.stem)
        except PermissionError:
            raise UserError(
                f"`out` is {str(self.out)!r}: {path} cannot be read (permission denied)"
            ) from None
        except OSError:
            return "torn or not Parquet"

    def _fitted(self, found: pa.Table | str) -> pa.Table | str:
        """The same in the columns of the study, or in words why it is not of it."""
        return fit(found, self.schema, self.classes) if self.classes and not isinstance(found, str) else found

    def _move(self, path: Path) -> Path:
        self.aside.mkdir(exist_ok=True)
        names = (
            path.name,
            *(f"{path.name}.{number}" for number in itertools.islice(itertools.count(1), 10_000)),
        )
        target = next(self.aside / name for name in names if not (self.aside / name).exists())
        os.replace(path, target)
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


def _state(path: Path) -> State:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


def _left_out(names: Sequence[str], fault: str) -> str:
    """One line for the files that have one fault."""
    if len(names) == 1:
        return f"{names[0]} is {fault}: left out; `regimes run` does its run again"
    which = f"{len(names)} files of rows are {fault} (the first: {names[0]})"
    return f"{which}: left out; `regimes run` does their runs again"
