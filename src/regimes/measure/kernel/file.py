"""A kernel in a file: written a tile at a time, and continued where it was left."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from regimes.core.error import UserError
from regimes.measure.kernel.request import Request
from regimes.measure.kernel.store import Unit, Window
from regimes.measure.kernel.tiles import Held, Task, area, pair, pairs

__all__ = ["KernelFile", "check_path", "fingerprint", "write"]


def fingerprint(request: Request) -> str:
    """What makes a kernel this one: the architecture, the parameters, the samples, the form."""
    network = request.network
    classes = [
        (name, type(sub).__module__, type(sub).__qualname__) for name, sub in network.module.named_modules()
    ]
    form = (request.reduce, request.scale, network.trained, request.columns is None)
    digest = hashlib.sha256(repr((str(network.module), classes, form, _code(network.output))).encode())
    named = {
        **dict(network.module.named_parameters()),
        **dict(network.module.named_buffers()),
        **network.values,
    }
    for part in (named, request.rows, {} if request.columns is None else request.columns):
        pairs = (
            part.items() if isinstance(part, Mapping) else [("", part)] if isinstance(part, Tensor) else part
        )
        for entry in pairs:
            for value in entry if isinstance(entry, tuple) else (entry,):
                _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    """A tensor by its numbers, anything else by its name."""
    if not isinstance(value, Tensor):
        digest.update(repr(value).encode())
        return
    array = value.detach().cpu().contiguous()
    digest.update(f"{tuple(array.shape)} {array.dtype}".encode())
    digest.update(array.view(-1).view(torch.uint8).numpy().data)


def _code(function: Any) -> Any:
    """What a function does, as far as its code says."""
    code = getattr(function, "__code__", None)
    if code is None:
        return repr(type(function)) if function is not None else None
    held = [repr(cell.cell_contents) for cell in function.__closure__ or ()]
    return code.co_code.hex(), repr(code.co_consts), code.co_names, held, repr(function.__defaults__)


def check_path(path: Path) -> None:
    """Raise where no kernel can be written.

    Raises:
        UserError: if the path does not end in .npy, is a folder, or lies in none.
    """
    if path.suffix != ".npy":
        raise UserError(f"`out`: got '{path}', expected a path that ends in .npy")
    if path.is_dir():
        raise UserError(
            f"`out`: got '{path}', a folder; expected a file in it, such as '{path / 'kernel.npy'}'"
        )
    if not path.parent.is_dir():
        raise UserError(f"`out`: got '{path}', but there is no folder '{path.parent}'; make it first")


@dataclass(frozen=True)
class KernelFile:
    """A .npy file and, beside it, a journal of what is in it: which kernel, and which tiles are done.

    Attributes:
        path: the file.
        kernel: the fingerprint.
    """

    path: Path
    kernel: str

    @property
    def journal(self) -> Path:
        """Beside the file."""
        return self.path.with_name(self.path.name + ".json")

    def done(self) -> set[tuple[int, ...]] | None:
        """The tiles that are written; None where there is no such file yet.

        Raises:
            UserError: if the file holds something else.
        """
        if not self.path.exists():
            return None
        try:
            noted = json.loads(self.journal.read_text())
            kernel, tiles = noted["kernel"], {tuple(tile) for tile in noted["done"]}
        except (OSError, ValueError, KeyError, TypeError):
            kernel, tiles = None, set()
        if kernel != self.kernel:
            held = "a file that this function did not write" if kernel is None else "another kernel"
            raise UserError(
                f"`out`: '{self.path}' holds {held} (other parameters, samples or form); "
                "name another path, or pass overwrite=True"
            )
        return tiles

    def create(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """An empty file of the right size; the journal comes first, so that a file without one is not ours."""
        self.journal.unlink(missing_ok=True)
        aside = self.path.with_name(self.path.name + ".partial")
        kind = np.float64 if dtype == torch.float64 else np.float32
        open_memmap(aside, mode="w+", dtype=kind, shape=shape)
        aside.replace(self.path)
        self.note(set())

    def note(self, done: set[tuple[int, ...]]) -> None:
        """Write down what is done, in one piece."""
        aside = self.journal.with_name(self.journal.name + ".partial")
        aside.write_text(json.dumps({"kernel": self.kernel, "done": sorted(done)}))
        os.replace(aside, self.journal)

    def put(self, row: Unit, column: Unit, block: Tensor, mirrored: bool) -> None:
        """Write a tile, and its mirror image; the file is mapped only while that lasts."""
        array = np.load(self.path, mmap_mode="r+")
        _place(array, row, column)[...] = block.cpu().numpy()
        if mirrored:
            image = block.transpose(0, 1)
            image = image.transpose(2, 3) if block.dim() == 4 else image
            _place(array, column, row)[...] = image.cpu().numpy()
        array.flush()

    def tensor(self) -> Tensor:
        """The kernel: a tensor over the mapped file."""
        return torch.from_numpy(np.load(self.path, mmap_mode="r+"))


def _place(array: np.ndarray, row: Unit, column: Unit) -> np.ndarray:
    if array.ndim == 4:
        return array[row.samples, column.samples, row.directions, column.directions]
    if array.ndim == 3:
        return array[row.samples, column.samples, row.directions]
    return array[row.samples, column.samples]


def write(task: Task, file: KernelFile, shape: tuple[int, ...], tick: Callable[[float], None]) -> None:
    """Compute every tile that is not in the file yet."""
    done = file.done()
    if done is None:
        file.create(shape, task.plan.directions.dtype)
        done = set()
    todo = list(pairs(task))
    whole = sum(area(row, column) for row, column in todo) * len(task.layout.groups)
    held = Held(task)
    for row, column in todo:
        name = _name(row, column)
        if any(_inside(name, other) for other in done):
            tick(area(row, column) * len(task.layout.groups) / whole)
            continue
        window = Window(task.reduce, row, column, task.plan.directions)
        pair(task, held, row, column, window, lambda share: tick(share / whole))
        file.put(row, column, window.kernel(), task.columns is None and row != column)
        done.add(name)
        file.note(done)


def _name(row: Unit, column: Unit) -> tuple[int, ...]:
    """Where a pair of tiles begins and ends."""
    parts = (row.samples, column.samples, row.directions, column.directions)
    return tuple(end for part in parts for end in (part.start, part.stop))


def _inside(tile: tuple[int, ...], other: tuple[int, ...]) -> bool:
    starts = all(a >= b for a, b in zip(tile[::2], other[::2], strict=True))
    return starts and all(a <= b for a, b in zip(tile[1::2], other[1::2], strict=True))
