"""Looking at a stream of states: what a probe is, when it looks, and the rows that come out."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import GenericAlias

from regimes.core.batch import misfit
from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.estimate import Estimate
from regimes.core.state import State, Status

__all__ = [
    "Columns",
    "Probe",
    "Row",
    "Snapshot",
    "When",
    "at_end",
    "log_spaced",
    "numbers",
    "observe",
    "with_ends",
]

Values = Mapping[str, float | list[float]]
Columns = Mapping[str, type | GenericAlias]
"""Names of values, and their types: ``float`` or ``list[float]``."""

When = Callable[[int], int]
"""From a step to the next one at which to look; from -1 to the first."""


@dataclass(frozen=True)
class Row:
    """What the probes read off one state.

    Attributes:
        member, step, time, status, loss: of the state.
        values: by the names of the quantities; a list only where a probe says so.
    """

    member: int
    step: int
    time: float
    status: Status
    loss: float
    values: dict[str, float | list[float]]


class Probe(ABC):
    """Something to read off the states of one member. Implementations are frozen dataclasses.

    A probe that remembers something of its member keeps it in fields with ``init=False``; :meth:`fresh` gives
    one that remembers nothing. :func:`observe` takes a fresh probe for each member and drops it with the
    member's last state, so the same probe may be handed to any number of runs.
    """

    @property
    def columns(self) -> Columns:
        """The names of its values with their types, ``float`` or ``list[float]``: the columns of a table of them.

        What the recipe of a paper looks at declares them; of others, which declare nothing, any value is taken.
        """
        return {}

    @abstractmethod
    def follow(self, state: State) -> None:
        """See a state: called on every one, before any look at it, so it must cost next to nothing."""

    @abstractmethod
    def look(self, state: State) -> Values:
        """The values at this state, by name."""

    def fresh(self) -> Probe:
        """The same probe without memory."""
        return replace(self)  # pyright: ignore[reportArgumentType]


class Snapshot(Probe):
    """A probe that needs only the states it looks at."""

    def follow(self, state: State) -> None:
        """Nothing: the states between looks do not matter."""
        return


def with_ends(found: Mapping[str, float | Estimate]) -> dict[str, float]:
    """Values of a row: of an estimate ``dK``, ``dK_low`` and ``dK_high``; a bare number has no ends.

    >>> with_ends({"dK": Estimate(0.5, 0.4, 0.6, 32), "gap": 0.1})
    {'dK': 0.5, 'dK_low': 0.4, 'dK_high': 0.6, 'gap': 0.1}
    """
    values: dict[str, float] = {}
    for name, one in found.items():
        if isinstance(one, Estimate):
            values |= {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
        else:
            values[name] = one
    return values


def numbers(*names: str, interval: float | None = None) -> Columns:
    """Columns of one number each; with an interval, of its ends as well, by the names of :func:`with_ends`.

    >>> list(numbers("dK", interval=0.95))
    ['dK', 'dK_low', 'dK_high']
    """
    ends = ("",) if interval is None else ("", "_low", "_high")
    return {f"{name}{end}": float for name in names for end in ends}


@checked
def log_spaced(per_decade: int = 4, *, start: bool = False) -> When:
    """Look at the steps round(10^(k / per_decade)), k = 0, 1, ...

    Args:
        per_decade: looks in each factor of ten.
        start: look at step 0 as well.

    Raises:
        UserError: if ``per_decade`` is below 1.

    >>> when, step, steps = log_spaced(), -1, []
    >>> while step < 100:
    ...     step = when(step)
    ...     steps.append(step)
    >>> steps
    [1, 2, 3, 6, 10, 18, 32, 56, 100]
    """
    if not 1 <= per_decade <= 1000:
        raise UserError(f"`per_decade`: got {per_decade}, expected 1 to 1000")

    def following(step: int) -> int:
        if step < 1:
            return 0 if start and step < 0 else 1
        # The first k whose step lies beyond: at most one more digit of looks away.
        steps = (round(10 ** (k / per_decade)) for k in range(per_decade * (len(str(step)) + 1) + 1))
        return next(later for later in steps if later > step)

    return following


@checked
def at_end() -> When:
    """Look at the last state alone.

    >>> at_end()(-1) > 10**18
    True
    """
    return lambda step: sys.maxsize


@checked
def observe(states: Iterable[State], probes: Sequence[Probe], when: When | None = None) -> Iterator[Row]:
    """Look at a stream of states, members in any order.

    Every member is looked at at the moments of ``when``, or the first state after each, and always at its
    last state (the one whose status is not "running"); then all that its probes remember is dropped.

    Args:
        states: from an engine of ``regimes.train``, or any other source.
        probes: what to read off.
        when: the moments (default: :func:`log_spaced`).

    Yields:
        A row per look, as soon as it is known.

    Raises:
        UserError: if two probes give a value of the same name.

    >>> from torch import nn
    >>> from regimes.measure.movement import Movement
    >>> [row.values for row in observe([State.of(nn.Linear(2, 1), step=1)], [Movement()])]
    [{'dW': 0.0}]
    """
    moments = when or log_spaced()
    readers: dict[int, list[Probe]] = {}
    due: dict[int, int] = {}
    for state in states:
        if not isinstance(state, State):
            raise UserError(
                f"`states`: one of them is a {type(state).__name__}, expected states of an engine"
            )
        member = state.member
        if member not in readers:
            readers[member], due[member] = [probe.fresh() for probe in probes], moments(-1)
        for probe in readers[member]:
            probe.follow(state)
        last = state.status != "running"
        if last or state.step >= due[member]:
            due[member] = moments(state.step)
            yield _look(state, readers[member])
        if last:
            del readers[member], due[member]


def _found(state: State, probe: Probe) -> Values:
    """What a probe says of a state; of inputs that the network does not take, the one line that says so."""
    try:
        return probe.look(state)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        inputs = getattr(probe, "inputs", None)
        found = (
            None if inputs is None or isinstance(error, UserError) else misfit(state.module, inputs, "inputs")
        )
        if found is None:
            raise
        raise found from error


def _look(state: State, probes: Sequence[Probe]) -> Row:
    values: dict[str, float | list[float]] = {}
    for probe in probes:
        found = _found(state, probe)
        if (told := probe.columns) and (other := sorted(found.keys() - told.keys())):
            raise UserError(
                f"`columns` of {type(probe).__name__}: it gives '{other[0]}', but declares {', '.join(told)}; add it"
            )
        if twice := sorted(values.keys() & found.keys()):
            raise UserError(
                f"`probes`: two of them give '{twice[0]}'; give one of them another `name`, or drop it"
            )
        values.update(found)
    return Row(state.member, state.step, state.time, state.status, state.loss, values)
