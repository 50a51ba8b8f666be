"""All trainings of a ladder: rates that are tried first, then every rung with every seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from regimes.compare.task.fit import Listener, Protocol, constant, started
from regimes.compare.task.problem import Fit, Problem, tried
from regimes.compare.task.score import Trial
from regimes.compare.updates.rungs import BEST, PLAIN, Blocks, Rung, trained

__all__ = ["Found", "LateError", "Training"]

# Of the training samples, held back where rates are tried.
_HELD = 0.2


class LateError(Exception):
    """The time is over; it never leaves a comparison."""


@dataclass(frozen=True, eq=False)
class Found:
    """What was trained.

    Attributes:
        rungs: with their rates.
        trials: all models of each seed.
        blocks: of each rung, by seed.
        late: whether the time was over before the end.
    """

    rungs: tuple[Rung, ...]
    trials: list[Trial]
    blocks: dict[str, list[Blocks]]
    late: bool


@dataclass(frozen=True, eq=False)
class Training:
    """All that is trained.

    Attributes:
        problem: from a seed, and a share of the training samples to hold back, to what is learnt.
        protocol: of plain training with the first seed.
        rungs: those of the ladder.
        rates: factors of the rate that are tried.
        tune: whether by linear blocks too.
        tick: hears of epochs, and raises when the time is over.
    """

    problem: Callable[[int, float], Problem]
    protocol: Protocol
    rungs: Sequence[Rung]
    rates: tuple[float, ...]
    tune: bool
    tick: Listener

    def run(self, first: Problem, seeds: int) -> Found:
        """Find rates, then train seed by seed, of which only whole ones count; or of the first what there is."""
        steps = self.protocol.epochs * self.protocol.steps(len(first.train))
        plain = Rung(PLAIN, steps, steps)
        rungs: tuple[Rung, ...] = (*self.rungs, plain)
        trials: list[Trial] = []
        blocks: dict[str, list[Blocks]] = {rung.name: [] for rung in self.rungs}
        fits: list[Fit] = []
        try:
            rungs = self.tuned(plain)
            for k in range(seeds):
                seed = self.protocol.seed + k
                fits, seen = [], {}
                problem = first if k == 0 else self.problem(seed, 0.0)
                self.train(problem, seed, rungs, fits, seen)
                trials.append(Trial(problem, tuple(fits)))
                for name, each in seen.items():
                    blocks[name].append(each)
        except LateError:
            return Found(rungs, trials or [_partial(first, fits, rungs)], blocks, True)
        return Found(rungs, trials, blocks, False)

    def train(
        self, problem: Problem, seed: int, rungs: Sequence[Rung], fits: list[Fit], blocks: dict[str, Blocks]
    ) -> None:
        """All models of a seed, plain training first; one that fails does not stop the others."""
        protocol = replace(self.protocol, seed=seed)
        fits += [constant(problem), *tried("start", lambda: [started(problem)])]
        for rung in reversed(rungs):

            def models(rung: Rung = rung) -> list[Fit]:
                found, seen = trained(rung, problem, protocol, self.tick)
                if seen is not None:
                    blocks[rung.name] = seen
                return found

            fits += tried(rung.name, models)

    def tuned(self, plain: Rung) -> tuple[Rung, ...]:
        """The rungs, each with the factor of the rate that it is trained with."""
        if len(self.rates) == 1:
            return tuple(replace(rung, factor=self.rates[0]) for rung in (*self.rungs, plain))
        problem = self.problem(self.protocol.seed, _HELD)
        best = self.best(problem, plain)
        if self.tune:
            return (*(self.best(problem, rung) for rung in self.rungs), best)
        return (*self.rungs, plain) if best.factor == 1 else (*self.rungs, plain, replace(best, name=BEST))

    def best(self, problem: Problem, rung: Rung) -> Rung:
        """A rung with the factor of least error on the samples held back, of least loss among equals."""
        short = rung.over(self.protocol.epochs * self.protocol.steps(len(problem.train)))
        found = []
        for place, factor in enumerate(self.rates):
            one = replace(short, factor=factor)
            fit = tried(rung.name, lambda one=one: trained(one, problem, self.protocol, self.tick)[0])[0]
            scores = None if fit.test is None else problem.score(fit.test, problem.test.y)
            means = (
                [math.inf] * 2 if scores is None else [float(scores.error.mean()), float(scores.loss.mean())]
            )
            found.append((*means, place))
        return replace(rung, factor=self.rates[min(found)[2]])


def _partial(problem: Problem, fits: Sequence[Fit], rungs: Sequence[Rung]) -> Trial:
    """The models of a seed that were trained before the time was over, and rows for the others."""
    known = {fit.name for fit in fits}
    names = ["constant", "start", *(rung.name for rung in rungs)]
    return Trial(problem, (*fits, *(Fit(name, "out of time", 0.0) for name in names if name not in known)))
