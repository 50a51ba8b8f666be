"""Time left: by a clock of its own, over tasks whose runs end together."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import pytest

from regimes.study import Forecast, Run, bisection, combine, grid
from regimes.study.clock import Clock, pace
from regimes.study.task import Task
from regimes.study.wanted import Watched, was_seen


class Job(Run):
    """A run of a stated cost."""

    number: int = 0
    seed: int = 0
    weight: float = 1.0

    def cost(self) -> float:
        return self.weight

    @classmethod
    def perform(cls, runs: Sequence[Run], data: Any, tick: Any) -> Iterator[Any]:
        yield from ()


def tasks(count: int) -> list[Task]:
    """Programs of 1 to 12 members, the most expensive first."""
    draw, number = random.Random(0), itertools.count()
    made = []
    for _ in range(count):
        weight = draw.uniform(0.5, 4.0)
        made.append(Task(tuple(Job(number=next(number), weight=weight) for _ in range(draw.randint(1, 12)))))
    return sorted(made, key=Task.cost, reverse=True)


def simulate(
    queue: Sequence[Task], workers: int, slowness: float, spread: float, pace: float
) -> list[tuple[float, float]]:
    """(forecast, truth) of the seconds left, whenever a task ends; each task is off by a factor up to ``spread``."""
    now, draw = 0.0, random.Random(1)
    clock = Clock(workers, pace, lambda: now)
    clock.begin(queue)
    long = {id(task): slowness * task.cost() * draw.uniform(1 / spread, spread) for task in queue}
    waiting, ends, moments = deque(queue), [], []
    for _ in range(workers):
        task = waiting.popleft()
        heapq.heappush(ends, (long[id(task)], id(task), task))
    said = [(now, clock.left())]
    while ends:
        now, _, task = heapq.heappop(ends)
        moments.append(now)
        for run in task.runs:
            clock.settle(run)
        if waiting:
            following = waiting.popleft()
            heapq.heappush(ends, (now + long[id(following)], id(following), following))
        said.append((now, clock.left()))
    return [(left, moments[-1] - at) for at, left in said]


@pytest.mark.parametrize("workers", [1, 2, 8])
@pytest.mark.parametrize("slowness", [0.3, 1.0, 5.0])
def test_a_forecast_is_right_within_a_factor_of_two_from_the_first_second(
    slowness: float, workers: int
) -> None:
    """Where the pace is known and costs are off by up to 1.7, one by one."""
    course = simulate(tasks(60), workers, slowness, 1.7, pace=slowness)
    whole = course[0][1]
    for left, truth in course:
        assert truth / 2 - 0.05 * whole <= left <= 2 * truth + 0.05 * whole
    assert course[-1] == (0.0, 0.0)


@pytest.mark.parametrize("wrong", [0.2, 5.0])
def test_a_wrong_pace_is_forgotten(wrong: float) -> None:
    course = simulate(tasks(60), 2, 1.0, 1.3, pace=wrong)
    for left, truth in course[len(course) // 2 :]:
        assert left == pytest.approx(truth, rel=1.0, abs=0.05 * course[0][1])


def test_a_task_that_takes_longer_than_it_should_is_heard_of_before_it_ends() -> None:
    now = 0.0
    clock = Clock(1, 1.0, lambda: now)
    clock.begin([Task((Job(number=0),)), Task((Job(number=1),))])
    assert clock.left() == pytest.approx(2.0)
    now = 10.0
    assert clock.left() > 4.0


def test_runs_that_fail_end_their_task_too() -> None:
    now = 0.0
    clock = Clock(2, 1.0, lambda: now)
    first, second = Task((Job(number=0), Job(number=1))), Task((Job(number=2),))
    clock.begin([first, second])
    for run in (*first.runs, *second.runs):
        clock.settle(run)
    assert clock.left() == 0.0
    clock.settle(Job(number=9))


def test_the_pace_is_that_of_a_machine() -> None:
    assert 0.01 < pace(5) < 1000


def test_a_sweep_that_looks_at_rows_may_want_more() -> None:
    """A grid does not look; a search does, and so does what holds one; and a sweep of somebody's own."""
    search = bisection(Job, axis="weight", column="dK", level=1.0, start=[1.0, 10.0])
    fixed = grid(Job, number=range(3))
    cases = [
        (fixed, False),
        (combine(fixed), False),
        (search, True),
        (combine(fixed, search), True),
        (lambda frame: [Job()] if frame.empty else [], True),
        (lambda frame: [Job()] * (1 + len(frame)), True),
    ]
    for sweep, looks in cases:
        rows = Watched(pd.DataFrame())
        assert list(sweep(rows)) and was_seen(rows) == looks


def test_a_forecast_says_at_least_where_more_may_be_wanted() -> None:
    known, open_ = Forecast(10, 4, 3, 60.0, 2), Forecast(10, 4, 3, 60.0, 2, more=True)
    assert str(known) == "10 runs, 4 finished; the rest: 3 tasks, about 1 min 0 s on 2 workers"
    assert str(open_) == (
        "at least 10 runs, 4 finished; the rest: at least 3 tasks, about 1 min 0 s or more on 2 workers"
    )
