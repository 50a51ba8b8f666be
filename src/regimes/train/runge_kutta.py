r"""Gradient flow by the classical Runge-Kutta method with a fixed step, for one network or many members."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from regimes.control.anchor.block import Block
from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.loss import Loss, soft_hinge
from regimes.core.state import Status
from regimes.train.engine import Engine, Front
from regimes.train.plan import Anchor, Layers
from regimes.train.prepare import Given, prepare, prepare_plans

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
    step: int = 0

    def rows(self, index: Tensor) -> RungeKuttaFront:
        """The members of these rows."""
        return replace(self, members=self.members[index], w=self.w[index])


class RungeKutta(Engine[RungeKuttaFront, RungeKuttaSettings]):
    """A gradient flow under way, by fixed steps: iterate over it for its states; see :func:`runge_kutta`."""

    def _method(self) -> dict[str, Any]:
        """The step."""
        return {"dt": self.settings.dt}

    def _read(self, front: Mapping[str, Any]) -> Mapping[str, Any]:
        """As it is."""
        return front

    def _check_front(self, front: Mapping[str, Any], blocks: Sequence[Sequence[Block]]) -> None:
        """Nothing: all that decides the way is among the settings."""

    def _advance(self) -> None:
        """Take a step with every member, and record where it was; at the end record where it is."""
        front = self._front
        self._renewed(front.members, [front.step] * self.running, front.w)
        data = self._data(front.members)
        if front.step >= self.settings.steps or self._late:
            outputs = self.program.outputs(front.w, front.members, data[0], data[2])
            loss = self.program.losses(outputs, data[1])
            status = "finished" if front.step >= self.settings.steps else "stopped"
            self._hand_out(outputs, loss, torch.isfinite(loss), status, None)
            self._front = front.rows(front.members[:0])
            return
        moving, dt = self.plans.moving(front.step), self.settings.dt
        outputs, loss, first = self._slope(front.w, data, moving)
        _, _, second = self._slope(front.w + dt / 2 * first, data, moving)
        _, _, third = self._slope(front.w + dt / 2 * second, data, moving)
        _, _, fourth = self._slope(front.w + dt * third, data, moving)
        w = front.w + dt / 6 * (first + 2 * second + 2 * third + fourth)
        if moving is not None:
            w = torch.where(self.program.mask([moving]), w, front.w)
        kept = torch.isfinite(loss) & torch.isfinite(w).all(1)
        self._hand_out(outputs, loss, kept, "running", w - front.w)
        new = replace(front, w=w, step=front.step + 1)
        self._front = new if bool(kept.all()) else new.rows(kept.nonzero()[:, 0])

    def _slope(
        self, w: Tensor, data: tuple[Tensor, Tensor, Tensor | None], moving: tuple[bool, ...] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """F, loss and dw/dt."""
        outputs, loss, g = self.program.gradient(w, self._front.members, *data, moving)
        return outputs, loss, -g if self.program.rates is None else -g * self.program.rates

    def _hand_out(
        self, outputs: Tensor, loss: Tensor, fine: Tensor, status: Status, update: Tensor | None
    ) -> None:
        """Record each member where it is."""
        front, time = self._front, self._front.step * self.settings.dt
        rows = zip(front.members.tolist(), loss.tolist(), fine.tolist(), strict=True)
        for i, (member, value, well) in enumerate(rows):
            word, step = status if well else "diverged", None if update is None else update[i]
            self._record(member, front.w[i], front.step, time, value, word, outputs[i], step)


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
    layers: Layers | None = None,
    anchor: Anchor | None = None,
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
        layers, anchor: plans, as in ``descent``.
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
    plans = prepare_plans(program, start, layers, anchor)
    front = RungeKuttaFront(torch.arange(len(start), device=program.device), start)
    settings = RungeKuttaSettings(dt, steps)
    return RungeKutta(program, x, y, settings, max_seconds, plans, front, start, offsets)
