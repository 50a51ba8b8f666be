"""A kernel in a file: written a tile at a time, and continued where it was left."""

from __future__ import annotations

import errno
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from regimes.core.error import UserError
from regimes.kernel.fingerprint import Fingerprint
from regimes.kernel.journal import Journal, Tile, overlap, within
from regimes.kernel.sink import Unit, Window
from regimes.kernel.tiles import Assembly, Held, area, pair, pairs

__all__ = ["KernelFile", "check_path", "write"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PIECE = 1 << 24
_WAY_OUT = "name another path, or pass overwrite=True"


def check_path(path: Path) -> None:
    """Raise where no kernel can be written.

    Raises:
        UserError: if the path does not end in .npy, is a folder, or lies in none.
    """
    if path.suffix != ".npy":
        raise UserError(f"`out`: got '{path}', expected a path that ends in .npy")
    with _told(path, 0):
        if path.is_dir():
            raise UserError(
                f"`out`: got '{path}', a folder; expected a file in it, such as '{path / 'kernel.npy'}'"
            )
        if not path.parent.is_dir():
            raise UserError(f"`out`: got '{path}', but there is no folder '{path.parent}'; make it first")


@contextmanager
def _told(path: Path, needed: int) -> Iterator[None]:
    """What the system says inside the block is a mistake of the user's, with the bytes that a full disk lacks."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            free = shutil.disk_usage(path.parent).free
            raise UserError(
                f"`out`: '{path}' takes {needed} bytes, and {free} are free there "
                f"({os.strerror(error.errno or 0)}); name a path on another disk"
            ) from error
        raise UserError(
            f"`out`: '{path}' cannot be used ({error.strerror or error}); name another path"
        ) from error


@dataclass(frozen=True)
class KernelFile:
    """A .npy file and, beside it, a journal of what is in it: which kernel, which tiles, and their checksums.

    Attributes:
        path: the file.
        kernel: which one.
        shape: of the kernel.
        dtype: of its numbers.
        symmetric: whether a tile has a mirror image.
    """

    path: Path
    kernel: Fingerprint
    shape: tuple[int, ...]
    dtype: np.dtype
    symmetric: bool

    @property
    def bytes(self) -> int:
        """Of the numbers."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize

    @property
    def _journal(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    def begun(self) -> Journal | None:
        """What is there already, every number of it verified; None where there is no such file yet.

        Raises:
            UserError: if the file holds something else, or is damaged.
        """
        with _told(self.path, self.bytes):
            if not self.path.exists():
                return None
            journal = Journal.read(self._journal)
            if journal is None or not journal.kernel.matches(self.kernel):
                held = "a file that this function did not write" if journal is None else "another kernel"
                raise UserError(
                    f"`out`: '{self.path}' holds {held} (other parameters, samples, form or function); {_WAY_OUT}"
                )
            array = self._mapped()
            if any(self._checksum(array, tile) != checksum for tile, checksum in journal.done.items()):
                raise self._damaged("its numbers are not those that were written")
            return journal

    def remove(self) -> None:
        """Make room for another kernel; the journal goes last, so that a file without one is not ours."""
        with _told(self.path, self.bytes):
            self.path.unlink(missing_ok=True)
            self._journal.unlink(missing_ok=True)

    def create(self, by_rows: bool) -> Journal:
        """An empty file whose space is reserved, and its journal.

        Raises:
            UserError: if the disk is full.
        """
        journal = Journal(self.kernel, by_rows)
        aside = self.path.with_name(self.path.name + ".partial")
        head = {
            "descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": self.shape
        }  # fmt: skip
        with _told(self.path, self.bytes):
            try:
                with open(aside, "wb") as file:
                    np.lib.format.write_array_header_1_0(file, head)
                    file.flush()
                    _reserve(file.fileno(), file.tell(), self.bytes)
                journal.write(self._journal)
                aside.replace(self.path)
            except OSError:
                aside.unlink(missing_ok=True)
                raise
        return journal

    def put(self, row: Unit, column: Unit, block: Tensor, journal: Journal) -> Journal:
        """Write a tile, and its mirror image; the file is mapped only while that lasts."""
        tile = tile_of(row, column)
        # Tiles of another size may be there, from a call with other memory: their checksums change with this one.
        touched = [other for other in journal.done if self._touch(tile, other)]
        with _told(self.path, self.bytes):
            if touched:
                journal = replace(
                    journal, done={t: each for t, each in journal.done.items() if t not in touched}
                )
                journal.write(self._journal)
            array = self._mapped()
            self._place(array, tile)[...] = block.cpu().numpy()
            if self.symmetric and row != column:
                image = block.transpose(0, 1)
                image = image.transpose(2, 3) if block.dim() == 4 else image
                self._place(array, _mirror(tile))[...] = image.cpu().numpy()
            array.flush()
            found = {each: self._checksum(array, each) for each in (tile, *touched)}
            journal = replace(journal, done={**journal.done, **found})
            journal.write(self._journal)
        return journal

    def tensor(self) -> Tensor:
        """The kernel: a tensor over the mapped file."""
        with _told(self.path, self.bytes):
            return torch.from_numpy(self._mapped())

    def _mapped(self) -> np.memmap:
        try:
            np.load(self.path, mmap_mode="r")  # to write, numpy would lengthen a file that is too short
            array = np.load(self.path, mmap_mode="r+")
        except (ValueError, EOFError) as error:  # no such format, or too short
            raise self._damaged("it is no whole array") from error
        if not isinstance(array, np.memmap) or (array.shape, array.dtype) != (self.shape, self.dtype):
            raise self._damaged(f"expected {self.dtype} numbers of shape {self.shape}")
        if not array.flags.c_contiguous:
            raise self._damaged("its axes are in another order")
        return array

    def _damaged(self, how: str) -> UserError:
        return UserError(f"`out`: '{self.path}' is damaged: {how}; {_WAY_OUT}")

    def _place(self, array: np.ndarray, tile: Tile) -> np.ndarray:
        rows, columns, left, right = (slice(a, b) for a, b in zip(tile[::2], tile[1::2], strict=True))
        return array[(rows, columns, left, right)[: array.ndim]]

    def _checksum(self, array: np.ndarray, tile: Tile) -> int:
        """Of a tile and its mirror image, as they are in the file."""
        found = 0
        for each in dict.fromkeys((tile, _mirror(tile)) if self.symmetric else (tile,)):
            for row in self._place(array, each):
                found = zlib.crc32(np.ascontiguousarray(row).data, found)
        return found

    def _touch(self, tile: Tile, other: Tile) -> bool:
        return overlap(tile, other) or (self.symmetric and overlap(_mirror(tile), other))


def tile_of(row: Unit, column: Unit) -> Tile:
    """Where a pair of tiles begins and ends."""
    parts = (row.samples, column.samples, row.directions, column.directions)
    return tuple(end for part in parts for end in (part.start, part.stop))


def _mirror(tile: Tile) -> Tile:
    return (*tile[2:4], *tile[:2], *tile[6:], *tile[4:6])


def _reserve(descriptor: int, start: int, size: int) -> None:
    """Take the space on the disk: a mapped file with holes would kill the process where the disk is full."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, start, size)
            return
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
    zeros = bytes(min(size, _PIECE))
    while size > 0:
        size -= os.write(descriptor, zeros[: min(size, _PIECE)])


def write(assembly: Assembly, file: KernelFile, journal: Journal, tick: Callable[[float], None]) -> None:
    """Compute every tile that is not in the file yet."""
    whole = sum(area(row, column) for row, column in pairs(assembly)) * len(assembly.tiling.groups)
    held = Held(assembly)
    for parts in _summed(assembly):
        row, column = (
            Unit(first.samples, slice(first.directions.start, last.directions.stop))
            for first, last in zip(parts[0], parts[-1], strict=True)
        )
        if any(within(tile_of(row, column), other) for other in journal.done):
            tick(sum(area(*part) for part in parts) * len(assembly.tiling.groups) / whole)
            continue
        found: Tensor | None = None
        for part in parts:
            window = Window(assembly.reduce, *part, assembly.plan.directions)
            pair(assembly, held, *part, window, lambda share: tick(share / whole))
            found = window.kernel() if found is None else found + window.kernel()
        assert found is not None
        journal = file.put(row, column, found, journal)


def _summed(assembly: Assembly) -> list[list[tuple[Unit, Unit]]]:
    """The pairs of tiles that are added up in one place: in a trace those of all directions; else each alone."""
    if assembly.reduce != "trace":
        return [[each] for each in pairs(assembly)]
    places: dict[tuple[int, int], list[tuple[Unit, Unit]]] = {}
    for row, column in pairs(assembly):
        places.setdefault((row.samples.start, column.samples.start), []).append((row, column))
    return list(places.values())
