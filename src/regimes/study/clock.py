"""Time left of a study: costs give ratios, the pace of the machine and what has been finished give seconds."""

from __future__ import annotations

import heapq
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from regimes.study.run import Run
from regimes.study.task import Task

__all__ = ["Clock", "pace"]

# Seconds of the sample of work below on the core that the costs of runs are stated for.
_COMMON = 4.8e-5
# The share of a study's cost for which the pace at the start counts against what has been measured since.
_PRIOR = 0.25


def pace(repeats: int = 40) -> float:
    """How many times longer this machine takes now than the core that costs are stated for: the median of samples.

    A sample is some exponentials and a small product: about 10 ms in all. Nothing but forecasts depends on it.
    """
    x = np.linspace(-1.0, 1.0, 1 << 14)
    square = x[: 1 << 12].reshape(64, 64)

    def sample() -> float:
        began = time.perf_counter()
        _ = np.log(np.exp(x) + 1.0) * x, square @ square
        return time.perf_counter() - began

    return statistics.median(sample() for _ in range(repeats)) / _COMMON


@dataclass(frozen=True)
class _UnderWay:
    """A task that a worker is at: since when, and the keys of the runs it still owes."""

    task: Task
    since: float
    owes: set[str]


@final
class Clock:
    """Seconds left of the tasks that workers take from a queue, each when it has finished the one before.

    Members of one program end together or nearly so: what says how fast a study goes is a finished task, not a
    finished run.

    Args:
        workers: how many take tasks.
        pace: seconds for a unit of cost, as far as is known at the start.
        now: the time.
    """

    def __init__(self, workers: int, pace: float = 1.0, now: Callable[[], float] = time.monotonic) -> None:
        self._workers, self._pace, self._now = workers, pace, now
        self._queue: deque[Task] = deque()
        self._busy: list[_UnderWay] = []
        self._prior = 0.0
        self._cost = self._seconds = 0.0

    def begin(self, tasks: Sequence[Task]) -> None:
        """These tasks are to be done, in this order."""
        self._queue, self._busy = deque(tasks), []
        self._prior = max(self._prior, _PRIOR * sum(task.cost() for task in tasks))
        self._start()

    def settle(self, run: Run) -> None:
        """A run is finished, or given up."""
        for one in self._busy:
            if run.key in one.owes:
                one.owes.remove(run.key)
                if not one.owes:
                    self._busy.remove(one)
                    self._cost += one.task.cost()
                    self._seconds += self._now() - one.since
                    self._start()
                return

    def left(self) -> float:
        """Seconds until the last of the tasks is finished."""
        now, rate = self._now(), self._rate()
        free = [max(rate * one.task.cost() - (now - one.since), 0.0) for one in self._busy]
        free += [0.0] * (self._workers - len(free))
        heapq.heapify(free)
        for task in self._queue:
            heapq.heapreplace(free, free[0] + rate * task.cost())
        return max(free)

    def _rate(self) -> float:
        """Seconds for a unit of cost; a task that takes longer than it should counts as if it ended now."""
        cost, seconds = self._prior + self._cost, self._prior * self._pace + self._seconds
        for one in self._busy:
            spent = self._now() - one.since
            if cost and spent > one.task.cost() * seconds / cost:
                cost, seconds = cost + one.task.cost(), seconds + spent
        return seconds / cost if cost else self._pace

    def _start(self) -> None:
        """Free workers take what is next."""
        while self._queue and len(self._busy) < self._workers:
            task = self._queue.popleft()
            self._busy.append(_UnderWay(task, self._now(), {run.key for run in task.runs}))
