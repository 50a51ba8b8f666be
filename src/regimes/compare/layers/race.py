"""Candidates against each other: trials on the same splits, longer and longer, of fewer and fewer of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from regimes.compare.layers.calibrate import brier
from regimes.compare.layers.candidates import ALL, Candidate
from regimes.compare.task.fit import answers_of
from regimes.compare.task.loop import MakeOptimizer
from regimes.compare.task.problem import Problem, Samples
from regimes.core.error import UserError
from regimes.core.state import State
from regimes.core.stream import generator

__all__ = ["Fold", "Pair", "Rungs", "Standing", "at_rate", "frozen_but", "planned", "race", "splits_of"]

Begin = Callable[["Pair", "Fold"], tuple[Iterator[State], int]]
"""From an entry and a split to the states of its training, one for each epoch, and the steps of an epoch."""

# Rungs, as shares of a whole training; at each some entries are left behind.
_RUNGS = (0.25, 0.5, 1.0)
# So many entries reach the end at least.
_LEAST = 2


@dataclass(frozen=True)
class Pair:
    """A set of layers and a learning rate."""

    candidate: Candidate
    rate: float


@dataclass(frozen=True, eq=False)
class Fold:
    """Indices of the samples to train on and of those held out, and the seed of the batches."""

    train: Tensor
    held: Tensor
    seed: int


@dataclass(frozen=True)
class Rungs:
    """How many entries train up to how many epochs: ``counts`` go with ``epochs``; ``steps`` are those of all."""

    epochs: tuple[int, ...]
    counts: tuple[int, ...]
    steps: int


@dataclass(frozen=True, eq=False)
class Standing:
    """How an entry did.

    Attributes:
        entry: the set of layers and the rate.
        epochs: that it was trained for.
        errors: the mean error of the samples held out in each split, (splits,); None if it diverged.
        scores: likewise of what the race is decided by (``calibrate``).
    """

    entry: Pair
    epochs: int
    errors: np.ndarray | None
    scores: np.ndarray | None

    @property
    def mean(self) -> float:
        """The mean score, inf if it diverged."""
        return math.inf if self.scores is None else float(self.scores.mean())


def splits_of(samples: int, folds: int, repeats: int, seed: int) -> list[Fold]:
    """Repeated k-fold splits: each sample is held out once in each repeat."""
    found = []
    for repeat in range(repeats):
        order = torch.randperm(samples, generator=generator(seed, "folds", repeat))
        for fold, held in enumerate(order.tensor_split(folds)):
            rest = torch.ones(samples, dtype=torch.bool)
            rest[held] = False
            found.append(Fold(rest.nonzero()[:, 0], held.sort().values, seed + repeat * folds + fold))
    return found


def planned(entries: int, epochs: int, each: int, budget: float, run: int, spent: int = 0) -> Rungs:
    """The race that leaves behind the same share of the entries at each rung and spends at most the budget.

    Args:
        entries: at the start.
        epochs: of a whole training.
        each: steps of one epoch of one entry on all splits.
        budget: in trainings of all samples, of ``run`` steps each.
        spent: steps of the budget that were taken before.

    Returns:
        The plan; its steps are those of the race and those spent.

    Raises:
        UserError: if the budget is too small.

    >>> planned(8, 4, each=10, budget=18, run=10)
    Rungs(epochs=(1, 2, 4), counts=(8, 4, 2), steps=160)
    """
    lengths = tuple(sorted({math.ceil(share * epochs) for share in _RUNGS}))
    parts = [length - before for length, before in zip(lengths, (0, *lengths), strict=False)]
    steps = 0
    for first in range(entries, 0, -1):
        counts = [entries]
        while len(counts) < len(lengths):
            counts.append(min(entries, max(_LEAST, math.ceil(counts[-1] * first / entries))))
        steps = spent + each * sum(count * part for count, part in zip(counts, parts, strict=True))
        if steps <= budget * run:
            return Rungs(lengths, tuple(counts), steps)
    raise UserError(
        f"`budget`: got {budget:g} trainings, expected at least {math.ceil(10 * steps / run) / 10:g} for {entries} "
        "pairs of layers and rate; give a larger one, or fewer `rates`, `candidates` or `folds`"
    )


def at_rate(make: MakeOptimizer, rate: float) -> MakeOptimizer:
    """The same optimiser with this learning rate; those of its other groups keep their ratio to the first.

    Raises:
        UserError: when it is made, if it has no learning rate above 0.
    """

    def made(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        found = make(parameters)
        if isinstance(found, torch.optim.Optimizer):
            first = float(found.param_groups[0].get("lr", 0.0))
            if not first > 0:
                raise UserError(
                    f"`optimizer`: {type(found).__name__} has `lr` {first:g}, expected a rate above 0"
                )
            for group in found.param_groups:
                group["lr"] = group["lr"] / first * rate
        return found

    return made


def frozen_but(network: nn.Module, moving: frozenset[str]) -> nn.Module:
    """The network with the same values in the same memory, of which only these parameters require grad."""
    memo = {
        id(p): nn.Parameter(p.detach(), requires_grad=name in moving)
        for name, p in network.named_parameters()
    }
    return copy.deepcopy(network, memo)  # pyright: ignore[reportArgumentType]


@final
class _Trial:
    """An entry on one split: training that goes on where it was left."""

    def __init__(self, states: Iterator[State], epoch: int, held: Samples) -> None:
        self._states, self._epoch, self._held = states, epoch, held

    def advance(self, epochs: int) -> Tensor | None:
        """Train up to so many epochs in all; the outputs for the samples held out, None if it diverges."""
        for state in self._states:
            if state.status == "diverged":
                return None
            if state.step >= epochs * self._epoch:
                outputs = answers_of(state, self._held)
                return outputs if bool(outputs.isfinite().all()) else None
        return None


@final
class _Runner:
    """All trials of one entry, and what they have shown so far."""

    def __init__(self, entry: Pair, start: Begin, problem: Problem, splits: Sequence[Fold]) -> None:
        self._problem, self._held = problem, [problem.train.take(split.held) for split in splits]
        pairs = zip(splits, self._held, strict=True)
        self._trials = [_Trial(*start(entry, split), held) for split, held in pairs]
        self.result = Standing(entry, 0, None, None)

    def advance(self, epochs: int) -> None:
        """Train on all splits."""
        outputs = [trial.advance(epochs) for trial in self._trials]
        known = [each for each in outputs if each is not None]
        if len(known) < len(self._held):
            self._trials = []
            self.result = replace(self.result, epochs=epochs, errors=None, scores=None)
            return
        y = torch.cat([part.y for part in self._held])
        errors = self._problem.score(torch.cat(known), y).error
        # Numbers have no probabilities: their squared error is the score.
        scores = errors if self._problem.unit is not None else brier(torch.cat(known), y)
        self.result = replace(
            self.result, epochs=epochs, errors=self._by_split(errors), scores=self._by_split(scores)
        )

    def _by_split(self, values: Tensor) -> np.ndarray:
        """The means (splits,) of values of the samples held out, split by split."""
        return np.array([float(part.mean()) for part in values.split([len(part) for part in self._held])])


def race(
    entries: Sequence[Pair],
    start: Begin,
    problem: Problem,
    splits: Sequence[Fold],
    plan: Rungs,
    tick: Callable[[int], None],
) -> list[Standing]:
    """Train all entries up to the first rung, the better ones up to the next, and so on.

    The best of those that move all layers goes to the end whatever happens.

    Args:
        entries: in any order.
        start: what begins the training of an entry on a split.
        problem: whose training samples the splits are of.
        splits: the same for all entries.
        plan: how many go on.
        tick: hears of the epochs that an entry is going to be trained for.

    Returns:
        One result for each entry: those at the end, the best first, then those left behind last.
    """
    live = [_Runner(entry, start, problem, splits) for entry in sorted(entries, key=_place)]
    behind: list[Standing] = []
    for epochs, count in zip(plan.epochs, plan.counts, strict=True):
        best = next(runner for runner in live if runner.result.entry.candidate.name == ALL)
        kept = live[:count] if best in live[:count] else [*live[: count - 1], best]
        behind = [*(runner.result for runner in live if runner not in kept), *behind]
        for runner in kept:
            tick(epochs - runner.result.epochs)
            runner.advance(epochs)
        # Equal ones keep their order, and what is rounding is equal.
        live = sorted(
            sorted(kept, key=lambda each: _place(each.result.entry)),
            key=lambda each: round(each.result.mean, 10),
        )
    return [*(runner.result for runner in live), *behind]


def _place(entry: Pair) -> tuple[bool, list[int], float]:
    """An order of entries that hangs on nothing but themselves: all layers first, for they win a tie."""
    return entry.candidate.name != ALL, sorted(entry.candidate.places), entry.rate
