"""A grid is its product; bisection ends with a narrow bracket around the crossing, in any order of events."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regimes.core.error import UserError
from regimes.study import Scale, Study, forecast_study, run_study
from regimes.study.run import Run
from regimes.study.sweep import Sweep, bisection, combine, grid
from tests.study.toy import Toy

EMPTY = pd.DataFrame()


def frame_of(runs: Sequence[Run], curve: Callable[[Toy], float | tuple[float, str]]) -> pd.DataFrame:
    """Two rows per run, of which only the second counts."""
    rows = []
    for run in runs:
        assert isinstance(run, Toy)
        found = curve(run)
        value, status = found if isinstance(found, tuple) else (found, "finished")
        rows += [
            {"key": run.key, **dict(run), "value": -1e9, "status": "running"},
            {"key": run.key, **dict(run), "value": value, "status": status},
        ]
    return pd.DataFrame(rows)


def settle(sweep: Sweep, curve: Callable[[Toy], float | tuple[float, str]], rounds: int = 60) -> list[Toy]:
    """What the sweep wants in the end; all that is wanted is finished in every round."""
    wanted: Sequence[Run] = ()
    for _ in range(rounds):
        before, wanted = wanted, tuple(sweep(frame_of(wanted, curve)))
        if {run.key for run in before} == {run.key for run in wanted}:
            return [run for run in wanted if isinstance(run, Toy)]
    raise AssertionError("wants more and more")


def bracket(runs: Sequence[Toy], curve: Callable[[Toy], float], level: float) -> tuple[float, float]:
    """Nearest values of x on both sides of the level (mean over seeds) of a monotone curve."""
    means = {
        x: sum(curve(run) for run in runs if run.x == x) / sum(run.x == x for run in runs)
        for x in {r.x for r in runs}
    }
    below = [x for x, mean in means.items() if mean < level]
    above = [x for x, mean in means.items() if mean >= level]
    return (max(below), min(above)) if max(below) < min(above) else (max(above), min(below))


@given(st.lists(st.integers(0, 5), min_size=1), st.lists(st.integers(0, 5), min_size=1))
def test_a_grid_is_the_product_without_repetition(widths: list[int], seeds: list[int]) -> None:
    runs = grid(Toy, width=widths, seed=seeds, x=2)(EMPTY)
    expected = [(w, s) for w in dict.fromkeys(widths) for s in dict.fromkeys(seeds)]
    assert [(run.width, run.seed) for run in runs if isinstance(run, Toy)] == expected
    assert all(isinstance(run, Toy) and run.x == 2.0 for run in runs)


def test_mistakes_show_when_the_sweep_is_declared() -> None:
    with pytest.raises(UserError, match="`wdth` is no field"):
        grid(Toy, wdth=[1])
    with pytest.raises(UserError, match=r"axis `seed` .* is empty"):
        grid(Toy, width=1, seed=[])
    with pytest.raises(UserError, match="`alpha` is no field"):
        bisection(Toy, axis="alpha", column="value", level=1.0, start=[1, 2], width=1)
    bad: dict[str, Any]
    for bad in (
        {"start": [1.0]},
        {"start": "1, 2"},
        {"start": "one"},
        {"usable": []},
        {"start": [-1.0, 1.0]},
        {"factor": 1.0},
        {"reach": 0.5},
        {"seed": []},
    ):
        options = {"axis": "x", "column": "value", "level": 1.0, "start": [1, 2], "width": 1, **bad}
        with pytest.raises(UserError, match=f"`{next(iter(bad))}` is"):
            bisection(Toy, **options)
    with pytest.raises(UserError, match=r"axis `width` .* is empty"):
        bisection(Toy, axis="x", column="value", level=1.0, start=[1, 2], width=[])


def test_combined_sweeps_keep_each_run_once() -> None:
    runs = combine(grid(Toy, width=[1, 2]), grid(Toy, width=[2, 3]))(EMPTY)
    assert [run.width for run in runs if isinstance(run, Toy)] == [1, 2, 3]


@settings(deadline=None)
@given(
    crossing=st.floats(-4, 4),
    slope=st.sampled_from([-1.3, -0.2, 0.2, 1.3]),
    factor=st.sampled_from([1.05, 1.5, 4.0]),
)
def test_bisection_finds_the_crossing_inside_or_outside_its_start(
    crossing: float, slope: float, factor: float
) -> None:
    def curve(run: Toy) -> float:
        return (run.x / 10**crossing) ** slope * (1 + 0.01 * (run.seed - 1))

    sweep = bisection(
        Toy,
        axis="x",
        column="value",
        level=1.0,
        start=[0.1, 1, 10],
        factor=factor,
        reach=1e4,
        seed=range(3),
        width=1,
    )
    runs = settle(sweep, curve)
    low, high = bracket(runs, curve, 1.0)
    assert high / low <= factor * (1 + 1e-5)
    assert low <= 10**crossing * 1.0001 and 10**crossing <= high * 1.0001
    assert {run.seed for run in runs} == {0, 1, 2}
    assert len({run.x for run in runs}) <= 3 + 5 + math.log2(math.log(10) / math.log(factor) + 1) + 2


@pytest.mark.parametrize("seed", range(5))
def test_an_interrupted_search_ends_with_the_same_runs(seed: int) -> None:
    """Whatever part of a round is finished, and whatever else is in the store."""
    order = random.Random(seed)

    def curve(run: Toy) -> float:
        return run.width * run.x**2

    sweep = combine(
        grid(Toy, width=[1, 2], x=[0.3, 3]),
        bisection(
            Toy, axis="x", column="value", level=7.0, start=[0.5, 1], factor=1.1, seed=[0, 1], width=[1, 2]
        ),
    )
    whole = {run.key for run in settle(sweep, curve)}
    finished: dict[str, Run] = {}
    while left := [run for run in sweep(frame_of(list(finished.values()), curve)) if run.key not in finished]:
        some = order.sample(left, order.randint(1, len(left)))
        finished.update((run.key, run) for run in some)
    assert set(finished) == whole


def test_groups_are_searched_one_by_one() -> None:
    sweep = bisection(Toy, axis="x", column="value", level=8.0, start=[1, 4], factor=1.1, width=[1, 2, 4])
    runs = settle(sweep, lambda run: run.width * run.x)
    for width in (1, 2, 4):
        low, high = bracket([run for run in runs if run.width == width], lambda run: run.width * run.x, 8.0)
        assert low <= 8 / width <= high and high / low <= 1.1


def test_what_lies_out_of_reach_is_given_up() -> None:
    sweep = bisection(Toy, axis="x", column="value", level=1e9, start=[1, 10], reach=100, width=1)
    assert max(run.x for run in settle(sweep, lambda run: run.x)) == 1000.0
    flat = settle(sweep, lambda run: 3.0)
    assert {min(run.x for run in flat), max(run.x for run in flat)} == {0.01, 1000.0}
    assert {run.x for run in settle(sweep, lambda run: math.nan)} == {1.0, 10.0}


@pytest.mark.parametrize(
    "bad", [(math.nan, "finished"), (5.0, "diverged"), (5.0, "running"), (math.inf, "finished")]
)
def test_runs_without_a_number_are_stepped_around(bad: tuple[float, str]) -> None:
    """Seed 1 never works, the middle of the bracket neither, and nothing above 300 does."""

    def curve(run: Toy) -> float | tuple[float, str]:
        unusable = run.seed == 1 or run.x > 300 or abs(run.x - 10) < 0.1
        return bad if unusable else run.x

    sweep = bisection(
        Toy, axis="x", column="value", level=12.0, start=[1, 100], factor=1.3, seed=[0, 1], width=1
    )
    low, high = bracket(
        [run for run in settle(sweep, curve) if abs(run.x - 10) >= 0.1], lambda run: run.x, 12.0
    )
    assert low <= 12 <= high and high / low <= 1.3
    beyond = bisection(
        Toy, axis="x", column="value", level=250.0, start=[1, 100], factor=1.3, seed=[0, 1], width=1
    )
    low, high = bracket([run for run in settle(beyond, curve) if run.x <= 300], lambda run: run.x, 250.0)
    assert low <= 250 <= high and high / low <= 1.3


def test_a_column_that_is_not_there_is_named() -> None:
    sweep = bisection(Toy, axis="x", column="drift", level=1.0, start=[1, 2], width=1)
    with pytest.raises(UserError, match="`column` is 'drift': the rows have key, width"):
        sweep(frame_of(sweep(EMPTY), lambda run: run.x))


def test_one_name_or_seed_is_as_good_as_several() -> None:
    """A text is one name, not its letters."""

    def search(**options: Any) -> set[str]:
        chosen: dict[str, Any] = {"axis": "x", "column": "value", "level": 8.0, "start": [1, 100], **options}
        return {run.key for run in settle(bisection(Toy, width=1, **chosen), lambda run: run.x)}

    several = search(usable=("finished",), seed=(0,), start=(1.0, 100.0))
    assert len(several) > 3
    assert search(usable="finished") == search(usable=iter(["finished"])) == several
    assert search(seed=0) == search(seed=iter([0])) == search(start=iter([100, 1])) == several


SHAPES: dict[str, Callable[[Sequence[Run]], Any]] = {
    "list": list,
    "tuple": tuple,
    "iterator": iter,
    "generator": lambda runs: (run for run in runs),
    "filter": lambda runs: filter(None, runs),
    "values": lambda runs: {run.key: run for run in runs}.values(),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kept", [False, True])
def test_runs_may_come_in_anything_that_holds_them(tmp_path: Path, shape: str, kept: bool) -> None:
    """Made at each call, or once for all calls: every run is carried out, and counted."""
    runs = grid(Toy, width=[1, 2], seed=range(2))(EMPTY)

    def sweep(settings: object) -> Sweep:
        held = SHAPES[shape](runs)
        return lambda frame: held if kept else SHAPES[shape](runs)

    study = Study("shaped", "", (Toy,), {"quick": Scale(sweep, "", "")})
    forecast = forecast_study(study, "quick", tmp_path)
    assert (forecast.wanted, forecast.finished) == (4, 0)
    result = run_study(study, "quick", tmp_path, quiet=True)
    assert (result.wanted, result.finished, result.carried_out) == (4, 4, 4)
    assert run_study(study, "quick", tmp_path, quiet=True).finished == 4


def test_an_iterator_that_was_read_before_is_no_empty_study(tmp_path: Path) -> None:
    held = iter(grid(Toy, width=1)(EMPTY))
    study = Study("spent", "", (Toy,), {"quick": Scale(lambda settings: lambda frame: held, "", "")})
    assert forecast_study(study, "quick", tmp_path).wanted == 1
    with pytest.raises(UserError, match="`sweep` of study spent gave a tuple_iterator with nothing in it"):
        run_study(study, "quick", tmp_path, quiet=True)


@pytest.mark.parametrize("wrong", [None, 3, "runs", Toy(width=1), {"run": Toy(width=1)}])
def test_what_holds_no_runs_is_named(tmp_path: Path, wrong: Any) -> None:
    study = Study("odd", "", (Toy,), {"quick": Scale(lambda settings: lambda frame: wrong, "", "")})
    with pytest.raises(
        UserError, match=f"`sweep` of study odd gave {type(wrong).__name__}: expected the runs"
    ):
        run_study(study, "quick", tmp_path, quiet=True)
