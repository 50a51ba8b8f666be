r"""Stochastic gradient descent with momentum, for one network or many members that see the same batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regimes.control.anchor.block import Block
from regimes.control.anchor.rules import Every
from regimes.control.anchor.stability import Stable, lowered, too_large
from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.loss import Loss, soft_hinge
from regimes.train.engine import Engine, Front
from regimes.train.plan import Anchor, Layers
from regimes.train.prepare import Given, prepare, prepare_plans

__all__ = ["Descent", "Rate", "descent", "order"]

Rate = Callable[[int], float]
"""The learning rate, from the number of the step."""


@dataclass(frozen=True)
class DescentSettings:
    """The settings of a descent."""

    lr: tuple[Rate, ...]  # one for all members, or one each
    momentum: float
    samples: int
    batch: int
    epoch: int  # steps of one epoch
    steps: int
    seed: int
    margin: bool
    stable: Stable | None


@dataclass(frozen=True)
class DescentFront(Front):
    """Where the members that still run are: one row each; the step is that of all."""

    w: Tensor  # (m, total)
    v: Tensor  # (m, total) the velocity; (m, 0) without momentum
    order: Tensor  # (n,) the samples in the order of this epoch; (0,) when the batch is the whole set
    time: Tensor  # (m,) float64
    step: int = 0

    def rows(self, index: Tensor) -> DescentFront:
        """The members of these rows."""
        picked = {name: getattr(self, name)[index] for name in ("members", "w", "v", "time")}
        return replace(self, **picked)


class Descent(Engine[DescentFront, DescentSettings]):
    """A descent under way: iterate over it for its states; see :func:`descent`."""

    @property
    def repeats(self) -> bool:
        """Whether the batch is the whole set."""
        return self.settings.batch == self.settings.samples

    def _method(self) -> dict[str, Any]:
        """All settings but the length; a learning rate that is a function shows in the times only."""
        settings = self.settings
        named = {
            "momentum": settings.momentum,
            "batch_size": settings.batch,
            "seed": settings.seed,
            "margin": settings.margin,
            "stable": settings.stable or "None",
        }
        if not all(isinstance(lr, partial) and lr.func is _constant for lr in settings.lr):
            return named
        rates = [lr(0) for lr in settings.lr]
        return named | {"lr": rates if len(set(rates)) > 1 else rates[0]}

    def _rates(self, step: int, blocks: Sequence[Sequence[Block]]) -> list[float]:
        """The learning rate of every member at a step, lowered where its block is."""
        rates = [_finite_rate(lr(step)) for lr in self.settings.lr]
        every = rates * (len(self._origin) // len(rates))
        if self.settings.stable != "lower":
            return every
        bounds = [next(b.bound for b in reversed(each) if b.step <= step) for each in blocks]
        return [
            rate if bound is None else lowered(rate, bound) for rate, bound in zip(every, bounds, strict=True)
        ]

    def _read(self, front: Mapping[str, Any]) -> Mapping[str, Any]:
        """The time was one number for all members once."""
        times = torch.as_tensor(front["time"], dtype=torch.float64)
        return {**front, "time": times.expand(len(front["members"])).clone()}

    def _check_front(self, front: Mapping[str, Any], blocks: Sequence[Sequence[Block]]) -> None:
        """The velocity, the sum of the rates so far, and the order of the samples in this epoch."""
        settings, step = self.settings, front["step"]
        if bool(front["v"].numel()) != bool(settings.momentum) and len(front["members"]):
            came = "no velocity" if not front["v"].numel() else "a velocity"
            raise UserError(
                f"`momentum`: got {settings.momentum}, but the saved run has {came}; give the engine the same"
            )
        times = [sum(rates) for rates in zip(*(self._rates(s, blocks) for s in range(step)), strict=True)]
        for member, then in zip(front["members"].tolist(), front["time"].tolist(), strict=True):
            came = times[member] if step else 0.0
            if not math.isclose(came, then, rel_tol=1e-9):
                label = f"`lr` of member {member}" if len(settings.lr) > 1 else "`lr`"
                raise UserError(
                    f"{label}: its first {step} rates sum to {came}, expected {then}, as in the saved run; only "
                    "the rates of the steps to come may differ"
                )
        seen = torch.zeros(0, dtype=torch.int64)
        if step and settings.batch < settings.samples:
            seen = order(settings.seed, (step - 1) // settings.epoch, settings.samples)
        if not torch.equal(front["order"].cpu(), seen):
            raise UserError(
                f"`seed`, `batch_size`: got {settings.seed} and {settings.batch}, expected those of the saved run, "
                f"which saw the {settings.samples} samples in another order"
            )

    def _advance(self) -> None:
        """Look at the whole training set where the settings ask for it, then compute a step of each member."""
        step, settings = self._front.step, self.settings
        if step and self.plans.linear:
            self._move()
        last = step >= settings.steps or self._late
        if last or (settings.margin and step % settings.epoch == 0):
            self._judge(last)
        if self.running:
            self._step()

    def _move(self) -> None:
        """Move the anchors that are due, and let their velocities start anew if the rule says so."""
        front, growths = self._front, None
        if self.settings.stable == "shorten":
            rates = [self._rates(front.step, self._renewals.blocks)[k] for k in front.members.tolist()]
            growths = self._renewals.growths(front.members, rates, self.settings.momentum)
        rows = self._renewed(front.members, [front.step] * self.running, front.w, growths)
        if self._renewals.reset and len(rows) and front.v.numel():
            self._front = replace(front, v=front.v.index_fill(0, rows, 0.0))

    def _stand(self) -> list[float]:
        """The rates of the members that run, each within the bound of its block."""
        front, settings = self._front, self.settings
        if settings.stable is not None and self.plans.linear and self.plans.rule != Every(1):
            bounds = self._renewals.bounds(front.members, settings.momentum, settings.batch)
            asked = [_finite_rate(lr(front.step)) for lr in settings.lr] * (
                len(self._origin) // len(settings.lr)
            )
            for member, bound in zip(front.members.tolist(), bounds, strict=True):
                if asked[member] > bound and settings.stable == "refuse":
                    raise too_large(asked[member], bound, front.step)
                if asked[member] > bound and settings.stable == "lower":
                    self._renewals.lower(member)
        return self._rates(front.step, self._renewals.blocks)

    def _judge(self, last: bool) -> None:
        """Let the members go that have ended: those that meet every margin if that is asked, at last all."""
        front = self._front
        x, y, offsets = self._data(front.members)
        outputs = self.program.outputs(front.w, front.members, x, offsets)
        loss = self.program.losses(outputs, y)
        done = self.program.fits(outputs, y).all(1)
        if not self.settings.margin:
            done = torch.full_like(done, front.step >= self.settings.steps)
        lost = ~torch.isfinite(loss)
        ended = done | lost | last
        for i, (member, time) in enumerate(zip(front.members.tolist(), front.time.tolist(), strict=True)):
            if bool(ended[i]):
                status = "diverged" if bool(lost[i]) else "finished" if bool(done[i]) else "stopped"
                self._record(member, front.w[i], front.step, time, float(loss[i]), status, outputs[i])
        self._front = front.rows((~ended).nonzero()[:, 0])

    def _step(self) -> None:
        """Compute one step of every member, record it, and take it where it is finite."""
        front, settings, rates = self._front, self.settings, self._stand()
        whole = settings.batch == settings.samples
        if not whole and front.step % settings.epoch == 0:
            front = replace(front, order=order(settings.seed, front.step // settings.epoch, settings.samples))
        moving = self.plans.moving(front.step)
        outputs, loss, g = self._gradient(front, moving)
        v = front.v * settings.momentum + g if front.v.numel() else g
        lr = torch.tensor(rates, dtype=torch.float64).to(front.time.device)[front.members]
        update = (v if self.program.rates is None else v * self.program.rates) * -lr.to(v)[:, None]
        w = front.w + update
        if moving is not None:
            mask = self.program.mask([moving])
            w, update = torch.where(mask, w, front.w), torch.where(mask, update, 0)
            v = torch.where(mask, v, front.v) if front.v.numel() else v
        kept = torch.isfinite(loss) & torch.isfinite(w).all(1)
        columns = (front.members, front.time, loss, kept)
        rows = zip(*(each.tolist() for each in columns), strict=True)
        for i, (member, time, value, ok) in enumerate(rows):
            status = "running" if ok else "diverged"
            seen = outputs[i] if whole else None
            self._record(member, front.w[i], front.step, time, value, status, seen, update[i])
        front = replace(
            front, w=w, v=v if front.v.numel() else front.v, step=front.step + 1, time=front.time + lr
        )
        self._front = front if bool(kept.all()) else front.rows(kept.nonzero()[:, 0])

    def _gradient(
        self, front: DescentFront, moving: tuple[bool, ...] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """F, loss and gradient of the batch of this step."""
        index = None
        if len(front.order):
            start = front.step % self.settings.epoch * self.settings.batch
            index = front.order[start : start + self.settings.batch].to(self.program.device)
        return self.program.gradient(front.w, front.members, *self._data(front.members, index), moving)


def order(seed: int, epoch: int, samples: int) -> Tensor:
    """A permutation of the samples, drawn anew from the pair (seed, epoch)."""
    mixed = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
    return torch.randperm(samples, generator=torch.Generator().manual_seed(mixed))


def _constant(lr: float, _step: int) -> float:
    return lr


def _finite_rate(lr: float) -> float:
    number = isinstance(lr, int | float | np.floating) and not isinstance(lr, bool)
    if not number or not math.isfinite(lr) or lr < 0:
        raise UserError(
            f"`lr`: got {lr!r}, expected a finite number of 0 or more, or a function from step to one"
        )
    return float(lr)


@checked
def descent(
    modules: nn.Module | Sequence[nn.Module],
    inputs: Given,
    targets: Given,
    *,
    lr: float | Rate | Sequence[float | Rate],
    loss: Loss = soft_hinge,
    momentum: float = 0.0,
    batch_size: int | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    margin: bool = False,
    seed: int = 0,
    max_seconds: float = math.inf,
    layers: Layers | None = None,
    anchor: Anchor | None = None,
    stable: Stable | None = None,
    dtype: torch.dtype | None = None,
) -> Descent:
    r"""Stochastic gradient descent on L(w) = (1 / (alpha^2 b)) sum loss(F(w, x), y), b samples at a time.

    .. math:: v \leftarrow \mu v + \nabla L(w), \qquad w \leftarrow w - \eta v

    as ``torch.optim.SGD`` has it, with the rates of the law of width as factors on the learning rate of each
    layer (``control.rates``). All members see the same batches: in epoch e the samples in the order of a
    permutation drawn from (seed, e) and from nothing else, the last batch of an epoch being what is left.

    *Plans* are functions of the number of the step; a run that goes on asks them for the steps of the past again.
    ``layers`` names what moves, as in layer-wise sparse training: all else keeps its value and its velocity, as
    where ``torch.optim`` meets a gradient of None, and no backward pass enters a layer below. ``anchor`` has the
    linearisation trained in place of the network, renewed before the steps at which it is True:

    .. math:: F(w, x) = \alpha \left(f(a, x) + J(a, x) (w - a) - f(w_0, x)\right), \qquad a \leftarrow w

    with a = w0 at step 0. So ``control.AtSteps([])`` is lazy training (``control.linearize``), ``control.Every(1)``
    plain training, and ``control.Every(K)`` lies between; ``control.Adaptive`` has each member renew its own where the
    linear model has become wrong. The velocity is kept when the anchor moves, unless the rule resets it. ``state(x)``
    and ``state.module`` are those of the linearisation that the step is taken with, ``state.updates`` is U, and
    ``run.blocks(member)`` says when and why each block began. On the whole set, long blocks keep what does not hang on
    w where that fits (``control.Linearized.hold``); ``train.blocks`` takes them as a whole.

    A state is given *before* each step: ``state.update`` is the step about to be taken, ``state.loss`` is
    that of the batch, and ``state.outputs`` is there if the batch is the whole set. A member ends
    "finished" after the last step, or "stopped" at a limit, with the loss and outputs of the whole training
    set and no update; or "diverged" where its loss or its next step is not finite, and the others go on.

    Args:
        modules: a module, or the *members*: modules of one architecture that differ in seed, alpha or values.
        inputs: x, (n, ...); or a sequence of those of each member, of one shape.
        targets: y, (n,): -1 or +1 as floats, or class indices; or a sequence of those of each member.
        lr: the learning rate eta, or a function from the number of the step, from 0, to it; or a sequence of
            those of each member.
        loss: with its margin test.
        momentum: mu, from 0 to below 1.
        batch_size: b; left out, or n and more, it is the whole set.
        epochs, steps: how long; one of the two.
        margin: end a member as "finished" as soon as every sample of the training set, evaluated as a whole
            between two epochs, meets its margin (``loss.fits``); one that never does ends "stopped".
        seed: of the batches.
        max_seconds: wall-clock of the whole call.
        layers: from the number of a step to the names that move at it, of parameters or of modules with all
            theirs, as in ``module.named_parameters()``, such as a ``control.layer_plan``; left out, all move.
        anchor: a rule of renewal, or a function from the number of a step to whether the linearisation is renewed
            before it; left out, the network itself is trained.
        stable: what is done where the rate is beyond the stability bound of a linear block (``control.stable_rate``,
            with the curvature at its anchor, for the whole set or the worst of four batches of this size): "lower" it
            to 0.9 of the bound for this block, "shorten" the block, so that no direction grows by more than 2 before
            the anchor moves, or "refuse" with an error that names both numbers. The bound costs 11 or more steps for
            each anchor and batch, so None, the default, computes none; a block that grows beyond all bounds ends
            "diverged" all the same. Nothing is computed for ``control.Every(1)``.
        dtype: default that of the module, and float64 for lazy members, which lose their digits in less.

    Returns:
        An iterable of :class:`~regimes.core.state.State`, members told apart by ``state.member``; time is the
        sum of the learning rates, loss is alpha^2 L. ``state_dict`` and ``load_state_dict`` go on exactly,
        unless the module itself draws random numbers.

    Raises:
        UserError: if data and module do not fit, the members differ in architecture, a setting is out of range,
            a plan gives what is none, or a module cannot be linearised (``control.linearize``).

    Source: Li, Banerjee 2021, arXiv:2102.13522 (layers); Goldwaser, Ge 2022, arXiv:2211.12345 (anchor).

    >>> from regimes import models, train
    >>> x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> run = train.descent(models.mlp(3, 16, 1), x, x[:, 0].sign(), lr=0.5, batch_size=4, epochs=20)
    >>> [(s.step, s.time, s.status) for s in run][-2:]
    [(39, 19.5, 'running'), (40, 20.0, 'finished')]
    """
    program, x, y = prepare(modules, inputs, targets, loss, dtype, default=None)
    start = program.start()
    plans = prepare_plans(program, start, layers, anchor)
    schedules = _schedules(lr, len(start))
    if stable is not None and not plans.linear:
        raise UserError(
            f"`stable`: got '{stable}' without an `anchor`, expected None; it is for linear blocks"
        )
    settings = _checked_settings(schedules, momentum, batch_size, epochs, steps, margin, seed, y.shape[-1])
    settings = replace(settings, stable=stable)
    front = DescentFront(
        members=torch.arange(len(start), device=program.device),
        w=start,
        v=torch.zeros_like(start) if settings.momentum else start[:, :0],
        order=torch.zeros(0, dtype=torch.int64),
        time=torch.zeros(len(start), dtype=torch.float64, device=program.device),
    )
    return Descent(program, x, y, settings, max_seconds, plans, front, start, program.offsets(x))


def _schedules(lr: float | Rate | Sequence[float | Rate], members: int) -> tuple[Rate, ...]:
    """The learning rate as functions of the step, one for all members or one each."""
    every = list(lr) if isinstance(lr, Sequence) else [lr]
    if isinstance(lr, Sequence) and len(every) != members:
        raise UserError(
            f"`lr`: got {len(every)} rates for {members} members, expected one for each, or one for all"
        )
    return tuple(each if callable(each) else partial(_constant, _finite_rate(each)) for each in every)


def _checked_settings(
    lr: tuple[Rate, ...],
    momentum: float,
    batch_size: int | None,
    epochs: int | None,
    steps: int | None,
    margin: bool,
    seed: int,
    samples: int,
) -> DescentSettings:
    """The settings, checked."""
    if (epochs is None) == (steps is None):
        raise UserError(f"`epochs`, `steps`: got {epochs} and {steps}, expected one of the two")
    counts = (("epochs", epochs, 0), ("steps", steps, 0), ("batch_size", batch_size, 1), ("seed", seed, 0))
    for name, value, least in counts:
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise UserError(f"`{name}`: got {value!r}, expected a whole number of at least {least}")
    if not 0 <= momentum < 1:
        raise UserError(f"`momentum`: got {momentum}, expected a number from 0 to below 1")
    batch = min(batch_size or samples, samples)
    epoch = -(-samples // batch)
    total = steps if steps is not None else (epochs or 0) * epoch
    return DescentSettings(lr, momentum, samples, batch, epoch, total, seed, margin, None)
