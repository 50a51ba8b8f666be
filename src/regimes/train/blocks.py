r"""Iterative linearisation on the whole set, a block at a time: states at the anchors, each block the cheapest way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, get_args

import torch
from torch import Tensor, nn

from regimes.control.anchor.block import Block
from regimes.control.anchor.rules import Adaptive
from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.loss import Loss, Squared, squared
from regimes.kernel.work import forward_work, ntk_work
from regimes.train.block import BlockWay, LinearBlock, one_rate_a_layer, stepped
from regimes.train.discrete import check_count, check_step
from regimes.train.engine import Engine, Front
from regimes.train.plan import Anchor
from regimes.train.prepare import Given, prepare, prepare_plans

__all__ = ["BlockDescent", "blocks"]

# Products a layer of a step of the linearised module, and of one that is held; a forward pass is one.
_STREAMED, _HELD = 5, 4
# Operations of a symmetric eigenvalue decomposition, for each entry cubed.
_EIGEN = 10


@dataclass(frozen=True)
class BlockSettings:
    """The settings of a run in blocks."""

    lr: float
    momentum: float
    steps: int
    by: BlockWay | None
    memory: int


@dataclass(frozen=True)
class BlockFront(Front):
    """Where the members that still run are: one row each; the step is that of all."""

    w: Tensor  # (m, stride)
    v: Tensor  # (m, stride) the velocity
    time: Tensor  # (m,) float64
    step: int = 0

    def rows(self, index: Tensor) -> BlockFront:
        """The members of these rows."""
        return replace(self, **{name: getattr(self, name)[index] for name in ("members", "w", "v", "time")})


class BlockDescent(Engine[BlockFront, BlockSettings]):
    """A run in blocks under way: iterate over it for its states; see :func:`blocks`."""

    @property
    def repeats(self) -> bool:
        """Not here: what is kept goes by the way of each block."""
        return False

    def _method(self) -> dict[str, Any]:
        settings = self.settings
        return {"lr": settings.lr, "momentum": settings.momentum, "by": settings.by}

    def _read(self, front: Mapping[str, Any]) -> Mapping[str, Any]:
        return front

    def _check_front(self, front: Mapping[str, Any], blocks: Sequence[Sequence[Block]]) -> None:
        """The time is the number of steps times the rate."""
        for then in front["time"].tolist():
            if not math.isclose(front["step"] * self.settings.lr, then, rel_tol=1e-9):
                raise UserError(
                    f"`lr`: got {self.settings.lr} for {front['step']} steps, expected a time of {then}, as in the "
                    "saved run"
                )

    def way(self, steps: int) -> BlockWay:
        """How a block of so many steps is taken: as told, or with the fewest operations that fit the memory."""
        if self.settings.by is not None:
            return self.settings.by
        costs = self._costs(steps)
        fit: list[BlockWay] = [way for way, (_, size) in costs.items() if size <= self.settings.memory]
        return min(fit, key=lambda way: costs[way][0])

    def _costs(self, steps: int) -> dict[BlockWay, tuple[float, float]]:
        """Operations and bytes of a block, by the ways there are."""
        forward, kernel, held, side = self._counts
        found: dict[BlockWay, tuple[float, float]] = {"module": (_STREAMED * steps * forward, 0)}
        if held:
            found["held"] = ((_HELD * (steps + 1) + _STREAMED) * forward, held)
        if kernel is not None:
            size = 8 * 4 * side**2
            found["function"] = (kernel + _STREAMED * forward + 2 * steps * side**2, size)
            if isinstance(self.program.loss, Squared):
                found["closed"] = (kernel + _STREAMED * forward + _EIGEN * side**3, size)
        return found

    @cached_property
    def _counts(self) -> tuple[float, float | None, int, int]:
        """Operations of a forward pass and of the kernel, None where there is none; bytes held; n c."""
        linear = self.program.linear
        assert linear is not None
        first = self._block(0, self._origin[0], self._origin[0])
        side = first.outputs(first.w).numel()
        network, x, at = linear.networks[0], first.x, first.tree(first.w)
        kernel = None
        if one_rate_a_layer(self.program):
            try:
                kernel = ntk_work(network.nonlinear, x, at)
            except UserError:  # a module whose kernel is none
                kernel = None
        return forward_work(network.nonlinear, x), kernel, network.held_bytes(x), side

    def _block(self, member: int, w: Tensor, v: Tensor) -> LinearBlock:
        x, y, offsets = self._data(torch.tensor([member], device=w.device))
        x, y = x[0] if self.program.own else x, y[0] if y.dim() == 2 else y
        start = None if offsets is None else offsets[0]
        return LinearBlock(self.program, member, x, y, start, w, v, self.settings.lr, self.settings.momentum)

    def _advance(self) -> None:
        """Move the anchors that are due; then take a block of each member, or end."""
        front, settings = self._front, self.settings
        if front.step:
            rows = self._renewed(front.members, [front.step] * self.running, front.w)
            if self._renewals.reset and len(rows):
                self._front = front = replace(front, v=front.v.index_fill(0, rows, 0.0))
        left = settings.steps - front.step
        if left <= 0 or self._late:
            for i, member in enumerate(front.members.tolist()):
                self._give(i, member, "finished" if left <= 0 else "stopped", None)
            self._front = front.rows(front.members[:0])
            return
        steps = next((k for k in range(1, left) if self.plans.renews(front.step + k)), left)
        way, ends = self.way(steps), list[tuple[Tensor, Tensor]]()
        for i, member in enumerate(front.members.tolist()):
            ends.append(stepped(self._block(member, front.w[i], front.v[i]), way, steps))
            self._give(i, member, "running", ends[-1][0])
        w, v = (torch.stack(each) for each in zip(*ends, strict=True))
        kept = torch.isfinite(w).all(1) & torch.isfinite(v).all(1)
        time = front.time + steps * settings.lr
        self._front = replace(front, w=w, v=v, time=time, step=front.step + steps).rows(kept.nonzero()[:, 0])

    def _give(self, i: int, member: int, status: Any, after: Tensor | None) -> None:
        """Record where a member is; one whose block ends nowhere has diverged."""
        front = self._front
        outputs = self._block(member, front.w[i], front.v[i]).outputs(front.w[i])
        loss = float(self.program.losses(outputs[None], self._wanted(front.members[i : i + 1]))[0])
        lost = after is not None and not bool(torch.isfinite(after).all())
        update = None if after is None else after - front.w[i]
        time = float(front.time[i])
        self._record(
            member, front.w[i], front.step, time, loss, "diverged" if lost else status, outputs, update
        )


@checked
def blocks(
    modules: nn.Module | Sequence[nn.Module],
    inputs: Given,
    targets: Given,
    *,
    lr: float,
    anchor: Anchor,
    steps: int,
    momentum: float = 0.0,
    loss: Loss = squared,
    by: BlockWay | None = None,
    memory: int = 1 << 31,
    max_seconds: float = math.inf,
    dtype: torch.dtype | None = None,
) -> BlockDescent:
    r"""Iterative linearisation by gradient descent on the whole set, given at its anchors.

    It goes where ``train.descent(..., batch_size=None, anchor=anchor)`` goes, to rounding, but a block is taken as a
    whole, in one of four ways:

    - "module": each step with the linearised module, 5 products a layer;
    - "held": with what does not hang on w kept, 4 products a layer;
    - "function": in function space, by products with the kernel, n^2 c^2 a step;
    - "closed": all steps of the squared loss at once, by one decomposition of the kernel, whatever their number.

    The last two come back to w by one product with J^T. Without ``by`` the way is that of the fewest operations whose
    memory fits, by counts alone: the same in every run. A velocity goes on over the anchors unless the rule resets it.
    The members run one after another.

    Args:
        modules: one module, or members of one architecture, scaled or not.
        inputs: (n, ...), shared by the members, or one for each.
        targets: (n,): -1 or +1 as floats for one output, or class indices; any floats for the squared loss.
        lr: eta.
        anchor: when the linearisation is renewed: ``control.Every(K)``, ``control.AtSteps(moments)``, or a function
            of the number of a step.
        steps: of all blocks together.
        momentum: mu, of v <- mu v + g.
        loss: the closed form is for ``Squared``.
        by: the way of every block.
        memory: bytes that a way may take.
        max_seconds: wall-clock, looked at between blocks.
        dtype: of the run, as in ``train.descent``.

    Returns:
        The run: iterate over it for its states, before each block, with the update of the whole block, and at the end.
        ``state_dict`` and ``load_state_dict`` go on exactly; ``way(K)`` says how a block of K steps is taken.

    Raises:
        UserError: if data, module, loss and settings do not fit; if a rule looks at where members are
            (``control.Adaptive``: that is for ``train.descent``); or if a rate is beyond the stability bound
            2 (1 + mu) / lambda_max of a block in closed form, with both numbers.

    Source: Goldwaser, Ge 2022, arXiv:2211.12345.

    >>> from regimes import control, models, train
    >>> x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> run = train.blocks(models.mlp(3, 16, 1), x, x[:, 0].sign(), lr=0.1, anchor=control.Every(500), steps=1000)
    >>> [(s.step, s.status) for s in run], run.way(500)
    ([(0, 'running'), (500, 'running'), (1000, 'finished')], 'closed')
    """
    check_step(lr, momentum)
    check_count("steps", steps)
    check_count("memory", memory, 1)
    _check_way(by, loss)
    if isinstance(anchor, Adaptive):
        raise UserError(
            "`anchor`: got a rule that looks at the members within a block, expected control.Every(K), "
            "control.AtSteps(...) or a function of the step; train.descent takes it"
        )
    program, x, y = prepare(modules, inputs, targets, loss, dtype, default=None)
    if by in ("function", "closed") and not one_rate_a_layer(program):
        raise UserError(
            f"`by`: got '{by}', but two parameters of one layer have rates of their own; expected 'held' or 'module'"
        )
    start = program.start()
    plans = prepare_plans(program, start, None, anchor)
    front = BlockFront(
        members=torch.arange(len(start), device=program.device),
        w=start,
        v=torch.zeros_like(start),
        time=torch.zeros(len(start), dtype=torch.float64, device=program.device),
    )
    settings = BlockSettings(float(lr), float(momentum), steps, by, memory)
    return BlockDescent(program, x, y, settings, max_seconds, plans, front, start, program.offsets(x))


def _check_way(by: Any, loss: Loss) -> None:
    if by is not None and by not in get_args(BlockWay):
        raise UserError(
            f"`by`: got {by!r}, expected one of {', '.join(get_args(BlockWay))}, or None for the cheapest"
        )
    if by == "closed" and not isinstance(loss, Squared):
        raise UserError(
            f"`by`: got 'closed' for {type(loss).__name__}, expected 'function'; only the squared loss has a closed "
            "form"
        )
