"""Which layers should I train? Sets of layers raced against each other inside a few target samples."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from regimes import control
from regimes.compare.layers.candidates import (
    Candidate,
    above_half,
    blocks,
    given,
    relative_changes,
    relative_gradients,
)
from regimes.compare.layers.choice import LayerChoice, Setting, concluded
from regimes.compare.layers.race import (
    Fold,
    Pair,
    Rungs,
    Standing,
    at_rate,
    frozen_but,
    planned,
    race,
    splits_of,
)
from regimes.compare.layers.saving import Cost, step_cost
from regimes.compare.task.criterion import Criterion, criterion_of
from regimes.compare.task.fit import Protocol
from regimes.compare.task.loop import MakeOptimizer
from regimes.compare.task.prepare import Data, generators_kept, prepared
from regimes.compare.task.problem import Problem, answers, losses
from regimes.control.layers.order import Depths, by_depth, inside
from regimes.core.batch import Inputs, feed, take
from regimes.core.check import checked
from regimes.core.derivative import Output, exact
from regimes.core.error import UserError
from regimes.core.loss import Loss
from regimes.core.progress import progress_of
from regimes.core.state import State
from regimes.measure.activity import activity

__all__ = ["which_layers"]

# Names of the sets that the network itself suggests.
_GRADIENTS, _ACTIVE = "largest gradients", "most active"


@checked
def which_layers(
    module: nn.Module,
    x: Inputs,
    y: Tensor,
    *,
    loss: Loss | None = None,
    optimizer: MakeOptimizer = torch.optim.Adam,
    rates: Sequence[float] = (6e-4, 3e-3, 1.5e-2),
    batch_size: int | None = 50,
    epochs: int = 20,
    candidates: Mapping[str, control.Moves] | None = None,
    layers: Sequence[str] | None = None,
    budget: float = 50.0,
    folds: int = 5,
    repeats: int = 1,
    seed: int = 0,
    margin: float = 0.01,
    level: float = 0.95,
    output: Output | None = None,
    progress: bool = False,
) -> LayerChoice:
    r"""Which layers should I train? Race sets of layers against each other inside a few target samples.

    With little data *which* layers move decides how good a network gets: where inputs are new the first ones, where
    outputs are new the last ones (Lee et al. 2023). Candidates are all layers, the head (the last layer), runs of
    neighbouring layers by depth, the layers whose relative gradient norm at the start is at least half of the largest
    (as in Auto-RGN), and those that so move most in a short trial of all layers (``measure.activity``); each at all
    ``rates``. Each pair is trained on the same k-fold splits of the samples with the same batches, first for a quarter
    of the epochs, and the better ones on, up to all epochs (successive halving), so that no more steps are taken than
    the budget allows.

    Of 200 samples the share of wrong answers tells little: the best of thirty such numbers is mostly the luckiest one.
    So pairs are judged by a *score* that scatters less, the Brier score of calibrated answers
    (``compare/calibrate.py``), and for numbers the squared error in units of the variance of the targets. The set with
    the best score is ``.candidate``, with its ``.moves`` and ``.lr``. Whether it is clear is another question, which
    the ``answer`` is about: the name of a set if the whole interval of its score less that of all layers (at the best
    of their rates) lies below 0; "all" if all layers have the best score and no set that was trained to the end may be
    better by ``margin``; else "open". Intervals are for new training sets (corrected resampled t over the splits),
    those of the differences jointly (Bonferroni).

    Args:
        module: f, trained on something else. It is copied and used in the mode it is in; batch norm and dropout have to
            be in evaluation mode. What does not require grad stays as it is, and is in no set.
        x: target inputs: a tensor, a tuple for ``module(*x)``, or a mapping for ``module(**x)``.
        y: targets, (n,): class indices, -1 and +1, or floats, these (n, c) where there are c outputs.
        loss: what is minimised. Left out, it is cross-entropy for classes and the squared loss for numbers.
        optimizer: from parameters to what moves them: ``lambda p: torch.optim.AdamW(p, lr=1e-3)``. Its learning rate
            is replaced by each of the ``rates``; those of other groups keep their ratio to the first.
        rates: learning rates to try.
        batch_size, epochs: of a training; ``batch_size=None`` is all.
        candidates: sets of layers of your own by name, which stay the same at every step, in place of those found;
            "all" is among them in any case.
        layers: names of modules that are one layer each, such as ``["encoder.layer.*"]``; see ``control.layer_plan``.
        budget: of steps, in multiples of one training of all samples: ``budget * epochs * ceil(n / batch_size)``.
        folds: a split trains on all samples but one of so many parts. More of them, such as 10, make intervals much
            narrower, and cost as many more trainings.
        repeats: how often the samples are cut into folds anew.
        seed: of splits and batches.
        margin: of the score, that may be lost by training all layers.
        level: of all intervals.
        output: what picks outputs, (n,) or (n, c), from what the module returns: ``lambda out: out.logits``.
        progress: show a bar with the time left.

    Returns:
        The choice: ``print`` shows tables and a sentence; ``.answer``, ``.moves``, ``.lr``, ``.layers``, ``.table``,
        and ``.costs``, what a step of each set costs as a share of one of all layers, counted from operations and
        bytes. Neither the module nor torch's generators of random numbers are changed. The trials that are still in
        the race keep their parameters in memory, those that move, and what the optimiser keeps of them.

    Raises:
        UserError: before anything is trained, if data, module and loss do not fit, the module couples samples or is
            random, a setting is out of range, a set draws its layers or names none, or the budget is too small.

    Source: Lee, Chen, Tajwar, Kumar, Yao, Liang, Finn, Surgical fine-tuning improves adaptation to distribution shifts,
    ICLR 2023, arXiv:2210.11466; Jamieson, Talwalkar 2016 for successive halving.

    >>> from regimes import models
    >>> net = models.mlp(4, 16, 2, 3, seed=0)
    >>> x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> found = which_layers(net, x, x[:, :3].argmax(1), epochs=4, rates=[0.01], folds=2, budget=12)
    >>> found.answer in found.table["candidate"].tolist() + ["open"], found.runs <= 12
    (True, True)
    """
    criterion = criterion_of(margin, level)
    _check_settings(rates, folds, repeats, seed, epochs, budget)
    protocol = Protocol(0.0, 0.0, batch_size, epochs, seed, optimizer)
    asked = _Asked(tuple(rates), candidates, layers, float(budget), folds, repeats)
    with generators_kept(), torch.enable_grad():
        torch.manual_seed(seed)
        problem = prepared(inside(module), Data(x, y, x, y, loss, output, 0.0), seed)
        with exact(problem.train.y.device):
            return _Call(problem, protocol, asked).answer(criterion, progress)


@dataclass(frozen=True)
class _Asked:
    """Settings of the race, as in :func:`which_layers`."""

    rates: tuple[float, ...]
    candidates: Mapping[str, control.Moves] | None
    layers: Sequence[str] | None
    budget: float
    folds: int
    repeats: int


@dataclass(frozen=True, eq=False)
class _Call:
    """The problem, the protocol of a training, and what was asked for."""

    problem: Problem
    protocol: Protocol
    asked: _Asked

    def answer(self, criterion: Criterion, progress: bool) -> LayerChoice:
        """Find the candidates, race them, and conclude."""
        problem, asked, n = self.problem, self.asked, len(self.problem.train)
        module = problem.network.get_submodule("module")
        found = by_depth(module, take(problem.train.x, slice(0, 2)), asked.layers)
        self._check_optimizer()
        if asked.folds > n:
            raise UserError(f"`folds`: got {asked.folds} for {n} samples, expected at most {n}")
        splits = splits_of(n, asked.folds, asked.repeats, self.protocol.seed)
        run = self.protocol.steps(n) * self.protocol.epochs
        each = sum(self.protocol.steps(len(split.train)) for split in splits)
        spent, sets = 0, given(asked.candidates, found.layers) if asked.candidates is not None else None
        if sets is None:
            sets, spent = self._found(found)
        entries = [Pair(one, rate) for one in sets for rate in asked.rates]
        plan = planned(len(entries), self.protocol.epochs, each, asked.budget, run, spent)
        costs = {one.name: self._cost(one, found) for one in sets}
        results = self._raced(entries, splits, plan, found, progress)
        start = problem.score(answers(problem.network, problem.train.x), problem.train.y).error.cpu()
        by_split = np.array([float(start[split.held].mean()) for split in splits])
        held = float(np.mean([len(split.held) / len(split.train) for split in splits]))
        most = (1.0, 2.0) if problem.unit is None else (math.inf, math.inf)
        setting = Setting(found.layers, criterion, most, held, plan, run, by_split)
        return concluded(results, costs, setting)

    def _raced(
        self, entries: Sequence[Pair], splits: Sequence[Fold], plan: Rungs, found: Depths, progress: bool
    ) -> list[Standing]:
        """The results of all pairs, with a bar."""
        total = sum(
            count * (end - start)
            for count, start, end in zip(plan.counts, (0, *plan.epochs), plan.epochs, strict=False)
        )
        began, done = time.monotonic(), 0
        with progress_of("which layers", quiet=not progress) as bar:

            def tick(epochs: int) -> None:
                nonlocal done
                left = (time.monotonic() - began) * (total / done - 1) if done else None
                bar.show(done, total, left, "epochs")
                done += epochs

            return race(entries, partial(self._start, found), self.problem, splits, plan, tick)

    def _start(self, found: Depths, entry: Pair, split: Fold) -> tuple[Iterator[State], int]:
        """The training of a pair on a split."""
        part = self.problem.train.take(split.train.to(self.problem.train.y.device))
        maker = at_rate(self.protocol.optimizer or torch.optim.Adam, entry.rate)
        protocol = replace(self.protocol, seed=split.seed, optimizer=maker)
        network = frozen_but(self.problem.network, _parameters(entry.candidate, found))
        states = protocol.states(network, replace(self.problem, train=part))
        return iter(states), protocol.steps(len(part))

    def _found(self, found: Depths) -> tuple[list[Candidate], int]:
        """The usual sets, those that the network suggests among them, and the steps that this took."""
        known = {each.places: each for each in blocks(found.layers)}
        places = above_half(relative_gradients(self.problem, found))
        known.setdefault(places, Candidate.of(_GRADIENTS, places, found.layers))
        everything = Pair(
            known[frozenset(range(len(found.layers)))], sorted(self.asked.rates)[len(self.asked.rates) // 2]
        )
        n = len(self.problem.train)
        states, epoch = self._start(
            found, everything, Fold(torch.arange(n), torch.arange(0), self.protocol.seed)
        )
        steps = epoch * math.ceil(self.protocol.epochs / 4)
        end = next(state for state in states if state.step >= steps or state.status == "diverged")
        if end.status != "diverged":
            places = above_half(
                relative_changes(activity(end.parameters, end.origin, module=end.module), found)
            )
            known.setdefault(places, Candidate.of(_ACTIVE, places, found.layers))
        return list(known.values()), steps

    def _cost(self, one: Candidate, found: Depths) -> Cost:
        """What a step of a set costs."""
        network = frozen_but(self.problem.network, _parameters(one, found))
        size = min(self.protocol.batch_size or len(self.problem.train), len(self.problem.train))
        part = self.problem.train.take(torch.arange(size, device=self.problem.train.y.device))
        return step_cost(network, lambda: losses(self.problem.loss, feed(network, part.x), part.y).mean())

    def _check_optimizer(self) -> None:
        """Raise if a training cannot begin."""
        self.protocol.states(self.problem.network, self.problem)
        at_rate(self.protocol.optimizer or torch.optim.Adam, 1.0)([*self.problem.network.parameters()])


def _parameters(one: Candidate, found: Depths) -> frozenset[str]:
    """The names of the parameters of a set, in the network of the problem."""
    return frozenset(f"module.{name}" for place in one.places for name in found.parameters[place])


def _check_settings(
    rates: Sequence[float], folds: int, repeats: int, seed: int, epochs: int, budget: float
) -> None:
    """Raise if a setting is out of range."""
    if not rates or not all(0 < rate < math.inf for rate in rates) or len(set(rates)) < len(rates):
        raise UserError(
            f"`rates`: got {list(rates)}, expected learning rates above 0, at least one, none twice"
        )
    for name, value, least in (
        ("folds", folds, 2),
        ("repeats", repeats, 1),
        ("epochs", epochs, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise UserError(f"`{name}`: got {value}, expected a whole number of at least {least}")
    if not 0 < budget < math.inf:
        raise UserError(f"`budget`: got {budget}, expected a number of trainings above 0")
