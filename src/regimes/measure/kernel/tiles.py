"""A kernel put together from tiles of samples and groups of parameters, within a given working memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from regimes.core.derivative import jacobian
from regimes.measure.kernel.rules import Factor, LinearRule, Reduce, RowsFactor
from regimes.measure.kernel.trace import Network, linear_factors, width

__all__ = ["Task", "assemble"]


@dataclass(frozen=True)
class Task:
    """A kernel to be computed.

    Attributes:
        network: f.
        rows: x1.
        columns: x2, or None where it is x1: then each tile is formed once and each pair of tiles used twice.
        reduce: what becomes of the outputs.
        by_layer: whether the parts of the owners are kept apart.
        memory: bytes of working memory.
        rules: the layers that go by rule.
        outputs: c.
    """

    network: Network
    rows: Tensor
    columns: Tensor | None
    reduce: Reduce
    by_layer: bool
    memory: int
    rules: Mapping[str, LinearRule]
    outputs: int

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return next(iter(self.network.values.values())).element_size()

    @property
    def longest(self) -> int:
        """max(n1, n2)."""
        return max(len(self.rows), 0 if self.columns is None else len(self.columns))


@dataclass(frozen=True)
class _Group:
    """Parameters whose factors are formed together: all layers that go by rule, or some rows of the Jacobian.

    Attributes:
        rules: the layers, by name; empty where rows are taken.
        names: the parameters, where rows are taken.
        entries: numbers held per sample.
    """

    rules: Mapping[str, LinearRule]
    names: tuple[str, ...]
    entries: int

    def factors(self, network: Network, x: Tensor) -> list[tuple[str, Factor]]:
        """The factors of a tile, each with the name of its owner."""
        if self.rules:
            return list(linear_factors(network, x, self.rules).items())
        rows = jacobian(network.module, network.values, x, names=self.names)
        return [(name.rpartition(".")[0], RowsFactor(rows[name].flatten(2))) for name in self.names]


def assemble(task: Task) -> dict[str, Tensor]:
    """The kernel by owner, or whole under the name ""."""
    parts: dict[str, Tensor] = {}
    for group in _groups(task):
        size = _tile(task, group.entries)
        for i in range(0, len(task.rows), size):
            _row_of_tiles(task, group, i, size, parts)
    if not task.by_layer:
        return parts
    owners = dict.fromkeys(name.rpartition(".")[0] for name in task.network.trained)
    return {owner: parts[owner] for owner in owners}


def _row_of_tiles(task: Task, group: _Group, i: int, size: int, parts: dict[str, Tensor]) -> None:
    """Add the tiles of the rows from i on; of a symmetric kernel those from the diagonal on, twice."""
    left = group.factors(task.network, task.rows[i : i + size])
    columns = task.rows if task.columns is None else task.columns
    for j in range(i if task.columns is None else 0, len(columns), size):
        same = task.columns is None and i == j
        right = left if same else group.factors(task.network, columns[j : j + size])
        for (owner, row), (_, column) in zip(left, right, strict=True):
            block = row.times(column, task.reduce)
            whole = parts.get(name := owner if task.by_layer else "")
            if whole is None and block.shape[:2] == (len(task.rows), len(columns)):
                parts[name] = block.contiguous()
                continue
            if whole is None:
                whole = parts[name] = block.new_zeros(len(task.rows), len(columns), *block.shape[2:])
            whole[i : i + size, j : j + size] += block
            if task.columns is None and i != j:
                mirror = block.transpose(0, 1)
                whole[j : j + size, i : i + size] += mirror.transpose(2, 3) if block.dim() == 4 else mirror


def _groups(task: Task) -> Iterator[_Group]:
    """All that goes by rule, then the other parameters, as many together as leave room for all samples."""
    network, c = task.network, task.outputs
    if task.rules:
        sizes = [rule.size for rule in task.rules.values()]
        # The graph holds A and z of each layer, and its activation; B is one z per output.
        yield _Group(task.rules, (), sum(2 * d + (2 + c) * e for d, e in sizes))
    taken = {name for rule in task.rules.values() for name in rule.parameters}
    others = [name for name in network.trained if name not in taken]
    if not others:
        return
    graph = 2 * c * width(network, task.rows[:1])
    limit = max(1, task.memory // (task.itemsize * task.longest))
    group: list[str] = []
    entries = graph
    for name in others:
        more = c * network.values[name].numel()
        if group and entries + more > limit:
            yield _Group({}, tuple(group), entries)
            group, entries = [], graph
        group.append(name)
        entries += more
    yield _Group({}, tuple(group), entries)


def _tile(task: Task, entries: int) -> int:
    """How many samples to take at a time: all of them if they fit, else a tile of rows and one of columns."""
    room = task.memory // task.itemsize
    c = task.outputs
    # A block and one more of its size while it is formed.
    pair = 2 * {"full": c * c, "diagonal": c, "trace": 1}[task.reduce]
    n1, n2 = len(task.rows), len(task.rows if task.columns is None else task.columns)
    samples = n1 if task.columns is None else n1 + n2
    if samples * entries + pair * n1 * n2 <= room:
        return task.longest
    # 2 t entries + t^2 pair = room
    return max(1, int((math.sqrt(entries**2 + pair * room) - entries) / pair))
