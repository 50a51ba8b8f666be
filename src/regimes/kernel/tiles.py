"""A kernel put together from the factors of tiles of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from regimes.core.batch import Inputs, count, take
from regimes.kernel.build import Builder, Part
from regimes.kernel.factor import Reduce, block_shape
from regimes.kernel.network import Network
from regimes.kernel.plan import Plan
from regimes.kernel.sink import Sink, Unit
from regimes.kernel.tiling import Tiling

__all__ = ["Assembly", "Held", "area", "assemble", "pair", "pairs"]


@dataclass(frozen=True)
class Assembly:
    """A kernel to be computed.

    Attributes:
        network: f.
        plan: which factors.
        tiling: how much at a time.
        rows: x1.
        columns: x2, or None where it is x1: then half of the kernel is computed.
        by_owner: whether the parts of the owners are kept apart.
        scale: a factor on all of it.
    """

    network: Network
    plan: Plan
    tiling: Tiling
    rows: Inputs
    columns: Inputs | None
    by_owner: bool
    scale: float

    @property
    def reduce(self) -> Reduce:
        """The form of the kernel."""
        return self.plan.reduce


def _units(tiling: Tiling, samples: int) -> Iterator[Unit]:
    """All samples, a tile at a time, in all directions."""
    for start in range(0, samples, tiling.tile):
        for directions in tiling.directions:
            yield Unit(slice(start, min(start + tiling.tile, samples)), directions)


def pairs(assembly: Assembly) -> Iterator[tuple[Unit, Unit]]:
    """Every pair that has to be computed: of a symmetric kernel, those from the diagonal on."""
    left = list(_units(assembly.tiling, count(assembly.rows)))
    right = left if assembly.columns is None else list(_units(assembly.tiling, count(assembly.columns)))
    for i, row in enumerate(left):
        for column in right[i:] if assembly.columns is None else right:
            if assembly.reduce == "full" or row.directions == column.directions:
                yield row, column


def assemble(assembly: Assembly, sink: Sink, tick: Callable[[float], None]) -> None:
    """Compute every pair of tiles and put it into the sink; ``tick`` hears of each share that is done."""
    todo = list(pairs(assembly))
    whole = sum(area(row, column) for row, column in todo) * len(assembly.tiling.groups)
    held = Held(assembly)
    for row, column in todo:
        pair(assembly, held, row, column, sink, lambda share: tick(share / whole))


def pair(
    assembly: Assembly, held: Held, row: Unit, column: Unit, sink: Sink, tick: Callable[[float], None]
) -> None:
    """One pair of tiles, all groups of terms."""
    same = assembly.columns is None and row == column
    for group in range(len(assembly.tiling.groups)):
        left = held.rows(group, row)
        right = left if same else held.columns(group, column)
        _contract(assembly, row, column, left, right, sink)
        tick(area(row, column))


class Held:
    """The factors of the last row and the last column of tiles."""

    def __init__(self, assembly: Assembly) -> None:
        self._assembly = assembly
        self._row: tuple[object, list[Part]] | None = None

    def rows(self, group: int, unit: Unit) -> list[Part]:
        """Of the first samples; kept until another tile of them is asked for."""
        key = (group, unit)
        if self._row is None or self._row[0] != key:
            self._row = None  # free the old ones first
            self._row = (key, self._build(group, unit, self._assembly.rows))
        return self._row[1]

    def columns(self, group: int, unit: Unit) -> list[Part]:
        """Of the second samples."""
        assembly = self._assembly
        return self._build(group, unit, assembly.rows if assembly.columns is None else assembly.columns)

    def _build(self, group: int, unit: Unit, x: Inputs) -> list[Part]:
        assembly, tiling = self._assembly, self._assembly.tiling
        builder = Builder(
            assembly.network, assembly.plan, tiling.groups[group], unit.directions, tiling.micro, tiling.room,
            assembly.by_owner,
        )  # fmt: skip
        return builder(take(x, unit.samples))


def area(row: Unit, column: Unit) -> int:
    """Pairs of samples."""
    return row.size[0] * column.size[0]


def _contract(
    assembly: Assembly, row: Unit, column: Unit, left: list[Part], right: list[Part], sink: Sink
) -> None:
    """All blocks between two tiles; of a tile with itself those from the diagonal on, and their mirror images."""
    same, chunk = left is right, assembly.tiling.chunk
    n1, n2 = row.size[0], column.size[0]
    owners: dict[str, list[tuple[Part, Part]]] = {}
    for one, other in zip(left, right, strict=True):
        owners.setdefault(one.owner, []).append((one, other))
    for i in range(0, n1, chunk):
        for j in range(i if same else 0, n2, chunk):
            rows, columns = slice(i, min(i + chunk, n1)), slice(j, min(j + chunk, n2))
            a = Unit(_moved(rows, row.samples.start), row.directions)
            b = Unit(_moved(columns, column.samples.start), column.directions)
            for owner, parts in owners.items():
                block = _block(assembly, parts, rows, columns)
                sink.add(owner, a, b, block)
                if assembly.columns is None and not (same and i == j):
                    sink.add(owner, b, a, _mirror(block))


def _moved(piece: slice, start: int) -> slice:
    return slice(piece.start + start, piece.stop + start)


def _mirror(block: Tensor) -> Tensor:
    return block.permute(2, 3, 0, 1) if block.dim() == 4 else block.mT


def _block(assembly: Assembly, parts: list[tuple[Part, Part]], rows: slice, columns: slice) -> Tensor:
    """K between some samples of two tiles: (n1, r, n2, r), (r, n1, n2) or (n1, n2)."""
    n1, n2 = rows.stop - rows.start, columns.stop - columns.start
    plan = assembly.plan
    whole = _sum(
        assembly, [p for p in parts if not p[0].below or plan.lift is None], rows, columns, plan.reduce
    )
    if plan.lift is not None:
        below = _sum(assembly, [p for p in parts if p[0].below], rows, columns, "full")
        lifted = None if below is None else _lifted(below, plan.lift, n1, n2, plan.reduce)
        whole = lifted if whole is None else whole if lifted is None else whole + lifted
    assert whole is not None
    if assembly.scale != 1.0:
        whole = whole.mul_(assembly.scale)
    return whole.view(n1, whole.shape[0] // n1, n2, whole.shape[1] // n2) if plan.reduce == "full" else whole


def _sum(
    assembly: Assembly, parts: list[tuple[Part, Part]], rows: slice, columns: slice, reduce: Reduce
) -> Tensor | None:
    """The sum of what the factors give; None for none."""
    if not parts:
        return None
    n1, n2 = rows.stop - rows.start, columns.stop - columns.start
    left, right = parts[0][0].factor.directions, parts[0][1].factor.directions
    block = assembly.plan.directions.new_zeros(block_shape(reduce, n1, n2, left, right))
    for one, other in parts:
        one.factor.add(block, other.factor, rows, columns, reduce)
    return block


def _lifted(below: Tensor, lift: Tensor, n1: int, n2: int, reduce: Reduce) -> Tensor:
    """W K W^T for each pair of samples, K of (n1 H, n2 H); for the diagonal form its diagonal."""
    c, h = lift.shape
    half = lift @ below.view(n1, h, n2 * h)
    if reduce == "full":
        return (half.view(n1 * c, n2, h) @ lift.mT).view(n1 * c, n2 * c)
    return torch.einsum("iajk,ak->aij", half.view(n1, c, n2, h), lift)
