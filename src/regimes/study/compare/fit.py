"""The models of a comparison that take steps: the network and its linearisation, by one protocol."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from regimes import train
from regimes.core.batch import feed
from regimes.core.loss import Loss
from regimes.core.state import State
from regimes.core.tree import trainable
from regimes.study.compare.task import Fit, Part, Task, answers, losses, pieces

__all__ = ["Protocol", "Rate", "Tick", "flow_time", "started", "stepped"]

Rate = Callable[[int], float]
Tick = Callable[[str, float], None]
"""Hears of what is at work, and of the epochs done since it last heard."""


@dataclass(frozen=True)
class Protocol:
    """How the network and its linearisation are trained.

    Attributes:
        lr: the learning rate, or a function from step to it.
        momentum, batch_size, epochs, seed: as in ``train.descent``.
    """

    lr: float | Rate
    momentum: float
    batch_size: int | None
    epochs: int
    seed: int

    def descent(self, network: nn.Module, task: Task) -> train.Descent:
        """The training of a model, checked and not begun.

        Raises:
            UserError: if a setting is out of range.
        """
        n = len(task.train)
        return train.descent(
            _Objective(network, task.train, task.loss),
            torch.arange(n),
            torch.zeros(n),
            lr=self.lr,
            loss=_Given(),
            momentum=self.momentum,
            batch_size=self.batch_size,
            epochs=self.epochs,
            seed=self.seed,
        )

    def steps(self, samples: int) -> int:
        """The steps of one epoch."""
        return -(-samples // min(self.batch_size or samples, samples))


class _Objective(nn.Module):
    """The loss of samples by their index: an engine of one tensor then trains on any inputs, with any targets."""

    def __init__(self, network: nn.Module, part: Part, loss: Loss) -> None:
        super().__init__()
        self.network = network
        self._part, self._loss = part, loss

    def forward(self, index: Tensor) -> Tensor:
        """loss(F(w, x_i), y_i), (b,)."""
        if torch.is_grad_enabled():
            return self._losses(index)
        return torch.cat([self._losses(index[piece]) for piece in pieces(len(index))])

    def _losses(self, index: Tensor) -> Tensor:
        part = self._part.take(index)
        return losses(self._loss, feed(self.network, part.x), part.y)


@dataclass(frozen=True)
class _Given(Loss):
    """The output is the loss."""

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The output."""
        return outputs[..., 0]

    def fits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Never: the number of epochs is what ends a run."""
        return torch.zeros_like(outputs[..., 0], dtype=torch.bool)


def flow_time(lr: float | Rate, momentum: float, steps: int) -> float:
    r"""How far steps go: the time of the gradient flow that moves as far under a constant gradient.

    Without momentum the sum of the learning rates; with it eta / (1 - mu) a step, once the velocity is there.

    >>> flow_time(0.5, 0.0, 10), flow_time(0.5, 0.5, 2)
    (5.0, 1.25)
    """
    velocity = moved = 0.0
    for step in range(steps):
        velocity = momentum * velocity + 1
        moved += (lr(step) if callable(lr) else lr) * velocity
    return moved


def started(task: Task) -> Fit:
    """The network as it came."""
    began = time.perf_counter()
    at_train, at_test = (answers(task.network, part.x) for part in (task.train, task.test))
    return Fit("start", "finished", time.perf_counter() - began, 0.0, at_train, at_test)


def stepped(name: str, network: nn.Module, task: Task, protocol: Protocol, tick: Tick) -> Fit:
    """A model trained by steps; with validation data, as it was after the epoch of the least loss on them."""
    began = time.perf_counter()
    states = protocol.descent(network, task)
    epoch = protocol.steps(len(task.train))
    quarter = epoch * (3 * protocol.epochs // 4)
    least, kept, before, late = math.inf, None, math.nan, math.nan
    for state in states:
        if state.status == "diverged":
            break
        last = state.status != "running"
        if state.step % epoch == 0 or last:
            tick(name, 0.0 if state.step == 0 else 1.0)
            loss = 0.0 if task.valid is None else _mean(state, task, task.valid, "loss")
            if loss < least or task.valid is None:
                least, kept = loss, state
        if state.step == quarter:
            before = _mean(state, task, task.train, "error")
        if last:
            late = before - _mean(state, task, task.train, "error")
    else:
        if kept is not None:
            t = flow_time(protocol.lr, protocol.momentum, kept.step)
            at_train, at_test = (_answers(kept, part) for part in (task.train, task.test))
            if bool(at_test.isfinite().all()):
                return Fit(name, "finished", time.perf_counter() - began, t, at_train, at_test, late)
    return Fit(name, "diverged", time.perf_counter() - began)


def _answers(state: State, part: Part) -> Tensor:
    """F on the data."""
    network = state.module.get_submodule("network")
    values = {name: state.parameters[f"network.{name}"] for name in trainable(network)}
    return answers(network, part.x, values)


def _mean(state: State, task: Task, part: Part, what: Literal["loss", "error"]) -> float:
    """The mean loss or error."""
    return float(getattr(task.score(_answers(state, part), part.y), what).mean())
