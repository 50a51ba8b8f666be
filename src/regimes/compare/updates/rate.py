"""The rate where none is given: one that a linear block bears wherever plain training comes by at that rate."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from regimes import control
from regimes.compare.task.fit import Protocol
from regimes.compare.task.problem import Problem, losses
from regimes.core.error import UserError
from regimes.core.tree import trainable

__all__ = ["bound_at", "found_rate"]

# Batches that are looked at for a bound, as many as an engine does at an anchor.
_BATCHES = 4
# Of the bound, and of that for the next try; parts of the steps after which it is looked at; so many tries at most.
_SHARE, _NEXT, _PARTS, _TRIES = 0.5, 0.9, (64, 16, 4, 1), 6


def bound_at(network: nn.Module, problem: Problem, protocol: Protocol) -> float:
    """The largest stable rate of the linearisation of a network (``control.stable_rate``)."""

    def mean_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return losses(problem.loss, outputs, targets).mean()

    return control.stable_rate(
        network,
        problem.train.x,
        problem.train.y,
        mean_loss,
        momentum=protocol.momentum,
        batch_size=protocol.batch_size,
        batches=_BATCHES,
        rates=control.rates(network),
    ).rate


def found_rate(
    problem: Problem, protocol: Protocol, start: float, late: Callable[[], bool]
) -> tuple[float, float]:
    """A rate of at most half the least bound along plain training at that rate, and this bound.

    The curvature grows as features are learnt, up to what plain training bears, 2 / eta; so a smaller rate is tried
    until there is room.

    Args:
        problem: what is learnt.
        protocol: of plain training, but for the rate.
        start: the bound at the start.
        late: whether the time is over; then the last rate is taken.

    Raises:
        UserError: if the outputs do not depend on the weights at the start.
    """
    if not math.isfinite(start):
        raise UserError(
            "`lr`: left out, and at the start the outputs do not depend on the weights, so that no rate is too large; "
            "give `lr`, or another start"
        )
    rate, least = _SHARE * start, start
    for _ in range(_TRIES):
        least = min(start, _along(problem, replace(protocol, lr=rate, stable=None), late))
        if rate <= _SHARE * least or late():
            break
        rate = _NEXT * _SHARE * least or rate / 4
    return rate, least


def _along(problem: Problem, protocol: Protocol, late: Callable[[], bool]) -> float:
    """The least bound at some moments of plain training, 0 where it diverges."""
    steps, least = protocol.epochs * protocol.steps(len(problem.train)), math.inf
    wanted = {steps // part for part in _PARTS} - {0}
    for state in protocol.states(problem.network, problem):
        if state.status == "diverged":
            return 0.0
        if late():
            break
        if state.step in wanted:
            network = copy.deepcopy(problem.network)
            with torch.no_grad():
                for name, parameter in trainable(network).items():
                    parameter.copy_(state.parameters[f"network.{name}"])
            least = min(least, bound_at(network, problem, protocol))
    return least
