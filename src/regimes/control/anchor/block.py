"""A block of steps around one anchor: when and why it began, and what was found at it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from regimes.core.error import UserError

__all__ = ["Block", "Findings", "Why", "blocks_from", "updates"]

Why = Literal["start", "plan", "trust", "gap", "drift", "most", "stable"]
"""What an anchor was set by: the start of the run, a plan, a threshold, the longest block, or the stability bound."""


@dataclass(frozen=True)
class Findings:
    """What an adaptive rule goes by; what it does not ask for is nan. See :class:`~regimes.control.Adaptive`."""

    trust: float
    gap: float
    drift: float


@dataclass(frozen=True)
class Block:
    """The steps between two anchors.

    Attributes:
        step: how many steps had been taken when the anchor was set; the block begins with the next.
        why: what the anchor was set by.
        trust, gap, drift: what was found when it was decided, None where it was not looked at.
        bound: the largest stable rate of the block, None where it was not computed; see :func:`stable_rate`.
        lowered: whether a rate of the block was beyond the bound and was lowered.
    """

    step: int
    why: Why
    trust: float | None = None
    gap: float | None = None
    drift: float | None = None
    bound: float | None = None
    lowered: bool = False

    def state_dict(self) -> dict[str, Any]:
        """Its fields, fit for ``torch.save``."""
        return asdict(self)


def updates(blocks: Sequence[Block], step: int) -> int:
    """U, the feature updates spent: from how many anchors the first ``step`` steps were taken.

    0 before the first step, ceil(t / K) after t steps of a rule that renews every K: t for K = 1, 1 for K >= t. An
    anchor that is set after the last step is none of them.
    """
    return sum(block.step < step for block in blocks)


def blocks_from(saved: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Blocks from their ``state_dict()``.

    Raises:
        UserError: if these are none.
    """
    try:
        return [Block(**each) for each in saved]
    except TypeError as error:
        raise UserError(
            f"`saved`: holds blocks that are none ({error}), expected those of state_dict()"
        ) from error
