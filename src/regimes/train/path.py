"""The training of a function in the space of functions: its states, in closed form or by adapted steps."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from regimes.core.batch import check_finite
from regimes.core.error import UserError
from regimes.core.loss import Loss
from regimes.core.state import Status
from regimes.train.discrete import (
    Motion,
    Stepping,
    check_count,
    check_rate,
    check_step,
    in_closed_form,
    step_by_step,
)
from regimes.train.frozen_kernel import FrozenKernel, KernelMatrix, KernelSpectrum
from regimes.train.step import Tolerance, attempt, is_lost, turn
from regimes.train.target import as_start, as_targets, mean_loss

__all__ = ["ClosedPath", "FlowPath", "KernelPath", "KernelState", "PathSettings"]

# With a ridge no margin may ever be met: the flow ends where its gradient has all but vanished.
_STATIONARY = 1e-6
# The times of a closed form: each 1.1 times the last, from well before the fastest mode to well after the slowest.
_GROWTH, _MARGIN = 1.1, 1e3


@dataclass(frozen=True, eq=False)
class KernelState:
    r"""A function F(x) = F0(x) + sum_j K(x, x_j) c_j at one moment of its training.

    Attributes:
        time: t, of the gradient flow, as in ``train.flow``.
        step: the number of steps taken; in closed form, of the times looked at before.
        loss: the mean of loss(F(x_i), y_i) over the training set, without the ridge.
        status: "running", or how the training ended: "finished" (every margin met; t = inf; nothing moves any
            more), "stopped" (a limit), "diverged".
        outputs: F on the training set, (n, c).
        coefficients: c, (n, c).
    """

    time: float
    step: int
    loss: float
    status: Status
    outputs: Tensor
    coefficients: Tensor
    _axes: int = field(repr=False)

    def predict(
        self,
        cross: Float[Tensor, "t n"] | Float[Tensor, "t n c"] | Float[Tensor, "t n c c"],
        start: Shaped[Tensor, " t"] | Shaped[Tensor, "t c"] | None = None,
    ) -> Float[Tensor, "t c"]:
        """F on other points.

        Args:
            cross: K(x, x_train), (t, n), (t, n, c) or (t, n, c, c): as many axes as the kernel of the training set.
            start: F0 there, (t, c) or (t,); 0 if left out.

        Raises:
            UserError: if the shapes do not go together, or a number is not finite.
        """
        self.check_cross(cross)
        return self._on(cross, start)

    def check_cross(self, cross: Any) -> None:
        """Raise unless this is a kernel between some points and those of the training set."""
        samples, outputs = self.coefficients.shape
        tail = (outputs,) * (self._axes - 2)
        right = isinstance(cross, Tensor) and cross.is_floating_point()
        if not right or tuple(cross.shape[1:]) != (samples, *tail):
            kind = f"shape {tuple(cross.shape)}" if right else type(cross).__name__
            raise UserError(
                f"`cross`: got {kind}, expected {('t', samples, *tail)}, a tensor between t points and those of the "
                "training set, reduced as the kernel was"
            )
        check_finite(cross, "`cross`", "compute it again in float64")

    def _on(self, cross: Tensor, start: Tensor | None) -> Tensor:
        """F on other points, unchecked."""
        outputs = self.coefficients.shape[1]
        k, c = cross.to(self.coefficients), self.coefficients
        pattern = {2: "tj,ja->ta", 3: "tja,ja->ta", 4: "tjab,jb->ta"}[self._axes]
        found = torch.einsum(pattern, k, c)
        return found if start is None else found + as_start(start, len(cross), outputs).to(found)


@dataclass(frozen=True)
class PathSettings:
    """The settings of a path."""

    loss: Loss
    speed: float  # 1 / (alpha^2 n)
    ridge: float
    tolerance: Tolerance
    max_steps: float
    max_seconds: float


class KernelPath(ABC):
    """The training of a function from a frozen kernel, at all times; see :func:`kernel`."""

    def __init__(self, kernel: FrozenKernel, targets: Tensor, settings: PathSettings, start: Tensor) -> None:
        self._kernel, self._targets, self._settings, self._start = kernel, targets, settings, start

    @abstractmethod
    def at(self, t: float) -> KernelState:
        """The state at time t, from 0 to ``math.inf``; the last one if the training ended before."""

    def after(self, steps: int, *, lr: float, momentum: float = 0.0) -> KernelState:
        r"""The state after steps of gradient descent, as those of ``train.descent`` on the whole set.

        Along an eigenvalue k of K the error of the squared loss falls by the factor
        :math:`(1 - \eta k / (\alpha^2 n))^K` in K steps without momentum; with it, by a power of a matrix. One
        decomposition gives any number of steps. Other losses, and operators, take the steps in function space, with one
        product with K each.

        Args:
            steps: K.
            lr: the rate, eta.
            momentum: mu, of v <- mu v + g.

        Raises:
            UserError: if a number is out of range, or the squared loss diverges at that rate in more than one step.
        """
        check_count("steps", steps)
        check_step(lr, momentum)
        settings = self._settings
        rule = Stepping(float(lr), float(momentum), settings.speed, settings.ridge)
        motion = self._moved(rule, steps)
        lost = not bool(motion.outputs.isfinite().all())
        status: Status = "diverged" if lost else "running"
        return self._state(steps * rule.lr, steps, status, motion.outputs, motion.c)

    def _moved(self, rule: Stepping, steps: int) -> Motion:
        """So many steps from the start, at rest."""
        return step_by_step(self._kernel, self._slope, rule, Motion.start(self._start), steps)

    @abstractmethod
    def _slope(self, outputs: Tensor) -> Tensor:
        """The gradient of the sum of the losses by the outputs, (n, c)."""

    @abstractmethod
    def __iter__(self) -> Iterator[KernelState]:
        """The states from the start to the end: of each step, or in closed form at times that grow by a tenth."""

    def best(
        self,
        cross: Float[Tensor, "t n"] | Float[Tensor, "t n c"] | Float[Tensor, "t n c c"],
        targets: Shaped[Tensor, " t"] | Shaped[Tensor, "t c"],
        start: Shaped[Tensor, " t"] | Shaped[Tensor, "t c"] | None = None,
    ) -> KernelState:
        """Early stopping: of the states of the path, the first with the least mean loss on other points.

        Args:
            cross: K(x, x_train), as in :meth:`KernelState.predict`.
            targets: y there.
            start: F0 there.

        Raises:
            UserError: if the shapes or the targets do not fit, or a number is not finite.
        """
        least, found = math.inf, self.at(0.0)
        found.check_cross(cross)
        wanted = as_targets(targets, len(cross), self._start.shape[1], self._settings.loss).to(
            self._start.device
        )
        for state in self:
            value = mean_loss(self._settings.loss, state._on(cross, start), wanted)
            if value < least:
                least, found = value, state
        return found

    def _state(self, time: float, step: int, status: Status, outputs: Tensor, c: Tensor) -> KernelState:
        loss = mean_loss(self._settings.loss, outputs, self._targets)
        return KernelState(time, step, loss, status, outputs, c, self._kernel.axes)


class ClosedPath(KernelPath):
    """The squared loss: c(t) = (1 - exp(-s (K + ridge) t)) / (K + ridge) (y - F0), s = 1 / (alpha^2 n)."""

    @property
    def _missing(self) -> Tensor:
        return self._targets - self._start

    @cached_property
    def _spectrum(self) -> KernelSpectrum:
        return self._kernel.spectrum(self._missing, self._settings.ridge, self._settings.max_steps)

    def at(self, t: float) -> KernelState:
        """The state at time t."""
        return self._at(_time(t), 0)

    def _moved(self, rule: Stepping, steps: int) -> Motion:
        if not isinstance(self._kernel, KernelMatrix):
            return super()._moved(rule, steps)
        if steps > 1:
            check_rate(rule, float(self._kernel.eigen[0].amax()))
        return in_closed_form(self._kernel, self._targets, rule, Motion.start(self._start), steps)

    def _slope(self, outputs: Tensor) -> Tensor:
        return outputs - self._targets

    def _at(self, t: float, step: int) -> KernelState:
        kernel, ridge = self._kernel, self._settings.ridge
        status: Status = "finished" if t == math.inf else "running"
        if (
            t == math.inf
            and ridge > 0
            and isinstance(kernel, KernelMatrix)
            and "_spectrum" not in self.__dict__
        ):
            c = kernel.solve(self._missing, ridge)  # a fraction of the cost of eigenvectors
            return self._state(t, step, status, self._targets - ridge * c, c)
        z, image, residual = self._spectrum.solution(t * self._settings.speed, ridge)
        if residual > kernel.residual:
            raise UserError(
                f"`max_steps`: {self._settings.max_steps:g} products with the operator leave a residual of "
                f"{residual:.1e} at t = {t:g}, expected {kernel.residual:g}; allow more, ask for an earlier time, "
                "give a larger ridge, or an operator in double precision"
            )
        return self._state(t, step, status, self._start + kernel.rows(image), kernel.rows(z))

    def __iter__(self) -> Iterator[KernelState]:
        """The states at 0, at times that grow by a tenth, and at infinity."""
        rates = (self._spectrum.values + self._settings.ridge) * self._settings.speed
        rates = rates[rates > 0]
        times = [0.0]
        if len(rates):
            first, last = 1 / (_MARGIN * float(rates.max())), _MARGIN / float(rates.min())
            count = math.ceil(math.log(last / first) / math.log(_GROWTH))
            times += [first * _GROWTH**i for i in range(count + 1)]
        for step, t in enumerate([*times, math.inf]):
            yield self._at(t, step)


@dataclass(frozen=True)
class PathFront:
    """Where a flow is; numbers are tensors of shape () in float64."""

    c: Tensor  # (n, c)
    outputs: Tensor  # (n, c)
    u: Tensor  # (n, c): n alpha^2 times the gradient by the outputs, with that of the ridge
    q: Tensor  # K u
    size: Tensor  # the root of u . K u: n alpha^2 times the norm of the gradient by the parameters
    dt: Tensor
    time: Tensor
    rejected: Tensor
    step: int = 0


class FlowPath(KernelPath):
    """Any other loss: the adapted steps of ``train.flow``, which sees gradients by the parameters through K alone."""

    def at(self, t: float) -> KernelState:
        """The state at time t, on the way between two steps; found by going there from the start."""
        t, states = _time(t), iter(self)
        before = after = next(states)
        while after.time < t and after.status == "running":
            before, after = after, next(states)
        if after.time <= t:
            return after
        part = (t - before.time) / (after.time - before.time)
        c, outputs = (
            torch.lerp(getattr(before, name), getattr(after, name), part)
            for name in ("coefficients", "outputs")
        )
        return self._state(t, before.step, "running", outputs, c)

    def __iter__(self) -> Iterator[KernelState]:
        """The start, each accepted step and the end."""
        began = time.perf_counter()
        settings = self._settings
        self._kernel.check()
        front = self._front(torch.zeros_like(self._start), self._start)
        first, kept = front.size, True
        while True:
            fits = kept and self._fits(front.outputs)
            # A function that does not move at all is at t = inf, whatever its margins.
            still = bool(front.size <= (_STATIONARY * first if settings.ridge > 0 else 0.0))
            lost = bool(is_lost(front.rejected, front.size))
            spent = front.step >= settings.max_steps or time.perf_counter() - began >= settings.max_seconds
            status = (
                "finished" if fits or still else "diverged" if lost else "stopped" if spent else "running"
            )
            if kept or status != "running":
                yield self._state(float(front.time), front.step, status, front.outputs, front.c)
            if status != "running":
                return
            front, kept = self._advance(front)

    def _slope(self, outputs: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            return torch.autograd.grad(self._settings.loss.per_sample(leaf, self._targets).sum(), leaf)[0]

    def _fits(self, outputs: Tensor) -> bool:
        return bool(self._settings.loss.fits(outputs, self._targets).all())

    def _front(self, c: Tensor, outputs: Tensor) -> PathFront:
        """The gradient there; the first step has length 1."""
        u = self._slope(outputs) + self._settings.ridge * c
        q = self._kernel.apply(u)
        square = torch.where(u.isfinite().all(), (u * q).sum().clamp(min=0), math.nan)
        zero = torch.zeros_like(square)
        return PathFront(c, outputs, u, q, square.sqrt(), dt=zero + 1, time=zero, rejected=zero)

    def _advance(self, old: PathFront) -> tuple[PathFront, bool]:
        """A tentative step; kept where gradient and outputs change little, else dt is divided."""
        length = old.dt * self._settings.speed
        new = self._front(old.c - length * old.u, old.outputs - length * old.q)
        tried = attempt(
            self._settings.tolerance,
            old.dt,
            old.rejected,
            turned=turn(old.size, new.size, (old.q * new.u).sum()),
            moved=(new.outputs - old.outputs).abs().max(),
            finite=torch.isfinite(new.size),
        )
        if not tried.kept:
            return replace(old, dt=tried.dt, rejected=tried.rejected), False
        return replace(new, dt=tried.dt, time=old.time + old.dt, step=old.step + 1), True


def _time(t: Any) -> float:
    number = isinstance(t, Real) and not isinstance(t, bool)
    if not (number or (isinstance(t, Tensor) and t.dim() == 0)) or not float(t) >= 0:
        raise UserError(f"`t`: got {t!r}, expected a time from 0 to math.inf")
    return float(t)
