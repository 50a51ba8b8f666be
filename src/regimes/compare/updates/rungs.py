"""The rungs of a ladder: the same number of steps in more or fewer blocks, each around an anchor of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from regimes import control
from regimes.compare.task.fit import Listener, Protocol, answers_of, ran, stepped
from regimes.compare.task.problem import Fit, Problem
from regimes.core.error import UserError
from regimes.train.descent import Descent, Rate

__all__ = ["BEST", "PLAIN", "Blocks", "Rung", "beside", "ladder_of", "rung_of", "times", "trained"]

PLAIN, BEST = "plain training", "plain, best rate"
# Where nobody says which rungs, no block is shorter.
_SHORTEST = 4
# Steps that the bound at an anchor costs, by samples and by batches, and what it may cost over the steps themselves.
_LOOK, _BATCHES, _MOST = 11, 4, 5.0


@dataclass(frozen=True)
class Rung:
    """One way to spend the steps.

    Attributes:
        name: in the table.
        updates: U, the feature updates, the one at the start included; all steps for plain training.
        steps: T of the whole run.
        factor: of the learning rate.
    """

    name: str
    updates: int
    steps: int
    factor: float = 1.0

    @property
    def plain(self) -> bool:
        """Whether the network itself is trained."""
        return self.updates == self.steps

    @property
    def block(self) -> int:
        """The steps of the longest block."""
        return -(-self.steps // self.updates)

    def moments(self) -> tuple[int, ...]:
        """The steps before which the anchor moves, evenly spread.

        >>> Rung("", 3, 10).moments()
        (3, 7)
        """
        return tuple(round(place * self.steps / self.updates) for place in range(1, self.updates))

    def over(self, steps: int) -> Rung:
        """The same in a run of other length."""
        return replace(
            self, steps=steps, updates=steps if self.plain else min(self.updates, max(steps - 1, 1))
        )

    def protocol(self, protocol: Protocol, samples: int) -> Protocol:
        """How it is trained; its rate is held against the bound at each anchor where there are few."""
        protocol = replace(protocol, lr=times(protocol.lr, self.factor))
        if self.plain:
            return replace(protocol, stable=None)
        look = _LOOK * (protocol.steps(samples) + _BATCHES)
        few = self.updates == 1 or self.updates * look <= _MOST * self.steps
        anchor = control.AtSteps(self.moments())
        return replace(protocol, anchor=anchor, stable=protocol.stable if few else None)


@dataclass(frozen=True)
class Blocks:
    """What became of the blocks of a training.

    Attributes:
        spent: the feature updates that were taken, more than U where blocks were shortened.
        bound: the least stable rate at an anchor, nan where it was not looked at.
        mended: blocks whose rate was lowered, or that were shortened, to stay below it.
    """

    spent: int
    bound: float
    mended: int

    @staticmethod
    def of(run: Descent) -> Blocks:
        """Those of an engine."""
        blocks = run.blocks()
        bounds = [block.bound for block in blocks if block.bound is not None]
        mended = sum(block.lowered or block.why == "stable" for block in blocks)
        return Blocks(len(blocks), min(bounds, default=math.nan), mended)


def times(lr: float | Rate, factor: float) -> float | Rate:
    """The learning rate, multiplied."""
    if not callable(lr):
        return lr * factor
    return lr if factor == 1 else lambda step: factor * lr(step)


def rung_of(updates: int, steps: int) -> Rung:
    """A rung with its name."""
    return Rung(f"{updates} update{'s' * (updates > 1)}", updates, steps)


def beside(name: str) -> str:
    """The name of the network at the weights of a linear model."""
    return f"{name}, network"


def ladder_of(ladder: Sequence[int] | None, steps: int) -> list[int]:
    """The numbers of updates below all steps, rising; 1, 3, 10, 30, ... where none are given.

    Raises:
        UserError: if one is out of range or comes twice.
    """
    if ladder is None:
        usual = (n * 10**power for power in range(len(str(steps))) for n in (1, 3))
        return [each for each in usual if each == 1 or each * _SHORTEST <= steps]
    found = list(ladder)
    if not found or sorted(set(found)) != found or found[0] < 1 or found[-1] >= steps:
        raise UserError(
            f"`ladder`: got {found} for {steps} steps, expected numbers of feature updates in rising order, from 1 "
            f"(never renewed) to below {steps} (plain training, which is there in any case)"
        )
    return found


def trained(
    rung: Rung, problem: Problem, protocol: Protocol, tick: Listener
) -> tuple[list[Fit], Blocks | None]:
    """What a rung predicts at its end: its linear model by its name, and beside it the network at the same weights."""
    protocol = rung.protocol(protocol, len(problem.train))
    if rung.plain:
        return [stepped(rung.name, problem.network, problem, protocol, tick)], None
    states = protocol.states(problem.network, problem)
    assert isinstance(states, Descent)
    run = ran(rung.name, states, problem, protocol, tick)
    fits = [run.fit(rung.name, problem, protocol)]
    if run.state is not None:
        here, there = (answers_of(run.state, part, nonlinear=True) for part in (problem.train, problem.test))
        fits.append(Fit(beside(rung.name), "finished", 0.0, train=here, test=there).checked())
    return fits, Blocks.of(states)
