"""Which layers move at a step: values whose answer is a pure function of (layers, seed, step)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Literal, final, get_args

from regimes.core.check import checked
from regimes.core.error import UserError, nearest
from regimes.core.stream import entropy

__all__ = ["Cut", "CyclicBlocks", "Fixed", "Moves", "RandomLayers", "UniformCut"]

Order = Literal["down", "up", "random"]
# So many sets of random layers are gone through one by one.
_MOST = 4096


class Moves(ABC):
    """Which layers move at a step. Layers are counted from the bottom, next to the inputs, from 0.

    An answer depends on its arguments alone: it is the same on every rank, on every machine, and after a resume.
    """

    @abstractmethod
    def probabilities(self, layers: Sequence[str]) -> tuple[float, ...]:
        """p_l of each layer: the share of the steps at which it moves.

        Raises:
            UserError: if this does not go with these layers.
        """

    @abstractmethod
    def moving(self, layers: Sequence[str], seed: int, step: int) -> frozenset[int]:
        """The places of the layers that move at a step, at least one."""

    @abstractmethod
    def shares(self, layers: Sequence[str]) -> Mapping[frozenset[int], float]:
        """The sets of layers that move, each with its share of the steps; the shares add up to 1."""


@final
@checked
@dataclass(frozen=True)
class Fixed(Moves):
    """The same layers at every step: the top, the bottom, any that are named, or all of these.

    Attributes:
        top: so many layers next to the outputs.
        bottom: so many layers next to the inputs. Backward then runs through all that lies between, and saves the
            gradients of those weights only.
        names: layers, or modules with all layers below them.

    Source: Li and Banerjee, static LWS-SGD.

    >>> sorted(Fixed(top=1, bottom=1).moving(["0", "2", "4"], seed=0, step=7))
    [0, 2]
    """

    top: int = 0
    bottom: int = 0
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        _at_least("top", self.top, 0)
        _at_least("bottom", self.bottom, 0)
        if not (self.top or self.bottom or self.names):
            raise UserError(
                "`top`: got 0 with no `bottom` and no `names`, expected at least one layer that moves"
            )

    def probabilities(self, layers: Sequence[str]) -> tuple[float, ...]:
        """1 for what moves, 0 for the rest."""
        found = self.moving(layers, 0, 0)
        return tuple(float(place in found) for place in range(len(layers)))

    def moving(self, layers: Sequence[str], seed: int, step: int) -> frozenset[int]:
        """The same at every step."""
        n = len(layers)
        for name, count in (("top", self.top), ("bottom", self.bottom)):
            _at_most(name, count, n)
        ends = {*range(n - self.top, n), *range(self.bottom)}
        return frozenset(ends | _places(self.names, "names", layers))

    def shares(self, layers: Sequence[str]) -> Mapping[frozenset[int], float]:
        """One set."""
        return {self.moving(layers, 0, 0): 1.0}


@final
@checked
@dataclass(frozen=True)
class Cut(Moves):
    """A sampled depth: at each step all layers above it move, and none below.

    One number u, uniform on [0, 1), is drawn for a step, and layer l moves if u < p_l.

    Attributes:
        p: the probability that all layers move, where the ``top`` ones always do; or one probability for each layer
            from the bottom to the top, none below the one before it, the last one 1.
        top: how many layers move at every step; 1 or more. Where p has one entry a layer it is not used.
        interval: so many steps go by one draw.

    Source: Li and Banerjee, probabilistic LWS-SGD (one p and the top).

    >>> cut = Cut(p=0.2, top=1)
    >>> cut.probabilities(["0", "2", "4"])
    (0.2, 0.2, 1.0)
    >>> [sorted(cut.moving(["0", "2", "4"], seed=0, step=step)) for step in range(4)]
    [[2], [2], [0, 1, 2], [2]]
    """

    p: float | Sequence[float]
    top: int = 1
    interval: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.p, Sequence):
            object.__setattr__(self, "p", tuple(map(float, self.p)))
        _at_least("top", self.top, 1)
        _at_least("interval", self.interval, 1)
        every = self.p if isinstance(self.p, Sequence) else (self.p, 1.0)
        for one in every:
            if not 0 <= one <= 1:
                raise UserError(f"`p`: got {one:g}, expected a probability from 0 to 1")
        for below, above in pairwise(every):
            if below > above:
                raise UserError(
                    f"`p`: got {below:g} below {above:g}, expected no layer to move more often than the one above it, "
                    "from the bottom to the top; RandomLayers draws layers regardless of their depth"
                )
        if not every or every[-1] < 1:
            raise UserError(
                f"`p`: got {self.p}, expected 1 for the last layer: something moves at every step"
            )

    def probabilities(self, layers: Sequence[str]) -> tuple[float, ...]:
        """p_l of each layer."""
        n = len(layers)
        if not isinstance(self.p, Sequence):
            _at_most("top", self.top, n)
            return (float(self.p),) * (n - self.top) + (1.0,) * self.top
        if len(self.p) != n:
            raise UserError(
                f"`p`: got {len(self.p)} probabilities, expected {n}, one for each of {_listed(layers)}"
            )
        return tuple(self.p)

    def moving(self, layers: Sequence[str], seed: int, step: int) -> frozenset[int]:
        """Every layer above the depth that is drawn."""
        return _above(self.probabilities(layers), seed, step // self.interval)

    def shares(self, layers: Sequence[str]) -> Mapping[frozenset[int], float]:
        """For each depth the layers above it."""
        return _nested(self.probabilities(layers))


@final
@checked
@dataclass(frozen=True)
class UniformCut(Moves):
    """A sampled depth as in :class:`Cut`, each with the same probability: p_l = (l + 1) / n for n layers.

    Attributes:
        interval: so many steps go by one draw.

    >>> UniformCut().probabilities(["0", "2", "4", "6"])
    (0.25, 0.5, 0.75, 1.0)
    """

    interval: int = 1

    def __post_init__(self) -> None:
        _at_least("interval", self.interval, 1)

    def probabilities(self, layers: Sequence[str]) -> tuple[float, ...]:
        """(l + 1) / n."""
        return tuple((place + 1) / len(layers) for place in range(len(layers)))

    def moving(self, layers: Sequence[str], seed: int, step: int) -> frozenset[int]:
        """Every layer above the depth that is drawn."""
        return _above(self.probabilities(layers), seed, step // self.interval)

    def shares(self, layers: Sequence[str]) -> Mapping[frozenset[int], float]:
        """For each depth the layers above it."""
        return _nested(self.probabilities(layers))


@final
@checked
@dataclass(frozen=True)
class RandomLayers(Moves):
    """So many layers, whichever, each set with the same probability; some layers may move always.

    Backward runs down to the lowest of them: where a layer at the bottom moves always, it saves weight gradients only.

    Attributes:
        count: how many of the other layers move.
        always: layers, or modules with all layers below them, that move at every step.
        interval: so many steps go by one draw.

    Source: Pan et al. 2024, LISA (there ``always`` is the embedding and the head).

    >>> moves = RandomLayers(count=1, always=("head",))
    >>> moves.probabilities(["embed", "h.0", "head"])
    (0.5, 0.5, 1.0)
    """

    count: int
    always: Sequence[str] = ()
    interval: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "always", tuple(self.always))
        _at_least("count", self.count, 1)
        _at_least("interval", self.interval, 1)

    def probabilities(self, layers: Sequence[str]) -> tuple[float, ...]:
        """1 for what moves always, count / (the others) for each other layer."""
        fixed = _places(self.always, "always", layers)
        others = len(layers) - len(fixed)
        _at_most("count", self.count, others, "besides those that move `always`" if fixed else "")
        return tuple(1.0 if place in fixed else self.count / others for place in range(len(layers)))

    def moving(self, layers: Sequence[str], seed: int, step: int) -> frozenset[int]:
        """Those that move always, and ``count`` of the others."""
        self.probabilities(layers)
        fixed = _places(self.always, "always", layers)
        others = [place for place in range(len(layers)) if place not in fixed]
        return frozenset(fixed | {*_shuffled(others, seed, step // self.interval)[: self.count]})

    def shares(self, layers: Sequence[str]) -> Mapping[frozenset[int], float]:
        """All sets of so many layers; where these are more than 4096, as many draws of them."""
        self.probabilities(layers)
        fixed = _places(self.always, "always", layers)
        others = [place for place in range(len(layers)) if place not in fixed]
        if math.comb(len(others), self.count) <= _MOST:
            found = [frozenset(fixed | {*each}) for each in combinations(others, self.count)]
        else:
            found = [self.moving(layers, 0, draw * self.interval) for draw in range(_MOST)]
        return {each: count / len(found) for each, count in Counter(found).items()}


@final
@checked
@dataclass(frozen=True)
class CyclicBlocks(Moves):
    """Blocks of neighbouring layers, one after another, each for ``interval`` steps.

    Attributes:
        size: so many layers in a block; the last one may have fewer.
        order: "down" from the top, "up" from the bottom, or "random": in each round all blocks in an order of its own.
        interval: so many steps a block moves before the next one does.

    Source: Luo, Yu, Li 2024, BAdam (there the state of the optimiser is dropped at each change: ``state="drop"``).

    >>> blocks = CyclicBlocks(size=2, interval=10)
    >>> [sorted(blocks.moving(["0", "2", "4"], seed=0, step=step)) for step in (0, 9, 10, 20)]
    [[1, 2], [1, 2], [0], [1, 2]]
    """

    size: int = 1
    order: Order = "down"
    interval: int = 1

    def __post_init__(self) -> None:
        _at_least("size", self.size, 1)
        _at_least("interval", self.interval, 1)
        if self.order not in get_args(Order):
            raise UserError(f"`order`: got {self.order!r}, expected one of {', '.join(get_args(Order))}")

    def probabilities(self, layers: Sequence[str]) -> tuple[float, ...]:
        """1 / (the number of blocks) for each layer."""
        _at_most("size", self.size, len(layers))
        return (1 / -(-len(layers) // self.size),) * len(layers)

    def moving(self, layers: Sequence[str], seed: int, step: int) -> frozenset[int]:
        """The block whose turn it is."""
        n = len(layers)
        _at_most("size", self.size, n)
        blocks = self._blocks(n)
        turn, place = divmod(step // self.interval, len(blocks))
        if self.order == "random":
            place = _shuffled(range(len(blocks)), seed, turn)[place]
        return frozenset(blocks[-1 - place if self.order == "up" else place])

    def shares(self, layers: Sequence[str]) -> Mapping[frozenset[int], float]:
        """The blocks, each as often as another."""
        _at_most("size", self.size, len(layers))
        blocks = self._blocks(len(layers))
        return {frozenset(block): 1 / len(blocks) for block in blocks}

    def _blocks(self, n: int) -> list[range]:
        """From the top, so that the block with fewer layers is at the bottom."""
        return [range(max(0, end - self.size), end) for end in range(n, 0, -self.size)]


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"`{name}`: got {value}, expected a whole number of at least {least}")


def _at_most(name: str, value: int, most: int, which: str = "") -> None:
    if value > most:
        raise UserError(
            f"`{name}`: got {value}, expected at most {most}, as many layers as there are {which}".rstrip()
        )


def _listed(layers: Sequence[str]) -> str:
    """Names of layers for an error, the middle left out where there are many."""
    shown = list(layers) if len(layers) <= 8 else [*layers[:4], "...", *layers[-3:]]
    return ", ".join(f"'{each}'" if each != "..." else each for each in shown)


def _places(names: Sequence[str], argument: str, layers: Sequence[str]) -> set[int]:
    """The places of layers by their names, or by the name of a module that they are part of."""
    found: set[int] = set()
    for name in names:
        under = {place for place, layer in enumerate(layers) if layer == name or layer.startswith(f"{name}.")}
        if not under:
            raise UserError(
                f"`{argument}`: got '{name}', expected names of layers: {_listed(layers)}{nearest(name, layers)}"
            )
        found |= under
    return found


def _above(probabilities: Sequence[float], seed: int, draw: int) -> frozenset[int]:
    """The layers with u < p_l, u uniform on the multiples of 2^-53 in [0, 1)."""
    u = (entropy(seed, "cut", draw) >> 203) / 2**53
    return frozenset(place for place, p in enumerate(probabilities) if u < p)


def _nested(probabilities: Sequence[float]) -> dict[frozenset[int], float]:
    """The sets {l: u < p_l}, each with the probability that u gives it."""
    n, below, found = len(probabilities), 0.0, {}
    for place, p in enumerate(probabilities):
        if p > below:
            found[frozenset(range(place, n))] = p - below
            below = p
    return found


def _shuffled(places: Sequence[int], seed: int, draw: int) -> list[int]:
    """The places in an order that is drawn, every order with the same probability."""
    return sorted(places, key=lambda place: entropy(seed, "order", draw, place))
