"""The models of a comparison that take steps: the network and its linearisation, by one protocol."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regimes import control, train
from regimes.compare.task.loop import MakeOptimizer, make_optimizer, optimised
from regimes.compare.task.problem import Fit, Problem, Samples, answers, losses, pieces
from regimes.control.anchor.stability import Stable
from regimes.control.linear import Linearized, linearize_at
from regimes.core.batch import feed
from regimes.core.error import UserError
from regimes.core.loss import Loss
from regimes.core.state import State
from regimes.core.tree import trainable
from regimes.train.descent import Rate
from regimes.train.plan import Anchor

__all__ = [
    "Listener",
    "Outcome",
    "Protocol",
    "answers_of",
    "constant",
    "flow_time",
    "ran",
    "started",
    "stepped",
]

Listener = Callable[[str, float], None]
"""Hears of what is at work, and of the epochs done since it last heard."""


@dataclass(frozen=True)
class Protocol:
    """How the network and its linearisation are trained.

    Attributes:
        lr: the learning rate, or a function from step to it.
        momentum, batch_size, epochs, seed: as in ``train.descent``.
        optimizer: what takes the steps in place of SGD, or None.
        anchor, stable: when the linearisation is renewed that is trained in place of the network, or None, and what is
            done where the rate is too large for it, as in ``train.descent``; they go with SGD.
    """

    lr: float | Rate
    momentum: float
    batch_size: int | None
    epochs: int
    seed: int
    optimizer: MakeOptimizer | None = None
    anchor: Anchor | None = None
    stable: Stable | None = None

    def states(self, network: nn.Module, problem: Problem) -> Iterable[State]:
        """The training of a model, checked and not begun.

        Raises:
            UserError: if a setting is out of range.
        """
        n = len(problem.train)
        module, targets, loss = _objective(network, problem, linear=self.anchor is not None)
        descent = train.descent(
            module,
            torch.arange(n),
            targets,
            lr=self.lr,
            loss=loss,
            momentum=self.momentum,
            batch_size=self.batch_size,
            epochs=self.epochs,
            seed=self.seed,
            anchor=self.anchor,
            stable=self.stable,
        )
        if self.optimizer is None:
            return descent
        make_optimizer(self.optimizer, network)
        if any(rate != 1 for rate in control.rates(network).values()):
            raise UserError(
                "`optimizer`: got one for a network whose law of width has rates of its own for some layers, which "
                "are rates of SGD; leave `optimizer` out, or build the network under another law"
            )
        # Its steps are in place; what is frozen stays as it is, and is shared.
        frozen = {id(p): p for p in network.parameters() if not p.requires_grad}
        objective = _Objective(copy.deepcopy(network, frozen), problem.train, problem.loss)
        return optimised(objective, n, self.optimizer, self.batch_size, self.epochs, self.seed)

    def steps(self, samples: int) -> int:
        """The steps of one epoch."""
        return -(-samples // min(self.batch_size or samples, samples))

    def time(self, steps: int) -> float:
        """The time t of gradient flow that goes as far, nan under an optimiser of another kind."""
        return math.nan if self.optimizer else flow_time(self.lr, self.momentum, steps)

    def first_rate(self, network: nn.Module) -> float:
        """The learning rate of the first step; nan of an optimiser that has none."""
        if self.optimizer is not None:
            group = make_optimizer(self.optimizer, network).param_groups[0]
            return float(group.get("lr", math.nan))
        return float(self.lr(0) if callable(self.lr) else self.lr)

    def draws(self, problem: Problem) -> bool:
        """Whether the seed matters: the order of batches, or which samples are held back."""
        return self.steps(len(problem.train)) > 1 or problem.valid is not None


class _Objective(nn.Module):
    """The loss of samples by their index: an engine of one tensor then trains on any inputs, with any targets."""

    def __init__(self, network: nn.Module, part: Samples, loss: Loss) -> None:
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


class _Outputs(nn.Module):
    """F of samples by their index, to be linearised: less the targets, where they are several numbers each."""

    def __init__(self, network: nn.Module, part: Samples) -> None:
        super().__init__()
        self.network = network
        self._part = part

    def forward(self, index: Tensor) -> Tensor:
        """F(w, x_i), or F(w, x_i) - y_i, (b, c)."""
        part = self._part.take(index)
        found = feed(self.network, part.x)
        return found - part.y if part.y.dim() == 2 else found


def _objective(network: nn.Module, problem: Problem, linear: bool) -> tuple[nn.Module, Tensor, Loss]:
    """What an engine trains on the indices of the samples, with its targets and its loss.

    It is the loss itself, or where outputs are to be linearised these.
    """
    part = problem.train
    if not linear:
        return _Objective(network, part, problem.loss), torch.zeros(len(part)), _Given()
    if part.y.dim() == 2:
        return _Outputs(network, part), torch.zeros(len(part), dtype=torch.int64), _Size()
    return _Outputs(network, part), part.y, problem.loss


@dataclass(frozen=True)
class _Size(Loss):
    """|F|^2 / 2: the squared loss of outputs that the targets are taken from."""

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """|F|^2 / 2."""
        return outputs.square().sum(-1) / 2

    def fits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Never."""
        return torch.zeros_like(outputs[..., 0], dtype=torch.bool)


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


