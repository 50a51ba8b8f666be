r"""Gradient flow by the classical Runge-Kutta method with a fixed step, for one network or many members."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.loss import Loss, soft_hinge
from regimes.core.state import Status
from regimes.train.engine import Engine, Front
from regimes.train.prepare import Given, prepare
from regimes.train.program import Program

__all__ = ["RungeKutta", "runge_kutta"]


@dataclass(frozen=True)
class RungeKuttaSettings:
    """The settings of the method."""

    dt: float
    steps: int


@dataclass(frozen=True)
class RungeKuttaFront(Front):
    """Where the members that still run are: one row each; the step is that of all."""

    w: Tensor  # (m, total)
    slope: Tensor  # (m, total) dw/dt
    outputs: Tensor  # (m, n, c)
    loss: Tensor  # (m,)
    step: int = 0

    def rows(self, index: Tensor) -> RungeKuttaFront:
        """The members of these rows."""
        picked = {name: getattr(self, name)[index] for name in ("members", "w", "slope", "outputs", "loss")}
        return replace(self, **picked)


class RungeKutta(Engine[RungeKuttaFront, RungeKuttaSettings]):
    """A gradient flow under way, by fixed steps: iterate over it for its states; see :func:`runge_kutta`."""

    def _method(self) -> dict[str, Any]:
        """The step."""
        return {"dt": self.settings.dt}

    def _read(self, front: Mapping[str, Any]) -> Mapping[str, Any]:
        """As it is."""
        return front

    def _check_front(self, front: Mapping[str, Any]) -> None:
        """Nothing: all that decides the way is among the settings."""

    def _advance(self) -> None:
        """Record where the members are, and take a step with those that go on."""
        front = self._front
        whole, lost = front.step >= self.settings.steps, ~torch.isfinite(front.loss)
        if whole or self._late:
            self._hand_out(lost, "finished" if whole else "stopped", None)
            return
        w = self._next(front)
        outputs, loss, slope = _slope(self.program, w, front.members, *self._data(front.members))
        lost = lost | ~torch.isfinite(loss) | ~torch.isfinite(w).all(1)
        self._hand_out(lost, "running", w - front.w)
        new = replace(front, w=w, slope=slope, outputs=outputs, loss=loss, step=front.step + 1)
        self._front = new.rows((~lost).nonzero()[:, 0]) if bool(lost.any()) else new

    def _hand_out(self, lost: Tensor, status: Status, update: Tensor | None) -> None:
        """Record each member; none is left once the status says so."""
        front, time = self._front, self._front.step * self.settings.dt
        rows = zip(front.members.tolist(), front.loss.tolist(), lost.tolist(), strict=True)
        for i, (member, loss, bad) in enumerate(rows):
            step = None if update is None else update[i]
            word = "diverged" if bad else status
            self._record(member, front.w[i], front.step, time, loss, word, front.outputs[i], step)
        if status != "running":
            self._front = front.rows(front.members[:0])

    def _next(self, front: RungeKuttaFront) -> Tensor:
        """w at t + dt."""
        w, dt, first = front.w, self.settings.dt, front.slope
        data = self._data(front.members)
        second = _slope(self.program, w + dt / 2 * first, front.members, *data)[2]
        third = _slope(self.program, w + dt / 2 * second, front.members, *data)[2]
        fourth = _slope(self.program, w + dt * third, front.members, *data)[2]
        return w + dt / 6 * (first + 2 * second + 2 * third + fourth)


def _slope(
    program: Program, w: Tensor, members: Tensor, x: Tensor, y: Tensor, offsets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """F, loss and dw/dt."""
    outputs, loss, g = program.gradient(w, members, x, y, offsets)
    return outputs, loss, -g if program.rates is None else -g * program.rates


@checked
def runge_kutta(
    modules: nn.Module | Sequence[nn.Module],
    inputs: Given,
    targets: Given,
    *,
    dt: float,
    steps: int,
    loss: Loss = soft_hinge,
    max_seconds: float = math.inf,
    dtype: torch.dtype | None = None,
) -> RungeKutta:
    r"""Full-batch gradient flow of L(w) = (1 / (alpha^2 n)) sum loss(F(w, x), y), to a fixed time, with small errors.

    The classical Runge-Kutta method, with :math:`k(w) = -\nabla L(w)`:

    .. math:: w \leftarrow w + \frac{\Delta t}{6} (k_1 + 2 k_2 + 2 k_3 + k_4), \qquad
              k_1 = k(w), \; k_2 = k(w + \tfrac{\Delta t}{2} k_1), \; k_3 = k(w + \tfrac{\Delta t}{2} k_2), \;
              k_4 = k(w + \Delta t\, k_3)

    with the rates of the law of width (``control.rates``) as factors on the gradient of each layer. The error
    at a fixed time falls with the fourth power of dt where f is smooth. Take it to compare with a flow that is
    known in closed form (``train.kernel``), for all members are at the same times; take ``flow``, of first order,
    for steps that adapt themselves and an end where the margins are met.

    A state is given before each step, with ``state.update``, the step about to be taken, and one more at the end:
    "finished" after the last step, "stopped" at ``max_seconds``. A member is "diverged" where its loss or its next
    step is not finite, and the others go on.

    Args:
        modules: a module, or the *members*: modules of one architecture that differ in seed, alpha or values.
        inputs: x, (n, ...); or a sequence of those of each member, of one shape.
        targets: y, (n,): -1 or +1 as floats, or class indices; or a sequence of those of each member.
        dt: the time of a step.
        steps: how many; each costs four gradients.
        loss: a smooth one, for an error of fourth order.
        max_seconds: wall-clock of the whole call.
        dtype: default float64.

    Returns:
        An iterable of :class:`~regimes.core.state.State`, members told apart by ``state.member``, each with its
        outputs; time in units of the flow, loss is alpha^2 L. ``state_dict`` and ``load_state_dict`` go on exactly.

    Raises:
        UserError: if data and module do not fit, the members differ in architecture, or a setting is out of
            range.

    Source: Kutta 1901; used against the linear flow for theorem 2.2 of Chizat, Oyallon, Bach 2019.

    >>> from regimes import models, train
    >>> x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> run = train.runge_kutta(models.mlp(3, 16, 1), x, x[:, 0].sign(), dt=0.5, steps=2)
    >>> [(s.step, s.time, s.status) for s in run]
    [(0, 0.0, 'running'), (1, 0.5, 'running'), (2, 1.0, 'finished')]
    """
    if not 0 < dt < math.inf:
        raise UserError(f"`dt`: got {dt}, expected a positive finite time")
    if steps < 0:
        raise UserError(f"`steps`: got {steps}, expected 0 or more")
    program, x, y = prepare(modules, inputs, targets, loss, dtype, default=torch.float64)
    start, offsets = program.start(), program.offsets(x)
    everyone = torch.arange(len(start), device=program.device)
    outputs, value, slope = _slope(program, start, everyone, x, y, offsets)
    front = RungeKuttaFront(everyone, start, slope, outputs, value)
    return RungeKutta(program, x, y, RungeKuttaSettings(dt, steps), max_seconds, front, start, offsets)
