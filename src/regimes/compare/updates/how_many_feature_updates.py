"""How many feature updates? A network trained in ever fewer linear blocks, against plain training."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regimes.compare.task.criterion import Criterion, criterion_of
from regimes.compare.task.fit import Protocol
from regimes.compare.task.prepare import Data, Seeded, generators_kept, made, prepared
from regimes.compare.task.problem import Problem
from regimes.compare.updates.feature_updates import FeatureUpdates, Ladder, concluded
from regimes.compare.updates.rate import bound_at, found_rate
from regimes.compare.updates.rungs import PLAIN, Rung, ladder_of, rung_of
from regimes.compare.updates.training import LateError, Training
from regimes.control.anchor.stability import Stable
from regimes.core.batch import Inputs
from regimes.core.check import checked
from regimes.core.derivative import Output, exact
from regimes.core.error import UserError
from regimes.core.loss import Loss
from regimes.core.progress import progress_of
from regimes.train.descent import Rate

__all__ = ["how_many_feature_updates"]


@checked
def how_many_feature_updates(
    module: Seeded,
    x: Inputs,
    y: Tensor,
    x_test: Inputs,
    y_test: Tensor,
    *,
    ladder: Sequence[int] | None = None,
    loss: Loss | None = None,
    lr: float | Rate | None = None,
    momentum: float = 0.0,
    batch_size: int | None = 64,
    epochs: int = 100,
    rates: Sequence[float] = (1.0, 3.0, 10.0),
    tune: bool = False,
    stable: Stable | None = "lower",
    seeds: int = 5,
    seed: int = 0,
    margin: float = 0.01,
    level: float = 0.95,
    max_seconds: float = math.inf,
    output: Output | None = None,
    progress: bool = False,
) -> FeatureUpdates:
    r"""How many feature updates are enough? Train in ever fewer linear blocks, and compare with plain training.

    A *feature update* linearises the network anew where it is, f(a, x) + J(a, x)(w - a) with a = w; between two of them
    only this linear model is trained (iterative linearisation). T steps of SGD with U updates, evenly spread, are plain
    training for U = T and the linearisation at the start for U = 1. Each rung of the ladder takes the same T steps on
    the same batches, for each of the ``seeds``: the order of the batches, and if ``module`` is a function from seed to
    module, the start. What is judged is what was trained, the linear model of the last block; the network at the same
    weights stands beside it.

    The *error* is the share of wrong answers for classes, and for numbers the squared error in units of the variance of
    the training targets (1 - R^2). U updates are enough if the interval of their error less that of plain training lies
    below ``margin``, and so it does for all larger numbers tried: rungs are tested from the largest U down, until one
    is not confirmed, so that a U that is not enough is taken for one that is in at most (1 - level) / 2 of the cases.
    The answer is the least such U; "no" if the interval of the largest U below T lies above the margin; else "open".
    It is open as well where plain training has diverged, or did not learn: the interval of what it gained has to lie
    above ``margin``, over its start and over the best constant answer. A block that diverges is no test of features; it
    is left out, and named.

    A linear block diverges beyond the stability bound of its anchor, where a network only turns to a flatter place, so
    that **a larger rate favours plain training** and a small one flatters linear blocks. So there are two answers:
    against plain training at the same rate, and ``against_best`` against plain training at the best of ``rates``, by
    the error on a fifth of the training samples in a first run that does not count further. With ``tune`` each rung has
    its own best rate, from as many first runs, and the two answers are one.

    Args:
        module: f, or a function from seed to f (``lambda seed: models.mlp(8, 64, 2, seed=seed)``), that
            ``control.linearize`` takes. It is copied and used in the mode it is in.
        x: training inputs: a tensor, a tuple for ``module(*x)``, or a mapping for ``module(**x)``.
        y: targets, (n,): class indices, -1 and +1, or floats, these (n, c) where there are c outputs.
        x_test, y_test: held-out data.
        ladder: numbers of updates below T, in rising order; 1, 3, 10, 30, ... up to T / 4 where left out. T itself is
            there in any case.
        loss: what is minimised. Left out, it is cross-entropy for classes and the squared loss for numbers.
        lr: the learning rate, or a function from step to it. Left out, it is at most half of the least stability bound
            (``control.stable_rate``) that plain training at this rate comes by, in a first run of the first seed or up
            to six.
        momentum, batch_size, epochs: of the steps, as in ``train.descent``; ``batch_size=None`` is all.
        rates: factors of ``lr``, those that plain training is tried at; one, such as [1.0], for no trial.
        tune: whether linear blocks are tried at all of them too.
        stable: what is done at an anchor where the rate is beyond the bound, as in ``train.descent``: "lower" the rate
            for this block, "shorten" the block, "refuse", or None. The bound costs about as much as 11 epochs, so it is
            computed in rungs of few updates: of 1, and where all of them cost at most five times the steps.
        seeds: how many, from ``seed`` on.
        seed: the first.
        margin: the error that may be lost.
        level: of all intervals.
        max_seconds: wall-clock of the whole call, looked at after each epoch: the seeds that are done then are judged.
        output: what picks outputs, (n,) or (n, c), from what the module returns: ``lambda out: out.logits``.
        progress: show a bar with the time left.

    Returns:
        The answers: ``print`` shows a table and sentences; ``.answer``, ``.against_best``, ``.table``. Neither the
        module nor torch's generators of random numbers are changed.

    Raises:
        UserError: before anything is trained, if data, module and loss do not fit, the module cannot be linearised, or
            a setting is out of range.

    Cost: an epoch of a linear rung 5/3 of one of plain training, where the bound is computed up to six times that.

    Source: Goldwaser, Ge 2022, arXiv:2211.12345.

    >>> from regimes import models
    >>> x = torch.randn(300, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> part = (x[:100], x[:100, 0], x[100:], x[100:, 0])
    >>> module = torch.nn.Linear(3, 1, dtype=torch.float64)  # linear in its weights
    >>> found = how_many_feature_updates(module, *part, ladder=[1, 2], epochs=10, rates=[1.0], seeds=2)
    >>> found.answer, found.table.index.tolist()
    (1, ['1 update', '2 updates', 'plain training'])
    """
    criterion = criterion_of(margin, level)
    _check_settings(epochs, seeds, seed, rates, max_seconds)
    data = Data(x, y, x_test, y_test, loss, output, 0.0)
    protocol = Protocol(0.0 if lr is None else lr, momentum, batch_size, epochs, seed, stable=stable)
    call = _Call(module, data, protocol, lr is None, tuple(map(float, rates)), tune, max_seconds)
    with generators_kept(), torch.enable_grad():
        return call.answer(ladder, seeds, criterion, progress)


@dataclass(frozen=True, eq=False)
class _Call:
    """What was asked for, as in :func:`how_many_feature_updates`.

    Attributes:
        source: the module, or what makes it.
        data: the samples and the loss.
        protocol: of plain training with the first seed.
        unrated: whether the learning rate was left out.
        rates: factors that are tried.
        tune: whether by linear blocks too.
        max_seconds: of the whole call.
    """

    source: Seeded
    data: Data
    protocol: Protocol
    unrated: bool
    rates: tuple[float, ...]
    tune: bool
    max_seconds: float

    def problem(self, seed: int, held: float = 0.0) -> Problem:
        """Network and data of a seed, checked; with a share held back these are what is scored."""
        torch.manual_seed(seed)
        found = prepared(made(self.source, seed), replace(self.data, validation=held), seed)
        return found if found.valid is None else replace(found, test=found.valid, valid=None)

    def answer(
        self, ladder: Sequence[int] | None, seeds: int, criterion: Criterion, progress: bool
    ) -> FeatureUpdates:
        """Check, find the rates, train, and conclude."""
        began, first = time.monotonic(), self.problem(self.protocol.seed)
        with exact(first.train.y.device):
            steps = self.protocol.epochs * self.protocol.steps(len(first.train))
            rungs = [rung_of(updates, steps) for updates in ladder_of(ladder, steps)]
            protocol, bound = self.rated(first, began)
            for rung in (*rungs, Rung(PLAIN, steps, steps)):
                rung.protocol(protocol, len(first.train)).states(first.network, first)
            varies = ("batches",) if protocol.draws(first) else ()
            varies = varies if isinstance(self.source, torch.nn.Module) else ("starts", *varies)
            count = seeds if varies else 1
            trials = 0 if len(self.rates) == 1 else len(self.rates) * (1 + self.tune * len(rungs))
            total = protocol.epochs * (trials + count * (len(rungs) + 2))
            with progress_of("how many feature updates", quiet=not progress) as bar:
                done = 0.0

                def tick(name: str, epochs: float) -> None:
                    nonlocal done
                    done += epochs
                    spent = time.monotonic() - began
                    if spent > self.max_seconds:
                        raise LateError
                    bar.show(round(done), total, spent * (total / done - 1) if done else None, name)

                training = Training(self.problem, protocol, rungs, self.rates, self.tune, tick)
                found = training.run(first, count)
        rate = protocol.first_rate(first.network)
        spent = time.monotonic() - began
        stakes = Ladder(
            found.rungs,
            rate,
            bound,
            self.unrated,
            criterion,
            self.tune,
            self.rates,
            varies,
            spent,
            found.late,
        )
        return concluded(found.trials, found.blocks, stakes)

    def rated(self, problem: Problem, began: float) -> tuple[Protocol, float]:
        """The protocol with a learning rate, and the bound that it was held against."""
        protocol, bound = self.protocol, bound_at(problem.network, problem, self.protocol)
        if not self.unrated:
            return protocol, bound
        rate, bound = found_rate(
            problem, protocol, bound, lambda: time.monotonic() - began > self.max_seconds
        )
        return replace(protocol, lr=rate), bound


def _check_settings(epochs: int, seeds: int, seed: int, rates: Sequence[float], max_seconds: float) -> None:
    """Raise if a setting is out of range."""
    for name, value, least in (("epochs", epochs, 1), ("seeds", seeds, 1), ("seed", seed, 0)):
        if value < least:
            raise UserError(f"`{name}`: got {value}, expected a whole number of at least {least}")
    if not rates or not all(0 < rate < math.inf for rate in rates) or len(set(rates)) < len(rates):
        raise UserError(
            f"`rates`: got {list(rates)}, expected factors of the learning rate above 0, none twice"
        )
    if not max_seconds >= 0:
        raise UserError(f"`max_seconds`: got {max_seconds}, expected seconds, 0 or more")
