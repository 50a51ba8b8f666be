"""Rows on disk by key: atomic, readable from anywhere, and what is finished is never run again."""

from __future__ import annotations

import errno
import itertools
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import pandas as pd
import pyarrow as pa

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.study.cache import Cache, chosen, digest_of, find, pack
from regimes.study.lock import locked
from regimes.study.run import Run
from regimes.study.schema import covers, schema_of, table_of, widened
from regimes.study.seal import examine, fit, foreign, seal, sealed_run

__all__ = ["Reading", "Store", "opened"]

SUFFIX = ".parquet"
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


Stamp = tuple[int, int]
"""When a file was written, in ns, and its size."""
TOGETHER = 500
"""Tables of single files take many times the memory of their rows: so many are made one."""
WORTH = 200
"""So many files that had to be parsed are worth a new cache."""


@dataclass(frozen=True, slots=True)
class Known:
    """A file that was read.

    Attributes:
        stamp: of the file then.
        fault: what is wrong with it; empty if it is sound.
        digest: SHA-256 of its content.
        run: the canonical JSON of its run.
        whole: whether it has every column of the study.
    """

    stamp: Stamp
    fault: str
    digest: str = ""
    run: str = ""
    whole: bool = False


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
        self.cache = self.out / ".rows"
        self.classes = {cls.__name__: cls for cls in classes}
        self.schema = schema_of(classes)
        self._known: dict[str, Known] = {}  # by the key of the run, which names the file
        self._tables: list[pa.Table] = []  # the rows of the sound ones, in as few tables as will do
        self._single: list[pa.Table] = []  # those of the last few files, a table each
        self._parsed = 0  # files since the cache was read or written

    def __len__(self) -> int:
        """Number of finished runs, by their file names."""
        return len(self.stored())

    def __contains__(self, run: Run) -> bool:
        return self._path(run.key).is_file()

    def stored(self) -> frozenset[str]:
        """Keys of the finished runs, by their file names."""
        with suppress(OSError):
            names = os.listdir(self.rows)
            return frozenset(name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX))
        return frozenset()

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
        return frozenset(key for key, known in self._known.items() if not known.fault)

    def read(self) -> Reading:
        """All rows of the sound files, and what was left out.

        Raises:
            UserError: a file may not be read.
        """
        self._refresh()
        faults: defaultdict[str, list[str]] = defaultdict(list)
        for key in sorted(self._known):
            faults[self._known[key].fault].append(f"{key}{SUFFIX}")
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
        self._forget(set(self._known))
        with self._disk():
            for left in self.out.glob(".*.partial"):
                left.unlink(missing_ok=True)
            self._refresh()
            for name in sorted(os.listdir(self.rows)) if self.rows.is_dir() else ():
                key = name.removesuffix(SUFFIX)
                known = self._known.get(key) if key != name else None
                if known and not known.fault and (known.whole or not self.classes):
                    continue
                path = self.rows / name
                if known is None or known.fault:
                    moved.append(self._move(path))
                    what = "no file of rows" if known is None else known.fault
                    warnings.warn(f"{path} is {what}: moved to {moved[-1]}", stacklevel=2)
                    self._known.pop(key, None)
                else:
                    self._widen(path, known)
        return moved

    def keep(self) -> None:
        """Keep what was read in one file beside the rows, if that spares the next reading much.

        It is made from the files of rows, and can be removed at any time. Where it cannot be written, it is not.
        """
        files = {key: (one.digest, one.run) for key, one in self._known.items() if one.whole}
        if self._parsed < WORTH or not files:
            return
        rows = self._whole()
        content = pack(Cache(rows if len(files) == len(self._known) else chosen(rows, {*files}), files))
        with suppress(UserError, OSError):
            written = self.write_bytes(f"{self.cache.name}/{digest_of(content)}.arrow", content)
            self._parsed = 0
            for path in self.cache.iterdir():
                if path != written:
                    path.unlink()

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
        return self.rows / f"{key}{SUFFIX}"

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

    def _there(self) -> dict[str, Stamp]:
        """The files of rows by their keys, in the order of these."""
        found: dict[str, Stamp] = {}
        with suppress(OSError), os.scandir(self.rows) as entries:
            for entry in entries:
                with suppress(OSError):
                    if entry.name.endswith(SUFFIX):
                        found[entry.name.removesuffix(SUFFIX)] = _stamp(entry)
        return dict(sorted(found.items()))

    def _refresh(self) -> None:
        """Read the files that are new or have changed; every other one is known."""
        there = self._there()
        if gone := {key for key, known in self._known.items() if there.get(key) != known.stamp}:
            self._forget(gone)
        fresh = [key for key in there if key not in self._known]
        # few files are parsed sooner than a cache is read
        cache = find(self.cache, self.schema) if self.classes and len(fresh) >= WORTH else None
        files = cache.files if cache else {}
        spared: dict[str, Known] = {}
        for key in fresh:
            content = self._content(key)
            digest = digest_of(content)
            kept, run = files.get(key, ("", ""))
            if kept == digest and not foreign(run, self.classes):
                spared[key] = Known(there[key], "", digest, run, True)
            else:
                self._learn(key, there[key], digest, examine(content, key))
        if cache and spared:
            self._tables.append(cache.rows if len(spared) == len(files) else chosen(cache.rows, {*spared}))
            self._known |= spared

    def _content(self, key: str) -> bytes:
        """The bytes of a file; none where it cannot be read, which are no rows either."""
        try:
            return self._path(key).read_bytes()
        except PermissionError:
            raise UserError(
                f"`out` is {str(self.out)!r}: {self._path(key)} cannot be read (permission denied)"
            ) from None
        except OSError:
            return b""

    def _learn(self, key: str, stamp: Stamp, digest: str, raw: pa.Table | str) -> None:
        """Keep what an examined file holds, in the columns of the study if there is one."""
        found = fit(raw, self.schema, self.classes) if self.classes and not isinstance(raw, str) else raw
        self._parsed += 1
        if isinstance(raw, str) or isinstance(found, str):
            self._known[key] = Known(stamp, str(found))
            return
        whole = bool(self.classes) and covers(raw, self.schema)
        self._known[key] = Known(stamp, "", digest, sealed_run(raw), whole)
        self._single.append(found.replace_schema_metadata())
        if len(self._single) > TOGETHER:
            self._tables.append(_joined(self._single).combine_chunks())
            self._single.clear()

    def _widen(self, path: Path, known: Known) -> None:
        """Write a file again that lacks a column of the study; what it has besides stays in it."""
        raw = examine(path.read_bytes(), path.stem)
        found = raw if isinstance(raw, str) else fit(raw, self.schema, self.classes)
        if not isinstance(raw, str) and not isinstance(found, str):
            content = seal(widened(raw, found), known.run)
            self._replace(path, content)
            self._known[path.stem] = replace(known, stamp=_stamp(path), digest=digest_of(content), whole=True)

    def _forget(self, keys: set[str]) -> None:
        """Drop files and their rows."""
        sound = {key for key in keys if not self._known[key].fault}
        self._tables = [chosen(self._whole(), sound, out=True)]
        self._single.clear()
        for key in keys:
            del self._known[key]

    def _whole(self) -> pa.Table:
        """All rows that were read, in the order in which they were."""
        if not (tables := self._tables + self._single):
            return self.schema.empty_table()
        return _joined(tables)

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


def opened(out: str | Path | Store, classes: Sequence[type[Run]]) -> Store:
    """The store of a study in a directory: the one at hand, if it is one for these classes, knows what it has read."""
    if isinstance(out, Store):
        return out if list(out.classes.values()) == list(classes) else Store(out.out, classes)
    return Store(out, classes)


def _stamp(path: Path | os.DirEntry[str]) -> Stamp:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables, promote_options="permissive")


def _left_out(names: Sequence[str], fault: str) -> str:
    """One line for the files that have one fault."""
    if len(names) == 1:
        return f"{names[0]} is {fault}: left out; `regimes run` does its run again"
    which = f"{len(names)} files of rows are {fault} (the first: {names[0]})"
    return f"{which}: left out; `regimes run` does their runs again"
