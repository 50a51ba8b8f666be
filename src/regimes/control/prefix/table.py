"""Values of samples, found by what the samples are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from regimes.control.prefix.replay import Sizes, Slot
from regimes.core.error import UserError

__all__ = ["SampleTable", "check_path"]

_HEADER = b"regimes: values of a cached prefix".ljust(64)


@final
class SampleTable:
    """The values that cross the cut, a row for each sample, in memory or in a mapped file.

    Args:
        samples: how many rows there are.
        slots: what is kept of each.
        path: a file that is overwritten; None is memory, that of the values.
    """

    def __init__(self, samples: int, slots: Sequence[Slot], path: Path | None) -> None:
        self._samples, self._slots = samples, slots
        self._rows: dict[tuple[int, int], int] = {}
        self._constants: dict[int, Tensor] = {}
        shapes = {place: _row(slot) for place, slot in enumerate(slots) if slot.axis is not None}
        sizes = {
            place: _rounded(samples * torch.Size(shape).numel() * slots[place].shape.dtype.itemsize)
            for place, shape in shapes.items()
        }
        self.bytes = sum(sizes.values())
        self._values: dict[int, Tensor] = {}
        if path is None:
            for place, shape in shapes.items():
                kind = slots[place].shape
                self._values[place] = _memory((samples, *shape), kind)
            return
        whole = _mapped(path, self.bytes)
        begin = len(_HEADER)
        for place, shape in shapes.items():
            part = whole[
                begin : begin + samples * torch.Size(shape).numel() * slots[place].shape.dtype.itemsize
            ]
            self._values[place] = part.view(slots[place].shape.dtype).view(samples, *shape)
            begin += sizes[place]

    def __len__(self) -> int:
        return len(self._rows)

    def missing(self, keys: Sequence[tuple[int, int]]) -> list[int]:
        """Which of these samples have no row, each once."""
        seen: dict[tuple[int, int], int] = {}
        for place, key in enumerate(keys):
            if key not in self._rows:
                seen.setdefault(key, place)
        return [*seen.values()]

    def keep(self, keys: Sequence[tuple[int, int]], places: Sequence[int], values: Sequence[Tensor]) -> None:
        """Give rows to those of the samples that are at these places.

        Raises:
            UserError: if there are not so many rows.
        """
        first = len(self._rows)
        if first + len(places) > self._samples:
            raise UserError(
                f"`samples`: got {self._samples}, and more different samples than that came; count the samples of the "
                "data set, or do without a CachedPrefix where inputs are augmented and differ at each pass"
            )
        rows = slice(first, first + len(places))
        for place, (slot, value) in enumerate(zip(self._slots, values, strict=True)):
            if slot.axis is None:
                self._constants.setdefault(place, value)
            else:
                self._values[place][rows] = _by_row(value, slot, len(keys))[list(places)].to(
                    self._values[place].device
                )
        self._rows |= {keys[place]: first + count for count, place in enumerate(places)}

    def values(self, keys: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Those of the samples, as they were in the pass."""
        rows = torch.tensor([self._rows[key] for key in keys])
        return [
            self._constants[place]
            if slot.axis is None
            else _by_axis(self._values[place].index_select(0, rows.to(self._values[place].device)), slot)
            for place, slot in enumerate(self._slots)
        ]


def check_path(path: Path) -> None:
    """Raise where nothing can be kept.

    Raises:
        UserError: if the path is a folder, lies in none, or holds something else.
    """
    if path.is_dir():
        raise UserError(f"`path`: got '{path}', a folder; expected a file in it, such as '{path / 'prefix'}'")
    if not path.parent.is_dir():
        raise UserError(f"`path`: got '{path}', but there is no folder '{path.parent}'; make it first")
    if path.exists() and path.stat().st_size:
        with path.open("rb") as file:
            if file.read(len(_HEADER)) != _HEADER:
                raise UserError(f"`path`: '{path}' holds something else; name another path")


def _memory(shape: Sequence[int], kind: Sizes) -> Tensor:
    try:
        return torch.empty(*shape, dtype=kind.dtype, device=kind.device)
    except RuntimeError as error:
        size = torch.Size(shape).numel() * kind.dtype.itemsize
        raise UserError(
            f"`samples`: the values of {shape[0]} take {size} bytes, more than there is memory; "
            "keep them in a file (`path`)"
        ) from error


def _mapped(path: Path, size: int) -> Tensor:
    """A file of so many bytes behind its header, with its place on the disk taken."""
    size += len(_HEADER)
    try:
        with path.open("wb") as file:
            file.write(_HEADER)
            file.flush()
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"`path`: '{path}' cannot take {size} bytes ({error}); name another path, or fewer `samples`"
        ) from error
    return torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8)


def _row(slot: Slot) -> tuple[int, ...]:
    """The sizes of what is kept of a sample: (k, ...), k places along the axis of the samples."""
    sizes = [size for _, size in slot.shape.sizes]
    axis = slot.axis or 0
    return (slot.shape.sizes[axis][0], *sizes[:axis], *sizes[axis + 1 :])


def _by_row(value: Tensor, slot: Slot, n: int) -> Tensor:
    """(n, k, ...)."""
    moved = value.movedim(slot.axis or 0, 0)
    return moved.reshape(n, -1, *moved.shape[1:])


def _by_axis(rows: Tensor, slot: Slot) -> Tensor:
    """The other way round, on the device and with the order of strides that the value had."""
    value = rows.to(slot.shape.device).flatten(0, 1).movedim(0, slot.axis or 0)
    back = sorted(range(value.dim()), key=slot.order.__getitem__)
    return value.permute(slot.order).contiguous().permute(back)


def _rounded(size: int) -> int:
    """Bytes, so that what comes next is aligned."""
    return -(-size // 64) * 64