def constant(problem: Problem) -> Fit:
    """The best answer that knows no inputs: the mean of the targets, or for cross-entropy the logarithm of the shares.

    Of equally frequent classes it picks the first: shares are of counts to which 1 is added, and 1e-9 to the largest.
    """
    y, outputs = problem.train.y.cpu(), problem.outputs
    if problem.unit is not None:
        best = y.double().reshape(len(y), -1).mean(0)
    else:
        index = (y < 0).long() if y.is_floating_point() else y
        counts = torch.bincount(index, minlength=max(outputs, 2)).double() + 1
        counts[counts.argmax()] += 1e-9
        shares = counts / counts.sum()
        best = shares if problem.is_squared else shares.log()
        best = best if outputs > 1 else (best[:1] - best[1:])
    at_train, at_test = (best.expand(len(part), -1) for part in (problem.train, problem.test))
    return Fit(
        "constant",
        "finished",
        0.0,
        0.0,
        at_train.to(problem.train.y.device),
        at_test.to(problem.test.y.device),
    )


def started(problem: Problem) -> Fit:
    """The network as it came."""
    began = time.perf_counter()
    at_train, at_test = (answers(problem.network, part.x) for part in (problem.train, problem.test))
    return Fit("start", "finished", time.perf_counter() - began, 0.0, at_train, at_test)


@dataclass(frozen=True, eq=False)
class Outcome:
    """A training that is over.

    Attributes:
        state: the last one, or with validation data that after the epoch of the least loss on them; None if the
            model has diverged.
        late: by how much the training error fell in the last quarter of the epochs.
        seconds: that it took.
    """

    state: State | None
    late: float
    seconds: float

    def fit(self, name: str, problem: Problem, protocol: Protocol) -> Fit:
        """The trained model."""
        if self.state is None:
            return Fit(name, "diverged", self.seconds)
        began = time.perf_counter()
        at_train, at_test = (answers_of(self.state, part) for part in (problem.train, problem.test))
        took, t = self.seconds + time.perf_counter() - began, protocol.time(self.state.step)
        return Fit(name, "finished", took, t, at_train, at_test, self.late).checked()


def stepped(name: str, network: nn.Module, problem: Problem, protocol: Protocol, tick: Listener) -> Fit:
    """A model trained by steps; see :func:`ran`."""
    return ran(name, protocol.states(network, problem), problem, protocol, tick).fit(name, problem, protocol)


def ran(name: str, states: Iterable[State], problem: Problem, protocol: Protocol, tick: Listener) -> Outcome:
    """Go through the states of a training.

    A model has diverged where a number is not finite, or the loss on the training set ends above that at its start.
    """
    began = time.perf_counter()
    epoch = protocol.steps(len(problem.train))
    quarter = epoch * (3 * protocol.epochs // 4)
    least, kept, first, before, late = math.inf, None, math.nan, math.nan, math.nan
    for state in states:
        if state.status == "diverged":
            break
        last = state.status != "running"
        if state.step % epoch == 0 or last:
            tick(name, 0.0 if state.step == 0 else 1.0)
            loss = 0.0 if problem.valid is None else _mean(state, problem, problem.valid)[0]
            if loss < least or problem.valid is None:
                least, kept = loss, state
        if state.step in (0, quarter) or last:
            loss, error = _mean(state, problem, problem.train)
            first = loss if state.step == 0 else first
            before = error if state.step == quarter else before
            late = before - error
            if last and not loss <= first:
                break
    else:
        return Outcome(kept, late, time.perf_counter() - began)
    return Outcome(None, math.nan, time.perf_counter() - began)


def answers_of(state: State, part: Samples, *, nonlinear: bool = False) -> Tensor:
    """F on the data: of the linearisation where one is trained, or of the network at the same weights."""
    network = state.module.get_submodule("network")
    values = {name: state.parameters[f"network.{name}"] for name in trainable(network)}
    if isinstance(state.module, Linearized) and not nonlinear:
        anchor = state.module.anchor.get_submodule("network")
        network = linearize_at(network, dict(anchor.named_buffers()))
    return answers(network, part.x, values)


def _mean(state: State, problem: Problem, part: Samples) -> tuple[float, float]:
    """The mean loss and error."""
    scores = problem.score(answers_of(state, part), part.y)
    return float(scores.loss.mean()), float(scores.error.mean())
