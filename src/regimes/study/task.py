"""Runs into tasks: what goes together as members of one program, and in which order."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from regimes.study.run import Run

__all__ = ["Task", "divide", "makespan"]


@dataclass(frozen=True)
class Task:
    """Runs of one class and one ``batch``: the members of one program.

    Attributes:
        runs: the members.
        again: whether a worker died over this task before.
    """

    runs: tuple[Run, ...]
    again: bool = False

    def cost(self) -> float:
        """Rough seconds on one worker."""
        return sum(run.cost() for run in self.runs)

    def halves(self) -> tuple[Task, ...]:
        """What to try after a failure, to find the member at fault; a single run is not tried again."""
        middle = len(self.runs) // 2
        return tuple(
            Task(part) for part in (self.runs[:middle], self.runs[middle:]) if part and len(self.runs) > 1
        )


def divide(runs: Sequence[Run], workers: int = 1) -> tuple[Task, ...]:
    """Group runs by class and batch; the most expensive task first.

    A group becomes several tasks where it has more members than the ``cap`` of its runs, or where it costs
    more than a worker's share of the whole: otherwise one worker would be left with it while the others are
    idle. Members that follow each other in the sweep stay together.
    """
    groups: dict[tuple[type[Run], Hashable], list[Run]] = {}
    for run in runs:
        groups.setdefault((type(run), run.batch), []).append(run)
    share = sum(run.cost() for run in runs) / workers
    tasks = [task for group in groups.values() for task in _split(group, share)]
    return tuple(sorted(tasks, key=Task.cost, reverse=True))


def makespan(tasks: Sequence[Task], workers: int) -> float:
    """Rough seconds until the last task is finished, each worker taking the next task when it is free."""
    free = [0.0] * workers
    for task in tasks:
        heapq.heapreplace(free, free[0] + task.cost())
    return max(free)


def _split(group: Sequence[Run], share: float) -> list[Task]:
    whole = sum(run.cost() for run in group)
    # a little slack: rounding must not turn an exact share into two pieces
    pieces = 1 if share <= 0 else min(len(group), max(1, -int(-(whole / share) * (1 - 1e-9) // 1)))
    parts: list[list[Run]] = [[] for _ in range(pieces)]
    before = 0.0
    for number, run in enumerate(group):
        place = before / whole if whole > 0 else number / len(group)
        parts[min(int(place * pieces), pieces - 1)].append(run)
        before += run.cost()
    cap = max(1, min(run.cap for run in group))
    tasks = []
    for part in parts:
        count = -(-len(part) // cap)  # equal pieces rather than full ones and a rest
        edges = [len(part) * i // count for i in range(count + 1)] if count else []
        tasks += [Task(tuple(part[low:high])) for low, high in itertools.pairwise(edges)]
    return tasks
