"""The renewals of the anchors of members: who decides, what was decided, and the rate that each block stands."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor

from regimes.control.anchor.block import Block, blocks_from, updates
from regimes.control.anchor.look import Look, adapted, probed
from regimes.control.anchor.rules import Adaptive, resets
from regimes.control.anchor.stability import GROWN, drawn, growth, largest, limit, limit_of_batches, over
from regimes.control.anchor.tangents import Tangents
from regimes.core.error import UserError
from regimes.core.layer import begins_a_line
from regimes.train.plan import Plans
from regimes.train.program import Program

__all__ = ["Renewals"]

# Batches that are looked at for the stability bound of a block.
_BATCHES = 4


@final
class Renewals:
    """Before which steps the anchor of each member moves, each member for itself.

    Args:
        plans: of the run; its rule decides.
        program: the members.
        inputs, targets, offsets: as an engine has them.

    Attributes:
        blocks: of each member, in order; the last one is under way.
    """

    def __init__(
        self, plans: Plans, program: Program, inputs: Tensor, targets: Tensor, offsets: Tensor | None
    ) -> None:
        self._plans, self._program = plans, program
        self._inputs, self._targets, self._offsets = inputs, targets, offsets
        members = len(program.networks)
        self.blocks: list[list[Block]] = [[Block(0, "start")] for _ in range(members)]
        self._grown = [0.0] * members  # the logarithm of how far the worst direction of a block has grown
        self._looks: dict[int, Look] = {}

    @property
    def reset(self) -> bool:
        """Whether the velocity of a member starts anew at its renewals."""
        return resets(self._plans.rule)

    def updates(self, member: int, step: int) -> int:
        """U of a member after so many steps; without an anchor each step has features of its own."""
        return updates(self.blocks[member], step) if self._plans.linear else step

    def due(
        self, members: Tensor, steps: Sequence[int], w: Tensor, growths: Sequence[float] | None = None
    ) -> Tensor:
        """Which rows are to be renewed before these steps; each becomes a new block.

        Args:
            members: of the rows.
            steps: how many steps each has taken.
            w: their parameters.
            growths: the factor by which the worst direction of each would grow in its next step, where blocks are
                shortened by it.
        """
        found: list[int] = []
        for row, (member, step) in enumerate(zip(members.tolist(), steps, strict=True)):
            if step == self.blocks[member][-1].step:
                continue
            block = self._decided(member, step, w[row])
            if block is None and growths is not None:
                self._grown[member] += math.log(max(growths[row], 1.0))
                block = Block(step, "stable") if self._grown[member] > GROWN else None
            if block is not None:
                self.blocks[member].append(block)
                self._grown[member] = 0.0
                found.append(row)
        return torch.tensor(found, dtype=torch.int64, device=members.device)

    def _decided(self, member: int, step: int, w: Tensor) -> Block | None:
        """The block that begins at a step, if one does, by the rule."""
        rule = self._plans.rule
        if not isinstance(rule, Adaptive):
            return Block(step, "plan") if self._plans.renews(step) else None
        began = self.blocks[member][-1].step
        return adapted(rule, began, step, lambda: self._look(member, rule).reading(*self._trees(member, w)))

    def _trees(self, member: int, w: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The anchor and the parameters of a member, by name."""
        layout, linear = self._program.layout, self._program.linear
        assert linear is not None
        return layout.split(linear.anchors[member, : layout.total]), layout.split(w[: layout.total])

    def _look(self, member: int, rule: Adaptive) -> Look:
        if member not in self._looks:
            index = probed(self._targets.shape[-1], rule)
            x, loss = self._part(member, index)
            self._looks[member] = Look(self._program.networks[member], x, loss, rule)
        return self._looks[member]

    def _part(self, member: int, index: Tensor | None) -> tuple[Tensor, partial[Tensor]]:
        """Some samples of a member, and the loss of f there over alpha^2."""
        x = self._inputs[member] if self._program.own else self._inputs
        y = self._targets[member] if self._targets.dim() == 2 else self._targets
        start = None if self._offsets is None else self._offsets[member]
        if index is not None:
            there = index.to(self._program.device)
            x, y, start = x[there], y[there], None if start is None else start[there]
        alpha = float(self._program.alpha[member])
        return begins_a_line(x), partial(_loss, self._program, alpha, y, start)

    def bounds(self, members: Tensor, momentum: float, batch: int) -> list[float]:
        """The largest stable rate of the blocks of some members, computed once for each block.

        Of the whole set if that is the batch, and else the smallest over some batches.
        """
        for member in members.tolist():
            if self.blocks[member][-1].bound is None:
                found = self._bound(member, momentum, batch)
                self.blocks[member][-1] = replace(self.blocks[member][-1], bound=found)
        return [float(self.blocks[member][-1].bound or 0.0) for member in members.tolist()]

    def _bound(self, member: int, momentum: float, batch: int) -> float:
        program, samples = self._program, self._targets.shape[-1]
        anchor = self._trees(member, program.linear.anchors[member])[0]  # pyright: ignore[reportOptionalMemberAccess]
        roots = (
            None
            if program.rates is None
            else program.layout.split(program.rates[: program.layout.total].sqrt())
        )
        parts = [None] if batch == samples else drawn(samples, batch, _BATCHES, 0)
        worst, route = 0.0, None
        for index in parts:
            x, loss = self._part(member, index)
            tangents = Tangents(program.networks[member], anchor, x, route=route)
            route = tangents.route
            worst = max(worst, sum(largest(tangents, loss, roots, 0)))
        return over(limit(momentum) if batch == samples else limit_of_batches(momentum), worst, 0.0)

    def growths(self, members: Tensor, rates: Sequence[float], momentum: float) -> list[float]:
        """The factor of the worst direction of each member in a step at these rates, from the bounds known."""
        known = [self.blocks[member][-1].bound or math.inf for member in members.tolist()]
        return [
            growth(limit(momentum) * rate / bound, momentum) for rate, bound in zip(rates, known, strict=True)
        ]

    def lower(self, member: int) -> None:
        """Note that a rate of the present block of a member was lowered."""
        if not self.blocks[member][-1].lowered:
            self.blocks[member][-1] = replace(self.blocks[member][-1], lowered=True)

    def state_dict(self) -> dict[str, Any] | None:
        """What was decided so far, in numbers and words; None without an anchor."""
        if not self._plans.linear:
            return None
        rule = self._plans.rule
        return {
            "rule": repr(rule) if isinstance(rule, Adaptive) else None,
            "blocks": [[block.state_dict() for block in each] for each in self.blocks],
            "grown": list(self._grown),
        }

    def read(self, saved: Mapping[str, Any] | None, codes: Sequence[int]) -> list[list[Block]]:
        """The blocks of a saved run, checked.

        Args:
            saved: its :meth:`state_dict`; None of a version that had none.
            codes: whether its plan moved the anchor at each step.

        Raises:
            UserError: if it went by another rule.
        """
        if saved is None:
            every = [Block(step, "plan" if step else "start") for step, code in enumerate(codes) if code]
            return [list(every) or [Block(0, "start")] for _ in self.blocks]
        rule, none = self._plans.rule, "a function of the step"
        own = repr(rule) if isinstance(rule, Adaptive) else None
        if saved["rule"] != own:
            raise UserError(
                f"`anchor`: got {own or none}, expected {saved['rule'] or none}, as in the saved run; give the "
                "engine the same rule"
            )
        return [blocks_from(each) for each in saved["blocks"]]

    def load(self, blocks: list[list[Block]], saved: Mapping[str, Any] | None) -> None:
        """Go on with the blocks of a saved run, from :meth:`read`."""
        self.blocks = blocks
        self._grown = [0.0] * len(blocks) if saved is None else list(saved["grown"])
        self._looks = {}


def _loss(program: Program, alpha: float, y: Tensor, start: Tensor | None, outputs: Tensor) -> Tensor:
    """The mean of loss(F, y) over alpha^2, from f."""
    columns = outputs if outputs.dim() == 2 else outputs[:, None]
    scaled = alpha * (columns if start is None else columns - start)
    return program.loss.per_sample(scaled, y).mean() / alpha**2
