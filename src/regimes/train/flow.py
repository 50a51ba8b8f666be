r"""Gradient flow with adapted steps, for one network or for many members, each with its own step size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from regimes.control.anchor.block import Block
from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.loss import Loss, soft_hinge
from regimes.train.engine import Engine, Front
from regimes.train.plan import Anchor, Layers
from regimes.train.prepare import Given, prepare, prepare_plans
from regimes.train.saved import in_words
from regimes.train.step import Tolerance, attempt, is_lost, turn

__all__ = ["Flow", "flow"]


@dataclass(frozen=True)
class FlowFront(Front):
    """Where the members that still run are: one row each."""

    w: Tensor  # (m, total)
    u: Tensor  # (m, total) minus the velocity; (m, 0) when no member has momentum
    g: Tensor  # (m, total) gradient times the root of the rates: where one law is another, so are its steps
    size: Tensor  # (m,) ||g||
    outputs: Tensor  # (m, n, c)
    loss: Tensor  # (m,)
    dt: Tensor  # (m,) float64, as are the following
    time: Tensor
    tau: Tensor
    step: Tensor
    rejected: Tensor

    def rows(self, index: Tensor) -> FlowFront:
        """The members of these rows."""
        return FlowFront(*(getattr(self, f.name)[index] for f in fields(self)))


@dataclass(frozen=True)
class FlowSettings:
    """The settings of a flow."""

    tolerance: Tolerance
    max_steps: float
    taus: Tensor  # (members,)
    roots: Tensor | None  # square roots of the rates of the law of width


class Flow(Engine[FlowFront, FlowSettings]):
    """A gradient flow under way: iterate over it for its states; see :func:`flow`."""

    def _method(self) -> dict[str, Any]:
        """The tolerance; every tau is in the front."""
        return {"tolerance": in_words(self.settings.tolerance)}

    def _read(self, front: Mapping[str, Any]) -> Mapping[str, Any]:
        """As it is."""
        return front

    def _check_front(self, front: Mapping[str, Any], blocks: Sequence[Sequence[Block]]) -> None:
        """The momentum time of each member that still runs."""
        members = front["members"].tolist()
        for member, then, now in zip(
            members, front["tau"].tolist(), self.settings.taus[members].tolist(), strict=True
        ):
            if then != now:
                raise UserError(
                    f"`tau` of member {member}: got {now}, expected {then}, as in the saved run; give the engine the "
                    "same, or start a run of its own"
                )

    def _velocity(self, front: FlowFront, g: Tensor) -> Tensor:
        r"""grad L, or with momentum :math:`-v`, where v <- e v - (1 - e) grad L and e = exp(-dt / tau)."""
        g = g if self.settings.roots is None else g * self.settings.roots
        if not front.u.numel():
            return g
        e = torch.exp(-front.dt / front.tau).to(g)[:, None]
        return torch.where(front.tau[:, None] > 0, e * front.u + (1 - e) * g, g)

    def _moving(self, steps: Tensor) -> Tensor | None:
        """Which entries of each member move at its step, (m, total); None if all do at every step."""
        if not self.plans.partial:
            return None
        said = {step: self.plans.moving(step) for step in sorted(set(map(int, steps.tolist())))}
        return self.program.mask([said[int(step)] or () for step in steps.tolist()])

    def _advance(self) -> None:
        """One tentative step of every member; keep it where it is small enough, else divide dt."""
        old = self._front
        moving = self._moving(old.step)
        before, length = (old.g, old.size) if moving is None else _part(old.g, moving)
        u = self._velocity(old, before)
        w = torch.addcmul(old.w, old.dt.to(old.w)[:, None], u, value=-1)
        if moving is not None:
            w = torch.where(moving, w, old.w)
            u = torch.where(moving, u, old.u) if old.u.numel() else u
        outputs, loss, g = self._gradient(w, old.members)
        size = _norms(g)
        after, reached = (g, size) if moving is None else _part(g, moving)
        inner = torch.stack([torch.dot(a, b) for a, b in zip(before, after, strict=True)])
        tried = attempt(
            self.settings.tolerance,
            old.dt,
            old.rejected,
            turned=turn(length, reached, inner).double(),
            moved=(outputs - old.outputs).abs().flatten(1).amax(1).double(),
            finite=torch.isfinite(loss),
        )
        ok = tried.kept
        new = FlowFront(
            members=old.members,
            w=_choose(ok, w, old.w),
            u=_choose(ok, u, old.u) if old.u.numel() else old.u,
            g=_choose(ok, g, old.g),
            size=torch.where(ok, size, old.size),
            outputs=_choose(ok, outputs, old.outputs),
            loss=torch.where(ok, loss, old.loss),
            dt=tried.dt,
            time=torch.where(ok, old.time + old.dt, old.time),
            tau=old.tau,
            step=old.step + ok,
            rejected=tried.rejected,
        )
        self._settle(self._anchored(new, ok), ok)

    def _gradient(self, w: Tensor, members: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """F, loss and the gradient times the roots of the rates."""
        outputs, loss, g = self.program.gradient(w, members, *self._data(members))
        return outputs, loss, g if self.settings.roots is None else g * self.settings.roots

    def _anchored(self, new: FlowFront, ok: Tensor) -> FlowFront:
        """The members that have come to a step before which their anchor is moved, seen from there."""
        came = ok.nonzero()[:, 0]
        steps = [int(step) for step in new.step[came].tolist()]
        index = came[self._renewed(new.members[came], steps, new.w[came])]
        if not len(index):
            return new
        outputs, loss, g = self._gradient(new.w[index], new.members[index])
        found = {"outputs": outputs, "loss": loss, "g": g, "size": _norms(g)}
        if self._renewals.reset:
            found["u"] = torch.zeros_like(new.u[index])
        return replace(
            new, **{name: getattr(new, name).index_copy(0, index, each) for name, each in found.items()}
        )

    def _settle(self, new: FlowFront, ok: Tensor) -> None:
        """Record what was reached, and let the members that have ended go: the rest do not carry them."""
        fits = ok & self.program.fits(new.outputs, self._wanted(new.members)).all(1)
        lost = is_lost(new.rejected, new.loss)
        spent = (new.step >= self.settings.max_steps) | self._late
        ended = fits | lost | spent
        columns = (new.members, new.step, new.time, new.loss, ok, fits, lost, spent)
        rows = zip(*(each.tolist() for each in columns), strict=True)
        for i, (member, step, moment, loss, kept, done, bad, out) in enumerate(rows):
            status = "finished" if done else "diverged" if bad else "stopped" if out else "running"
            if kept or status != "running":
                self._record(member, new.w[i], int(step), moment, loss, status, new.outputs[i])
        self._front = new.rows((~ended).nonzero()[:, 0]) if bool(ended.any()) else new


def _norms(rows: Tensor) -> Tensor:
    """The norm of each row, as if alone: a joint reduction splits over threads by the size of the whole."""
    return torch.stack([torch.linalg.vector_norm(row) for row in rows])


def _part(g: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient by what moves, 0 elsewhere, and its norm."""
    part = torch.where(moving, g, 0)
    return part, _norms(part)


