"""Tasks hold every run once, only runs of one batch, and no more than the cap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from regimes.study.task import Task, divide, makespan
from tests.study.toy import Fragile, Toy

RUNS = st.lists(
    st.builds(Toy, width=st.integers(1, 4), seed=st.integers(0, 40)),
    min_size=1,
    max_size=60,
    unique_by=lambda run: run.key,
)


@given(runs=RUNS, workers=st.integers(1, 8))
def test_tasks_are_a_partition(runs: list[Toy], workers: int) -> None:
    tasks = divide(runs, workers)
    assert sorted(run.key for task in tasks for run in task.runs) == sorted(run.key for run in runs)
    for task in tasks:
        assert len({run.batch for run in task.runs}) == 1
        assert len(task.runs) <= 8
    costs = [task.cost() for task in tasks]
    assert costs == sorted(costs, reverse=True)
    assert sum(costs) / workers <= makespan(tasks, workers) * (1 + 1e-9) <= sum(costs) * (1 + 1e-8)


def test_one_large_group_keeps_every_worker_busy() -> None:
    runs = [Toy(width=1, seed=seed) for seed in range(8)]
    assert [len(task.runs) for task in divide(runs, 1)] == [8]
    assert [len(task.runs) for task in divide(runs, 4)] == [2, 2, 2, 2]
    assert [len(task.runs) for task in divide(runs, 100)] == [1] * 8
    assert [run.seed for run in divide(runs, 2)[0].runs if isinstance(run, Toy)] == [0, 1, 2, 3]


def test_a_group_above_the_cap_is_cut_into_equal_pieces() -> None:
    runs = [Toy(width=1, seed=seed) for seed in range(10)]
    assert [len(task.runs) for task in divide(runs, 1)] == [5, 5]


def test_classes_are_not_mixed() -> None:
    assert len(divide([Toy(width=1), Fragile(number=1), Fragile(number=2)], 1)) == 2
    assert divide([], 2) == ()
    assert makespan([], 2) == 0.0


def test_halves_end_with_a_single_run() -> None:
    task = Task(tuple(Toy(width=1, seed=seed) for seed in range(5)))
    assert [len(half.runs) for half in task.halves()] == [2, 3]
    assert Task(task.runs[:1]).halves() == ()
