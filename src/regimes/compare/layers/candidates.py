"""The sets of layers that are tried: all, the head, runs of neighbours, and what gradients and movement suggest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regimes import control
from regimes.compare.task.problem import Problem, losses, pieces
from regimes.control.layers.order import Depths
from regimes.core.batch import feed
from regimes.core.error import UserError
from regimes.core.tree import size, trainable
from regimes.measure.activity import Changes

__all__ = [
    "ALL",
    "HEAD",
    "Candidate",
    "above_half",
    "blocks",
    "given",
    "relative_changes",
    "relative_gradients",
]

ALL, HEAD = "all", "head"
# So many parts of about equal length are made of the layers.
_PARTS = 5


@dataclass(frozen=True)
class Candidate:
    """A set of layers that may move, the same at every step.

    Attributes:
        name: in the table.
        places: of its layers, from 0 at the bottom.
        moves: the same for :func:`regimes.control.layer_plan` and :class:`regimes.control.LayerwiseSparse`.
    """

    name: str
    places: frozenset[int]
    moves: control.Moves

    @classmethod
    def of(cls, name: str, places: Sequence[int] | frozenset[int], layers: Sequence[str]) -> Candidate:
        """The set of these places."""
        return cls(name, frozenset(places), control.Fixed(names=[layers[place] for place in sorted(places)]))


def blocks(layers: Sequence[str]) -> list[Candidate]:
    """All layers, the head (the last one), and runs of neighbours.

    The layers make up to five parts of about equal length. Runs are the parts from the bottom, those to the top, and
    pairs in between.
    """
    n = len(layers)
    parts = min(_PARTS, n)
    cuts = [round(part * n / parts) for part in range(parts + 1)]
    short = int(parts > 3)  # with many parts, all but one are nearly all
    lower = [(0, end) for end in range(1, parts - short)]
    upper = [(start, parts) for start in range(1 + short, parts)]
    pairs = [(start, start + 2) for start in range(1, parts - 2)]
    found = {frozenset([n - 1]): HEAD} | {frozenset(range(n)): ALL}
    for start, end in (*lower, *pairs, *upper):
        run = range(cuts[start], cuts[end])
        found.setdefault(frozenset(run), _named(run, n))
    return [Candidate.of(name, places, layers) for places, name in found.items()]


def _named(run: range, n: int) -> str:
    """Layers counted from 1."""
    ends = f"{run[0] + 1}" if len(run) == 1 else f"{run[0] + 1}-{run[-1] + 1}"
    return f"layer{'s' * (len(run) > 1)} {ends} of {n}"


def given(candidates: Mapping[str, control.Moves], layers: Sequence[str]) -> list[Candidate]:
    """The sets of a caller, with all layers before them.

    Raises:
        UserError: if there are none, a set is drawn anew from step to step, or does not go with the layers.
    """
    if not candidates:
        raise UserError(
            "`candidates`: got none, expected at least one set of layers; leave it out for the usual ones"
        )
    every = range(len(layers))
    found = {frozenset(every): Candidate.of(ALL, frozenset(every), layers)}
    for name, moves in sorted(candidates.items()):
        try:
            shares = moves.probabilities(layers)
        except UserError as error:
            raise UserError(f"`candidates`: '{name}': {error}") from error
        if any(0 < share < 1 for share in shares):
            raise UserError(
                f"`candidates`: '{name}' is {moves}, which draws layers, expected a set that stays, such as "
                "Fixed(top=1)"
            )
        places = frozenset(place for place, share in enumerate(shares) if share)
        if name == ALL and len(places) < len(layers):
            raise UserError(
                f"`candidates`: 'all' is {moves}, expected all layers under this name; give it another"
            )
        found.setdefault(places, Candidate(name, places, moves))
    return list(found.values())


def above_half(values: Sequence[float]) -> frozenset[int]:
    """The places of the values of at least half of the largest.

    >>> sorted(above_half([0.1, 0.5, 1.0]))
    [1, 2]
    """
    largest = max(values)
    return frozenset(place for place, value in enumerate(values) if value >= largest / 2)


def relative_gradients(problem: Problem, found: Depths) -> list[float]:
    r"""The relative gradient norm of each layer, :math:`\|\nabla_l L\| / \|w_l\|`, of the mean loss on all samples.

    Source: Lee et al. 2023, Auto-RGN, who give each layer a rate in proportion to it.
    """
    own, part = trainable(problem.network.get_submodule("module")), problem.train
    sums = {name: torch.zeros_like(value) for name, value in own.items()}
    for piece in pieces(len(part)):
        some = part.take(torch.arange(len(part), device=part.y.device)[piece])
        loss = losses(problem.loss, feed(problem.network, some.x), some.y).sum()
        gradients = torch.autograd.grad(loss, list(own.values()), allow_unused=True)
        for total, gradient in zip(sums.values(), gradients, strict=True):
            if gradient is not None:
                total += gradient
    return _by_layer(found, sums, own)


def relative_changes(changes: Changes, found: Depths) -> list[float]:
    r"""How far each layer has moved relative to its start, :math:`\|w_l - w_l(0)\| / \|w_l(0)\|`, in a trial."""
    far, start = (
        {name.removeprefix("network.module."): value for name, value in tree.items()}
        for tree in (changes.absolute, changes.start)
    )
    return _by_layer(found, far, start)


def _by_layer(found: Depths, over: Mapping[str, Tensor], under: Mapping[str, Tensor]) -> list[float]:
    """The ratio of the norms of each layer; 0 where it starts at 0, of which nothing can be said."""
    ratios = []
    for names in found.parameters:
        far, whole = (math.hypot(*(size(each[name].detach()) for name in names)) for each in (over, under))
        ratios.append(far / whole if whole else 0.0)
    return ratios