def _choose(ok: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """``new``, which nobody has seen yet, with the rows that are not ok put back; few are, so few move."""
    back = (~ok).nonzero()[:, 0]
    if len(back):
        new[back] = old[back]
    return new


@checked
def flow(
    modules: nn.Module | Sequence[nn.Module],
    inputs: Given,
    targets: Given,
    *,
    loss: Loss = soft_hinge,
    tau: float | Sequence[float] = 0.0,
    tolerance: Tolerance | None = None,
    max_steps: float = math.inf,
    max_seconds: float = math.inf,
    layers: Layers | None = None,
    anchor: Anchor | None = None,
    dtype: torch.dtype | None = None,
) -> Flow:
    r"""Full-batch gradient flow of L(w) = (1 / (alpha^2 n)) sum loss(F(w, x), y), with adapted steps.

    .. math:: \dot w = v, \quad \dot v = -\frac{1}{\tau} (v + \nabla L), \qquad \dot w = -\nabla L, \ \tau = 0

    A tentative step of size dt is kept if it changes gradient and outputs little (see :class:`Tolerance`),
    else it is taken back and dt divided by 10. A member ends "finished" when every sample meets its margin
    (``loss.fits``), "stopped" at a limit, "diverged" when no step is small enough or the loss is not finite.

    Args:
        modules: a module, or the *members*: modules of one architecture that differ in seed, alpha or values.
            Each member has its own time, step size and end; members run as one batched program that shrinks
            as they end. Laws of width bring their own rates per layer (``control.rates``).
        inputs: x, (n, ...); or a sequence of those of each member, of one shape.
        targets: y, (n,): -1 or +1 as floats, or class indices; or a sequence of those of each member.
        loss: with its margin test. The gradient of the plain hinge jumps where a sample meets its margin, so
            that no step is small enough: give it ``Tolerance(gradient=math.inf)``.
        tau: momentum time, one or per member; 0 is the plain flow.
        tolerance: of one step.
        max_steps: accepted steps of each member.
        max_seconds: wall-clock of the whole call.
        layers: a plan, as in ``descent``, by the number of accepted steps of a member: the parameters that move at
            the next step. The step rule sees their gradient alone.
        anchor: a plan, as in ``descent``, by the number of accepted steps.
        dtype: default float64, as the source; lazy members lose their digits in less.

    Returns:
        An iterable of :class:`~regimes.core.state.State`: each member at the start, after each accepted step
        and at its end (``state.status``), members told apart by ``state.member``; time in units of the flow,
        loss is alpha^2 L. ``state_dict`` and ``load_state_dict`` go on exactly, with the
        same members, data and settings (limits may differ).

    Raises:
        UserError: if data and module do not fit, or the members differ in architecture.

    Source: Geiger, Spigler, Jacot, Wyart 2020, appendix B, and the authors' code for the step rule.
    """
    if max_steps < 0:
        raise UserError(f"`max_steps`: got {max_steps}, expected 0 or more")
    program, x, y = prepare(modules, inputs, targets, loss, dtype, default=torch.float64)
    start, offsets = program.start(), program.offsets(x)
    plans = prepare_plans(program, start, layers, anchor)
    everyone = torch.arange(len(start), device=program.device)
    outputs, value, g = program.gradient(start, everyone, x, y, offsets)
    roots = None if program.rates is None else program.rates.sqrt()
    g = g if roots is None else g * roots
    taus = _taus(tau, len(start)).to(program.device)
    zero = torch.zeros_like(taus)
    front = FlowFront(
        members=everyone,
        w=start,
        u=torch.zeros_like(start) if bool((taus > 0).any()) else start[:, :0],
        g=g,
        size=_norms(g),
        outputs=outputs,
        loss=value,
        dt=zero + 1,
        time=zero,
        tau=taus,
        step=zero,
        rejected=zero,
    )
    settings = FlowSettings(tolerance or Tolerance(), max_steps, taus, roots)
    under_way = Flow(program, x, y, settings, max_seconds, plans, front, start, offsets)
    under_way._settle(front, torch.ones_like(everyone, dtype=torch.bool))
    return under_way


def _taus(tau: float | Sequence[float], members: int) -> Tensor:
    """One tau a member, (members,)."""
    taus = torch.as_tensor(tau, dtype=torch.float64)
    if (
        taus.dim() > 1
        or len(taus.reshape(-1)) not in (1, members)
        or not bool(((taus >= 0) & taus.isfinite()).all())
    ):
        raise UserError(
            f"`tau`: got {tau!r}, expected a time of 0 or more, or one for each of {members} members"
        )
    return taus.expand(members).clone()
