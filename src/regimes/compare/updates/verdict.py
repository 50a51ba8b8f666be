"""How few feature updates are enough: what paired differences say of a ladder, from its top down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from regimes.compare.task.criterion import Criterion
from regimes.core.estimate import Estimate

__all__ = ["LeastUpdates", "Verdict", "decided"]

LeastUpdates = int | Literal["no", "open"]
"""How many feature updates are enough; "no" where not even the most are that were tried, "open" where nobody can tell.
"""


@dataclass(frozen=True)
class Verdict:
    """What is known of a ladder.

    Attributes:
        answer: the least number of updates that is enough, "no" or "open".
        stopped: the rung at which the chain ended, None if it went through to the bottom.
        lost: rungs without a result.
    """

    answer: LeastUpdates
    stopped: int | None
    lost: tuple[int, ...]


def decided(differences: Mapping[int, Estimate | None], criterion: Criterion) -> Verdict:
    """The least U that is enough, with all above it: rungs are tested from the largest U down, until one fails.

    A rung is enough if the whole interval of its error less that of plain training lies below the margin. Since the
    order is fixed beforehand and the chain ends at the first rung that is not confirmed, each of them can have the
    level of one: a U that is not enough is taken for one that is in at most (1 - level) / 2 of the cases, however long
    the ladder is. Rungs that diverged are no test, and are left out; there is no "no" without the largest U.

    Args:
        differences: error of each number of updates less that of plain training, None where it has no result.
        criterion: margin and level.

    Source: Maurer, Hothorn, Lehmacher 1995, for tests in a fixed order.

    >>> def around(value): return Estimate(value, value - 0.01, value + 0.01, 100)
    >>> decided({1: around(0.2), 3: around(0.0), 10: around(-0.01), 30: None}, Criterion(0.02, 0.95))
    Verdict(answer=3, stopped=1, lost=(30,))
    """
    lost = tuple(sorted(updates for updates, found in differences.items() if found is None))
    answer: LeastUpdates = "open"
    for updates in sorted(differences, reverse=True):
        found = differences[updates]
        if found is None:
            continue
        here = criterion.answer(found)
        if here == "yes":
            answer = updates
            continue
        if answer == "open" and here == "no" and not any(each > updates for each in lost):
            answer = here
        return Verdict(answer, updates, lost)
    return Verdict(answer, None, lost)
