"""What the engines share: one loop over states, the recording of states, saving and going on."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from regimes.control.anchor.block import Block
from regimes.control.anchor.rules import Every
from regimes.core.error import UserError
from regimes.core.state import State, Status
from regimes.core.tree import Flat
from regimes.train.plan import Plans
from regimes.train.program import Program
from regimes.train.renewals import Renewals
from regimes.train.saved import (
    check_function,
    check_keys,
    check_settings,
    function_of,
    noise_of,
    settings_of,
)

__all__ = ["Engine", "Front"]

# Bytes that linear blocks may keep, and the steps of a block that make up for looking: 7 products a layer, 1 a step.
_MEMORY, _LONG = 1 << 30, 8


@dataclass(frozen=True)
class Front(ABC):
    """Where the members that still run are: one row each in the tensors of a method."""

    members: Tensor  # (m,) index of the member

    @abstractmethod
    def rows(self, index: Tensor) -> Front:
        """The members of these rows."""


AFront = TypeVar("AFront", bound=Front)
ASettings = TypeVar("ASettings")


class Engine(ABC, Generic[AFront, ASettings]):
    """Training under way: iterate over it for its states.

    Args:
        program: the members.
        inputs, targets: the training set, on the device of the program: of all members, or of each, members in front.
        settings: of the method, a value.
        max_seconds: wall-clock of all iterations together.
        plans: of the user, for each step.
        front: where the members are.
        origin: their parameters at the start, (members, stride).
        offsets: f(w0, x) on the training set.
    """

    def __init__(
        self,
        program: Program,
        inputs: Tensor,
        targets: Tensor,
        settings: ASettings,
        max_seconds: float,
        plans: Plans,
        front: AFront,
        origin: Tensor,
        offsets: Tensor | None,
    ) -> None:
        if max_seconds < 0:
            raise UserError(f"`max_seconds`: got {max_seconds}, expected 0 or more")
        self.program, self.inputs, self.targets = program, inputs, targets
        self.settings, self.max_seconds = settings, max_seconds
        self.plans, self._front, self._origin, self._offsets = plans, front, origin, offsets
        self._renewals = Renewals(plans, program, inputs, targets, offsets)
        self._pending: deque[State] = deque()
        self._seconds = 0.0
        self._hold()

    @property
    def repeats(self) -> bool:
        """Whether every step sees the whole set, so that a linear block can keep what does not hang on w."""
        return True

    def _hold(self) -> None:
        """Keep it, where blocks are long enough to gain by it and the memory is there."""
        linear, rule = self.program.linear, self.plans.rule
        long = not isinstance(rule, Every) or rule.steps >= _LONG
        if linear is not None and long and self.repeats:
            linear.hold(self.inputs, own=self.program.own, memory=_MEMORY)

    @abstractmethod
    def _advance(self) -> None:
        """Compute, record the states reached, and go on with the members that have not ended."""

    @abstractmethod
    def _method(self) -> dict[str, Any]:
        """The settings of the method that decide where a run goes, by the names of their arguments."""

    @abstractmethod
    def _read(self, front: Mapping[str, Any]) -> Mapping[str, Any]:
        """The front of a saved run as this version has it; a version before may have written it otherwise."""

    @abstractmethod
    def _check_front(self, front: Mapping[str, Any], blocks: Sequence[Sequence[Block]]) -> None:
        """Raise if the settings, and the blocks, do not lead to where a saved run is; its tensors are on any device."""

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """What a saved run and the one that goes on with it must share."""
        return settings_of(self.program, self.inputs, self.targets) | self._method()

    def __iter__(self) -> Iterator[State]:
        """The states of each member, in order, until all have ended.

        Iterating again goes on where the last iteration stopped.
        """
        began = time.perf_counter() - self._seconds
        while self._pending or self.running:
            while self._pending:
                yield self._pending.popleft()
            if self.running:
                self._seconds = time.perf_counter() - began
                self._advance()

    @property
    def running(self) -> int:
        """How many members still run."""
        return len(self._front.members)

    def blocks(self, member: int = 0) -> tuple[Block, ...]:
        """The blocks of a member, each with its step and what began it; one of all steps without an anchor.

        Raises:
            UserError: if there is no such member.
        """
        if not 0 <= member < len(self._origin):
            raise UserError(f"`member`: got {member}, expected 0 to {len(self._origin) - 1}")
        return tuple(self._renewals.blocks[member])

    def _renewed(
        self, members: Tensor, steps: Sequence[int], w: Tensor, growths: Sequence[float] | None = None
    ) -> Tensor:
        """Move the anchors that are due before these steps to the parameters; which rows these are."""
        if self.program.linear is None:
            return members[:0]
        rows = self._renewals.due(members, steps, w, growths)
        if len(rows):
            self.program.linear.move(members[rows], w[rows])
        return rows

    def _data(self, members: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """x, y and f(w0, x) for these members, on all samples or on those of a batch."""
        x = _picked(self.inputs, self.program.own, members, index)
        offsets = None if self._offsets is None else _picked(self._offsets, True, members, index)
        return x, self._wanted(members, index), offsets

    def _wanted(self, members: Tensor, index: Tensor | None = None) -> Tensor:
        """y for these members, on all samples or on those of a batch."""
        return _picked(self.targets, self.targets.dim() == 2, members, index)

    @property
    def _late(self) -> bool:
        return self._seconds >= self.max_seconds

    def _record(
        self,
        member: int,
        w: Tensor,
        step: int,
        time: float,
        loss: float,
        status: Status,
        outputs: Tensor | None,
        update: Tensor | None = None,
    ) -> None:
        """One more state to hand out."""
        linear = self.program.linear
        state = State(
            module=self.program.modules[member] if linear is None else linear.modules[member],
            parameters=Flat(self.program.names, w),
            origin=Flat(self.program.names, self._origin[member]),
            step=step,
            time=time,
            loss=loss,
            status=status,
            member=member,
            outputs=outputs,
            update=None if update is None else Flat(self.program.names, update),
            start=None if linear is None else linear.starts[member],
            updates=self._renewals.updates(member, step),
        )
        self._pending.append(state)

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on exactly here: tensors and numbers, fit for ``torch.save``."""
        join = self.program.names.join
        pending = [
            {
                "member": s.member,
                "w": join(s.parameters),
                "step": s.step,
                "time": s.time,
                "loss": s.loss,
                "status": s.status,
                "outputs": s.outputs,
                "update": None if s.update is None else join(s.update),
            }
            for s in self._pending
        ]
        front = {f.name: getattr(self._front, f.name) for f in fields(self._front)}
        kept = {name: value.clone() if isinstance(value, Tensor) else value for name, value in front.items()}
        return {
            "front": kept,
            "origin": self._origin.clone(),
            "pending": pending,
            "seconds": self._seconds,
            "plans": self.plans.state_dict(),
            "renewals": self._renewals.state_dict(),
            "anchors": None if self.program.linear is None else self.program.linear.anchors.clone(),
            "settings": dict(self._identity),
            "function": function_of(self.program, self._origin, self.inputs, self._offsets),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict` of the same members, data and settings, bit for bit on a CPU.

        Limits (``max_steps``, ``steps``, ``epochs``, ``max_seconds``) may differ, to go on for longer, and what plans
        say of the steps to come. A state of a version that saved no settings is held against what it does hold.

        Raises:
            UserError: if what was saved has other members, parameters, data, settings or plans; names both values.
        """
        check_keys(saved, {"front", "origin", "pending", "seconds"}, {f.name for f in fields(self._front)})
        if len(saved["origin"]) == len(self._origin):
            check_settings(saved.get("settings", {}), self._identity)
        if saved["origin"].shape != self._origin.shape:
            came, here = tuple(saved["origin"].shape), tuple(self._origin.shape)
            raise UserError(
                f"`saved`: holds (members, parameters) = {came}, expected {here}; build the same engine first"
            )
        if saved["origin"].dtype != self._origin.dtype:
            raise UserError(
                f"`dtype`: got {self._origin.dtype}, expected {saved['origin'].dtype}, as in the saved run"
            )
        read = self._read(saved["front"])
        plans, steps = (
            saved.get("plans", {}),
            max(torch.as_tensor(read["step"]).flatten().tolist(), default=0),
        )
        renewals, codes = saved.get("renewals"), plans.get("anchor")
        blocks = self._renewals.read(renewals, [] if codes is None else list(map(int, codes)))
        self._check_front(read, blocks)
        self.plans.check(plans, int(steps))
        self._check_start(saved.get("function"), saved["origin"].to(self._origin))
        place = self.program.device
        front = {
            name: value.to(place, copy=True) if isinstance(value, Tensor) else value
            for name, value in read.items()
        }
        self._front = replace(self._front, **front)
        self._origin = saved["origin"].to(place, copy=True)
        self.plans.load_state_dict(plans, int(steps))
        self._renewals.load(blocks, renewals)
        if self.program.linear is not None:
            self.program.linearize(self._origin)
            self.program.linear.move(
                torch.arange(len(self._origin), device=place), saved["anchors"].to(place)
            )
            self._hold()
        self._seconds = saved["seconds"]
        self._pending.clear()
        for each in saved["pending"]:
            self._record(**each)

    def _check_start(self, saved: Tensor | None, origin: Tensor) -> None:
        """Raise if the members are other functions at the start than those of a saved run."""
        here = function_of(self.program, origin, self.inputs, self._offsets)
        check_function(saved, here, partial(noise_of, self.program, origin, self.inputs))


def _picked(each: Tensor, of_member: bool, members: Tensor, index: Tensor | None) -> Tensor:
    """Of numbers by sample, or by member and sample, those of some members and of a batch."""
    if of_member and len(members) < len(each):
        each = each[members]
    if index is None:
        return each
    return each[:, index] if of_member else each[index]
