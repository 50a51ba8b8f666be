"""Which runs a study wants: grids, and refinement that depends on what the store holds.

A sweep is a function from the table of finished rows to all the runs that are wanted; it is asked again until
nothing new is wanted. A grid is the constant case. A sweep must depend on the rows of its own runs only,
never on what happens to be finished: the answer is then the same however often the study was interrupted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import pandas as pd
from pydantic import BaseModel

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.study.run import Run

__all__ = ["Listed", "Search", "Sweep", "bisection", "bounded", "combine", "grid"]

Sweep = Callable[[pd.DataFrame], Iterable[Run]]
Listed = Callable[[pd.DataFrame], tuple[Run, ...]]
MOST = 100_000
"""Most runs of a study: a run is a file, and a table of more of them is no longer held in memory."""
TOO_MANY = f": a study has at most {MOST}; give fewer seeds or points, or divide it into several studies"
_declared: ContextVar[int | None] = ContextVar("declared", default=None)


@checked
def grid(run: type[Run], **axes: Any) -> Listed:
    """All combinations of the values of the axes; the first axis varies slowest, equal runs are kept once.

    Args:
        run: the class to build.
        axes: field -> a value, or several in a list, tuple or other iterable. A text is one value.

    >>> class Walk(Run):
    ...     steps: int
    ...     seed: int = 0
    ...     @classmethod
    ...     def perform(cls, runs, data, tick):
    ...         yield from ()
    >>> [(run.steps, run.seed) for run in grid(Walk, steps=[4, 8], seed=range(2))(pd.DataFrame())]
    [(4, 0), (4, 1), (8, 0), (8, 1)]
    """
    combinations = _product(run, axes)
    _count(len(combinations))
    runs = _unique(run(**values) for values in combinations)
    return lambda frame: runs


@checked
def combine(*sweeps: Sweep) -> Listed:
    """All runs of several sweeps, in their order, equal ones kept once."""
    return lambda frame: _unique(wanted for sweep in sweeps for wanted in sweep(frame))


@contextmanager
def one_study() -> Iterator[None]:
    """The runs of all grids and searches declared inside are counted together, before they are built."""
    token = _declared.set(0)
    try:
        yield
    finally:
        _declared.reset(token)


def bounded(values: Iterable[Any], name: str) -> tuple[Any, ...]:
    """The values of an iterable that need not end.

    Raises:
        UserError: they are more than a study may have runs.

    >>> bounded(range(10**9), "`seed`")
    Traceback (most recent call last):
    regimes.core.error.UserError: `seed` has more than 100000 values: a study has at most 100000; ...
    """
    found = tuple(itertools.islice(values, MOST + 1))
    if len(found) > MOST:
        raise UserError(f"{name} has more than {MOST} values{TOO_MANY}")
    return found


def _count(runs: int) -> None:
    """Count runs that are about to be built, among those of their study if one is being declared."""
    before = _declared.get()
    if before is not None:
        _declared.set(before + runs)
    if (before or 0) + runs > MOST:
        raise UserError(f"the sweep wants more than {MOST} runs{TOO_MANY}")


def listed(sweep: Sweep, name: str) -> Listed:
    """The same sweep with its runs in a tuple, whatever it gives them in: a list, a generator, an iterator.

    An iterator can be read once, and a sweep is asked again and again: what one held is remembered.

    Args:
        sweep: of a study.
        name: of that study.

    Raises:
        UserError: (the function) the sweep gives something that holds no runs, or an iterator that was read before.
    """
    read: list[tuple[object, tuple[Run, ...]]] = []

    def wanted(frame: pd.DataFrame) -> tuple[Run, ...]:
        found = sweep(frame)
        if not isinstance(found, Iterable) or isinstance(found, str | Mapping | BaseModel):
            raise UserError(
                f"`sweep` of study {name} gave {type(found).__name__}: expected the runs it wants, in a list"
            )
        if not isinstance(found, Iterator):
            return bounded(found, f"`sweep` of study {name}")
        if not read or read[0][0] is not found:
            read[:] = [(found, bounded(found, f"`sweep` of study {name}"))]
        if not read[0][1]:
            raise UserError(
                f"`sweep` of study {name} gave a {type(found).__name__} with nothing in it: an iterator can be read "
                "once; make it within the sweep, or give a list"
            )
        return read[0][1]

    return wanted


@checked
def bisection(
    run: type[Run],
    *,
    axis: str,
    column: str,
    level: float,
    start: Iterable[float],
    factor: float = 1.5,
    reach: float = 1e3,
    seed: int | Iterable[int] = (0,),
    usable: str | Iterable[str] = ("finished",),
    **axes: Any,
) -> Listed:
    """Find where the mean over seeds of a measured column crosses a level, along a log-spaced axis.

    For each combination of ``axes`` (a group) the first bracket in ``start`` is halved in the logarithm of
    the axis until ``high / low <= factor``. A group that ``start`` does not bracket is continued in the
    direction in which the column comes closer to the level (in both where it does not tell), by steps of at
    most a factor 10.

    The values tried depend only on the rows of the runs at values tried before, so an interrupted search
    continues exactly where it was.

    Args:
        run: the class to build.
        axis: positive field of ``run`` that is searched.
        column: measured column; of each run the last row counts.
        level: where to find the column's mean over seeds.
        start: values of the axis to begin with, at least two.
        factor: ratio of the bracket's ends at which the search ends.
        reach: how far outside ``start`` to look, as a factor.
        seed: seeds to average over, one or several. A seed whose last row is nan or not of a ``usable`` status is
            left out of the mean; a value of the axis where no seed is left brackets nothing and is stepped around.
        usable: values of the column ``status`` that count, one or several, where there is such a column.
        axes: field -> a value or several, as in ``grid``.
    """
    search = Search(
        axis,
        column,
        level,
        _checked(_values("start", start), factor, reach),
        factor,
        reach,
        _values("usable", usable),
    )
    groups = _product(run, axes)
    seeds = _values("seed", seed)
    for name, several in (("seed", seeds), ("usable", search.usable)):
        if not several:
            raise UserError(f"`{name}` is empty: expected at least one")
    if not all(isinstance(status, str) for status in search.usable):
        raise UserError(f"`usable`: got {search.usable!r}, expected words of the column `status`")
    if not math.isfinite(level):
        raise UserError(f"`level`: got {level}, expected a finite number: a mean crosses no other")
    _count(len(groups) * len(seeds) * len(search.start))

    def members(group: Mapping[str, Any], value: float) -> list[Run]:
        return [run(**group, **{axis: value}, seed=number) for number in seeds]

    for group in groups:
        members(group, search.start[0])  # a mistake in the declaration shows now, not after the grid has run

    def sweep(frame: pd.DataFrame) -> tuple[Run, ...]:
        last = search.last(frame)
        return _unique(
            wanted
            for group in groups
            for value in search.path(lambda value, group=group: search.mean(last, members(group, value)))
            for wanted in members(group, value)
        )

    return sweep


@dataclass(frozen=True)
class Search:
    """The rule of ``bisection`` for one group: from values of the axis already tried to the next one."""

    axis: str
    column: str
    level: float
    start: tuple[float, ...]
    factor: float
    reach: float
    usable: tuple[str, ...]

    def last(self, frame: pd.DataFrame) -> dict[str, float]:
        """Key -> the column in the last row of the run, nan if it is not usable."""
        if not len(frame):
            return {}
        if self.column not in frame.columns:
            raise UserError(
                f"`column` is {self.column!r}: the rows have {', '.join(map(str, frame.columns))}"
            )
        rows = frame.drop_duplicates("key", keep="last")
        values = rows[self.column].astype(float)
        if "status" in rows.columns:
            values = values.where(rows["status"].isin(self.usable))
        return dict(zip(rows["key"], values, strict=True))

    def mean(self, last: Mapping[str, float], runs: Sequence[Run]) -> float | None:
        """Mean over the usable members, nan without any; None as long as one of them is not finished."""
        if any(run.key not in last for run in runs):
            return None
        values = [last[run.key] for run in runs if math.isfinite(last[run.key])]
        return math.fsum(values) / len(values) if values else math.nan

    def path(self, value_at: Callable[[float], float | None]) -> list[float]:
        """The values of the axis to be tried, ending with the ones whose result is not known yet."""
        tried = list(self.start)
        known = {place: value_at(place) for place in tried}
        while all(value is not None for value in known.values()):
            fresh = [
                place
                for place in self.next({p: v for p, v in known.items() if v is not None})
                if place not in known
            ]
            if not fresh:
                break
            tried += fresh
            known.update((place, value_at(place)) for place in fresh)
        return tried

    def next(self, known: Mapping[float, float]) -> list[float]:
        """The next values to try; none once the bracket is narrow, or if nothing within reach brackets."""
        places = sorted(place for place, value in known.items() if not math.isnan(value))
        for low, high in itertools.pairwise(places):
            if (known[low] >= self.level) != (known[high] >= self.level):
                return self._between(low, high, known)
        if not places:
            return []
        near_low, near_high = (abs(known[places[i]] - self.level) for i in (0, -1))
        down = self._beyond(places[0], False, known) if near_low <= near_high else []
        up = self._beyond(places[-1], True, known) if near_high <= near_low else []
        return down + up

    def _between(self, low: float, high: float, known: Mapping[float, float]) -> list[float]:
        if high / low <= self.factor:
            return []
        # the middle first; off the middle where the run there gave no number
        for share in (0.5, 0.35, 0.65):
            place = _rounded(low * (high / low) ** share)
            if place not in known:
                return [place]
        return []

    def _beyond(self, edge: float, up: bool, known: Mapping[float, float]) -> list[float]:
        """A step outward from the outermost number, or to between it and a place without a number."""
        step = min(self.start[-1] / self.start[0], 10.0)
        place = (
            min(edge * step, self.start[-1] * self.reach)
            if up
            else max(edge / step, self.start[0] / self.reach)
        )
        place = _rounded(place)
        if (place <= edge) if up else (place >= edge):
            return []
        walls = [
            p for p, v in known.items() if math.isnan(v) and (edge < p <= place if up else place <= p < edge)
        ]
        if not walls:
            return [place]
        return self._between(edge, min(walls), known) if up else self._between(max(walls), edge, known)


def _checked(start: Sequence[Any], factor: float, reach: float) -> tuple[float, ...]:
    try:
        values = tuple(sorted({float(value) for value in start}))
    except (TypeError, ValueError):
        values = ()
    if len(values) < 2 or values[0] <= 0 or not math.isfinite(values[-1]):
        raise UserError(f"`start` is {list(start)}: expected at least two different positive numbers")
    if not factor >= 1.001:
        raise UserError(f"`factor` is {factor}: expected at least 1.001 (values are rounded to six digits)")
    if not reach >= 1:
        raise UserError(f"`reach` is {reach}: expected at least 1")
    return values


def _rounded(value: float) -> float:
    """Six digits: the same key on machines whose power function differs in the last bit."""
    return float(f"{value:.6g}")


def _product(run: type[Run], axes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All combinations of the values of the axes, the first one varying slowest."""
    values = {name: _values(name, given) for name, given in axes.items()}
    for name, several in values.items():
        if not several:
            raise UserError(f"axis `{name}` of {run.__name__} is empty: expected at least one value")
    combined = bounded(itertools.product(*values.values()), f"a grid of {run.__name__}")
    return [dict(zip(values, chosen, strict=True)) for chosen in combined]


def _values(name: str, values: Any) -> tuple[Any, ...]:
    """The values of an axis: a text or a number is one value."""
    if isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping):
        return bounded(values, f"`{name}`")
    return (values,)


def _unique(runs: Iterable[Run]) -> tuple[Run, ...]:
    return tuple({run.key: run for run in bounded(runs, "the sweep")}.values())
