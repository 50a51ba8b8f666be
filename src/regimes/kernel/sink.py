"""Where the blocks of a kernel are put: a kernel in memory, or the window of a file that is being filled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from regimes.kernel.factor import Reduce

__all__ = ["Sink", "Unit", "Whole", "Window", "natural"]


@dataclass(frozen=True)
class Unit:
    """Some samples, and some directions."""

    samples: slice
    directions: slice

    @property
    def size(self) -> tuple[int, int]:
        """Samples and directions."""
        return self.samples.stop - self.samples.start, self.directions.stop - self.directions.start


def natural(kernel: Tensor, reduce: Reduce) -> Tensor:
    """(n1, c, n2, c), (c, n1, n2) or (n1, n2) as (n1, n2, c, c), (n1, n2, c) or (n1, n2); a view."""
    if reduce == "full":
        return kernel.permute(0, 2, 1, 3)
    return kernel.permute(1, 2, 0) if reduce == "diagonal" else kernel


def _shape(reduce: Reduce, rows: int, columns: int, left: int, right: int) -> tuple[int, ...]:
    return {
        "full": (rows, left, columns, right),
        "diagonal": (left, rows, columns),
        "trace": (rows, columns),
    }[reduce]


class Sink(ABC):
    """Takes the blocks of a kernel."""

    @abstractmethod
    def add(self, owner: str, row: Unit, column: Unit, block: Tensor) -> None:
        """Put a block where it belongs."""


class Whole(Sink):
    """Kernels of n1 and n2 samples by owner.

    Args:
        reduce: the form.
        shape: n1 and n2.
        outputs: c.
        like: a tensor of the same dtype on the same device.
        sums: whether several blocks are added up in a place, which then has to start from zero.
    """

    def __init__(self, reduce: Reduce, shape: Sequence[int], outputs: int, like: Tensor, sums: bool) -> None:
        self._reduce: Reduce = reduce
        self._shape = _shape(reduce, shape[0], shape[1], outputs, outputs)
        self._like = like
        self._sums = sums
        self._kernels: dict[str, Tensor] = {}

    def add(self, owner: str, row: Unit, column: Unit, block: Tensor) -> None:
        """Put a block where it belongs."""
        kernel = self._kernels.get(owner)
        if kernel is None:
            make = self._like.new_zeros if self._sums else self._like.new_empty
            kernel = self._kernels[owner] = make(self._shape)
        if self._reduce == "full":
            place = kernel[row.samples, row.directions, column.samples, column.directions]
        elif self._reduce == "diagonal":
            place = kernel[row.directions, row.samples, column.samples]
        else:
            place = kernel[row.samples, column.samples]
        if self._sums:
            place += block
        else:
            place.copy_(block)

    def kernel(self, owner: str) -> Tensor:
        """(n1, n2, c, c), (n1, n2, c) or (n1, n2): a view, laid out as the kernel was computed."""
        found = self._kernels.get(owner)
        return natural(self._like.new_zeros(self._shape) if found is None else found, self._reduce)


class Window(Sink):
    """One pair of tiles; what falls outside is left out: the mirror image of a pair is taken from it later."""

    def __init__(self, reduce: Reduce, row: Unit, column: Unit, like: Tensor) -> None:
        (n1, left), (n2, right) = row.size, column.size
        self._reduce: Reduce = reduce
        self._row, self._column = row, column
        self._kernel = like.new_zeros(_shape(reduce, n1, n2, left, right))

    def add(self, owner: str, row: Unit, column: Unit, block: Tensor) -> None:
        """Put a block where it belongs, if that is here."""
        if not (_within(row, self._row) and _within(column, self._column)):
            return
        rows, columns = _moved(row.samples, self._row), _moved(column.samples, self._column)
        if self._reduce == "full":
            self._kernel[rows, :, columns] += block
        else:
            self._kernel[..., rows, columns] += block

    def kernel(self) -> Tensor:
        """As that of :class:`Whole`."""
        return natural(self._kernel, self._reduce)


def _within(unit: Unit, other: Unit) -> bool:
    return (
        unit.directions == other.directions
        and other.samples.start <= unit.samples.start
        and unit.samples.stop <= other.samples.stop
    )


def _moved(samples: slice, unit: Unit) -> slice:
    return slice(samples.start - unit.samples.start, samples.stop - unit.samples.start)
