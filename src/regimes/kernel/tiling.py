"""How much is taken at a time, so that the working memory stays within its limit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from regimes.core.error import UserError
from regimes.kernel.cost import entries
from regimes.kernel.plan import Plan, Term

__all__ = ["Extent", "Tiling", "choose_tiling"]

# Samples in one pass: so many bytes of activations still fit the cache of a processor.
_CACHE = 48 << 20
# Rows of a block of the kernel: as small as a matrix product is fast with, so that it stays in the cache.
_ROWS = 768
# Parameters from which on a product of gradients is a long sum, and the fewest rows that it is worth taking.
_LONG, _FEW = 1 << 12, 128


@dataclass(frozen=True)
class Extent:
    """How large a kernel is asked for.

    Attributes:
        rows: n1.
        columns: n2, or None for the kernel of the rows with themselves.
        itemsize: bytes of a number.
        memory: bytes of working memory.
        stored: whether blocks are put together in working memory, to be written to a file.
        accelerator: whether a device other than the processor computes.
    """

    rows: int
    columns: int | None
    itemsize: int
    memory: int
    stored: bool = False
    accelerator: bool = False

    @property
    def longest(self) -> int:
        """max(n1, n2)."""
        return max(self.rows, self.columns or 0)


@dataclass(frozen=True)
class Tiling:
    """What is taken at a time.

    Attributes:
        tile: samples whose factors are held together, on each side.
        micro: samples in one pass through the network.
        chunk: samples of a block of the kernel, on each side.
        room: numbers for the products of sequences.
        groups: terms whose factors are held together.
        directions: directions that are held together.
        bytes: of working memory, as estimated.
    """

    tile: int
    micro: int
    chunk: int
    room: int
    groups: tuple[tuple[Term, ...], ...]
    directions: tuple[slice, ...]
    bytes: int

    def samples(self, rows: int, columns: int | None) -> int:
        """Samples that go through the network, all groups, tiles and directions together."""
        left, right = (-(-n // self.tile) for n in (rows, columns or rows))
        pairs = left * (left + 1) // 2 if columns is None else left * right
        built = left + (pairs - left if columns is None else pairs)
        if len(self.groups) > 1 and left * right > 1:
            built = 2 * pairs - (left if columns is None else 0)
        mean = (rows / left + (columns or rows) / right) / 2
        return round(built * len(self.groups) * mean * len(self.directions) ** 2)


def choose_tiling(plan: Plan, extent: Extent) -> Tiling:
    """The tiling that sends the fewest samples through the network.

    Raises:
        UserError: if not even one sample, one parameter and one output fit the memory: says what is needed.
    """
    fitting = [tiling for tiling in _candidates(plan, extent) if tiling.bytes <= extent.memory]
    if fitting:
        return min(fitting, key=lambda tiling: tiling.samples(extent.rows, extent.columns))
    raise UserError(
        f"`memory`: got {extent.memory} bytes, expected at least {_least(plan, extent)}, for one sample and "
        "the largest parameter at a time"
    )


def _least(plan: Plan, extent: Extent) -> int:
    """The smallest memory for which there is a tiling."""

    def fits(memory: int) -> bool:
        other = replace(extent, memory=memory)
        return any(tiling.bytes <= memory for tiling in _candidates(plan, other))

    high = max(1, extent.memory)
    while not fits(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _candidates(plan: Plan, extent: Extent) -> Iterator[Tiling]:
    """Tilings from coarse to fine: the largest tile that fits for each partition of terms and directions."""
    splits = [1] if plan.begin is not None else list(_powers(len(plan.asked)))
    for split in splits:
        total = len(plan.asked)
        step = -(-total // split)
        directions = tuple(slice(a, min(a + step, total)) for a in range(0, total, step))
        found = False
        for count in _powers(len(plan.terms)):
            groups = _partition(plan, plan.terms, count)
            for tiling in (
                _largest(plan, extent, groups, directions),
                _smallest(plan, extent, groups, directions),
            ):
                found = found or tiling.bytes <= extent.memory
                yield tiling
        if found:
            return


def _powers(limit: int) -> Iterator[int]:
    size = 1
    while size < limit:
        yield size
        size *= 2
    yield max(1, limit)


def _partition(plan: Plan, terms: Sequence[Term], count: int) -> tuple[tuple[Term, ...], ...]:
    """Neighbours together, each group about as large as the others."""
    c = len(plan.asked)
    sizes = [entries(term.shape, term.order, plan.width, c) for term in terms]
    target = max(sum(sizes) / count, *sizes) if sizes else 0
    groups: list[list[Term]] = [[]]
    held = 0
    for term, size in zip(terms, sizes, strict=True):
        if groups[-1] and held + size > target * 1.0001:
            groups.append([])
            held = 0
        groups[-1].append(term)
        held += size
    return tuple(tuple(group) for group in groups)


def _largest(
    plan: Plan, extent: Extent, groups: tuple[tuple[Term, ...], ...], directions: tuple[slice, ...]
) -> Tiling:
    """The largest tile of a partition, and what goes with it."""
    r, c = _directed(plan, directions)
    item = extent.itemsize
    held = _held(groups, r, c) * item
    one = _transient(plan, groups, c, item)
    rows = 4096 if extent.accelerator else _ROWS
    side = max(r, c)
    width = side if plan.reduce == "full" else 1
    chunk = max(1, min(extent.longest, rows // width, _side(extent.memory / 12, side, plan, item)))
    if any(t.order == "explicit" and t.shape.numel >= _LONG for t in plan.terms):
        # Long sums keep small blocks fast, and the smaller they are, the less is computed twice.
        chunk = min(chunk, max(-(-extent.longest // 8), -(-_FEW // width)))
    blocks = 3 * chunk**2 * _square(plan, side) * item
    sequences = any(t.order in ("gram", "one-sided") and t.shape.tokens > 1 for t in plan.terms)
    room = extent.memory // 8 // item if sequences else 0
    free = extent.memory - blocks - room * item
    cache = 1 << 40 if extent.accelerator else _CACHE
    micro = max(1, min(extent.longest, int(min(free / 3, cache) / one)))
    free -= micro * one
    tile = _tile(extent, held, free, _square(plan, c) * item if extent.stored else 0)
    micro = min(micro, tile)
    sides = 1 if tile >= extent.longest and extent.columns is None else 2
    total = blocks + room * item + micro * one + sides * min(tile, extent.longest) * held
    if extent.stored:
        total += min(tile, extent.rows) * min(tile, extent.longest) * _square(plan, c) * item
    return Tiling(tile, micro, min(chunk, tile), max(1, room), groups, directions, int(total))


def _smallest(
    plan: Plan, extent: Extent, groups: tuple[tuple[Term, ...], ...], directions: tuple[slice, ...]
) -> Tiling:
    """One sample at a time."""
    r, c = _directed(plan, directions)
    item = extent.itemsize
    held = _held(groups, r, c) * item
    sequences = [t.shape for t in plan.terms if t.order in ("gram", "one-sided") and t.shape.tokens > 1]
    room = max((2 * s.tokens * (s.tokens + r * s.given) for s in sequences), default=0) * item
    blocks = (4 if extent.stored else 3) * _square(plan, max(r, c)) * item
    total = blocks + room + _transient(plan, groups, c, item) + 2 * held
    return Tiling(1, 1, 1, 1, groups, directions, int(total))


def _directed(plan: Plan, directions: tuple[slice, ...]) -> tuple[int, int]:
    """r, the backward passes of a block of outputs, and c, its outputs."""
    c = directions[0].stop - directions[0].start
    return (c if plan.begin is None else plan.width), c


def _held(groups: Sequence[Sequence[Term]], r: int, c: int) -> int:
    """Numbers that are held of one sample, for the largest of the groups."""
    return max((sum(entries(t.shape, t.order, r, c) for t in group) for group in groups), default=0)


def _tile(extent: Extent, held: int, free: float, pair: int) -> int:
    """Samples on a side, where each takes ``held`` bytes and each pair ``pair``."""
    n1, n2 = extent.rows, extent.columns
    whole = (n1 if n2 is None else n1 + n2) * held + n1 * (n2 or n1) * pair
    if whole <= free:
        return extent.longest
    if pair == 0:
        return max(1, int(free // (2 * held)))
    return max(1, int((math.sqrt(max(0.0, held**2 + pair * free)) - held) / pair))


def _square(plan: Plan, r: int) -> int:
    """Entries of the kernel per pair of samples."""
    return r * r if plan.reduce == "full" or plan.lift is not None else r if plan.reduce == "diagonal" else 1


def _side(free: float, r: int, plan: Plan, item: int) -> int:
    return int(math.sqrt(free / (_square(plan, r) * item * 3)))


def _transient(plan: Plan, groups: Sequence[Sequence[Term]], c: int, item: int) -> int:
    """Bytes of one sample while it goes through the network and its gradients are formed."""
    found = plan.survey
    most = 0
    for group in groups:
        formed = max(
            (t.shape.numel + t.shape.tokens * t.shape.taken for t in group if t.order == "explicit"),
            default=0,
        )
        rows = sum(t.shape.numel for t in group if t.order == "jacobian")
        again = c * (rows * 2 * item + 2 * (found.graph + found.flow)) if rows else 0
        most = max(most, formed * item + again)
    return 2 * found.graph + 2 * found.flow + most + 64
