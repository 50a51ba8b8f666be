"""What would decide an inconclusive claim: so many seeds, by the power that they have; the command, and its cost."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from regimes.core.error import UserError
from regimes.core.estimate import Estimate
from regimes.core.progress import duration
from regimes.report.power import ENOUGH, units
from regimes.study import Store, Study, forecast_study, read_record
from regimes.study.growth import setting
from regimes.study.run import canonical
from regimes.study.store import opened

__all__ = ["Way", "units_needed", "with_ways"]

FEWEST = 3
"""Of one seed nothing is known of the spread, of two hardly anything."""


@dataclass(frozen=True)
class Way:
    """What would decide a claim.

    Attributes:
        text: in words.
        command: that would do it; empty if no command would.
        cost: of the command; empty if it is not known.
    """

    text: str
    command: str = ""
    cost: str = ""


def with_ways(found: Sequence[Mapping[str, Any]], study: Any, out: Path | Store) -> list[dict[str, Any]]:
    """The verdicts, each inconclusive one with the key "decide": text, command and cost; None for the others.

    Args:
        found: verdicts, as :func:`regimes.report.claim.verdicts` gives them.
        study: the study; of what is no :class:`regimes.study.Study` nothing can be forecast.
        out: the directory of its rows, or the store there.
    """
    store = held = None
    if isinstance(study, Study):
        store = opened(out, study.runs)
        with suppress(UserError):  # of a damaged record the page speaks elsewhere
            held = read_record(store)
    if store is None or held is None or held["scale"] not in study.scales:
        return [{**one, "decide": None} for one in found]
    plan = _Plan(study, store, held)
    ways = [plan.way(one) if one["verdict"] == "inconclusive" else None for one in found]
    return [
        {
            **one,
            "decide": None if way is None else {"text": way.text, "command": way.command, "cost": way.cost},
        }
        for one, way in zip(found, ways, strict=True)
    ]


def units_needed(one: Mapping[str, Any]) -> int | None:
    """How many independent units decide a claim with probability 0.8, if value and spread stay; None if too many.

    To decide is to say "reproduced" of a value within the range, and "not reproduced" of one beyond an end.

    Args:
        one: a verdict with an interval.

    >>> units_needed({"value": 0.0, "low": -0.2, "high": 0.2, "range": [-0.1, 0.1], "n": 5, "scale": "plain",
    ...     "freedom": 4})
    30
    """
    value, (first, last) = one["value"], one["range"]
    side = (first, last)
    if first is not None and value < first:
        side = (None, first)
    if last is not None and value > last:
        side = (last, None)
    found = Estimate(value, one["low"], one["high"], one["n"], "", one["scale"], one["freedom"])
    return units(found, value, side)


class _Plan:
    """The growth of one study, forecast once for each value of an option."""

    def __init__(self, study: Study, store: Store, held: Mapping[str, Any]) -> None:
        self._study, self._store, self._scale = study, store, held["scale"]
        known = study.settings(self._scale)
        told = [one.get("settings") for one in held["sessions"]]
        self._history = [one for one in told if isinstance(one, dict)] + [held["settings"] or {}]
        self._present = {name: value for name, value in self._history[-1].items() if name in known}
        self._default = canonical(known)
        last = held["sessions"][-1] if held["sessions"] else {}
        self._on, self._data = str(last.get("on") or "here"), last.get("data")
        self.forecast = cache(self._forecast)

    def way(self, one: Mapping[str, Any]) -> Way:
        """What would decide one claim."""
        unit = one["unit"]
        if one["value"] is None:
            command, cost = self.forecast("", 0)
            return (
                Way("what it rests on is not finished", command, cost)
                if command
                else Way("not decided by more seeds: its rows are all there, and do not tell")
            )
        if not unit:
            return Way("not decided by more seeds: they do not narrow its interval")
        if unit not in self._default:
            return Way(
                f"more independent runs narrow its interval, but the study has no option `{unit}` for them"
            )
        now = max((one[unit] for one in self._history if isinstance(one.get(unit), int)), default=1)
        if one["low"] is None or one["high"] is None or one["n"] < 2:
            return self._grown(
                unit, max(FEWEST, 2 * now), "there is no interval yet; with {count} {unit} there is one"
            )
        needed = units_needed(one)
        if needed is None:
            return Way(
                f"not decided by more {unit}: the value lies at an end of the range, as far as is known"
            )
        count = max(now + 1, math.ceil(now * needed / one["n"]))
        chance = (
            f"about {{count}} {{unit}} would decide it with probability {ENOUGH:g}, if value and spread stay"
        )
        return self._grown(unit, count, chance)

    def _grown(self, unit: str, count: int, text: str) -> Way:
        words = text.format(count=count, unit=unit)
        command, cost = self.forecast(unit, count)
        return Way(words, command, cost)

    def _forecast(self, unit: str, count: int) -> tuple[str, str]:
        """The command and its cost; empty where nothing is left to do, or where the study refuses it."""
        chosen = {name: value for name, value in self._present.items() if name != unit}
        chosen |= {unit: count} if unit else {}
        try:
            told = forecast_study(self._study, self._scale, self._store, settings=chosen, on=self._on)
        except UserError:
            return "", ""
        left = told.wanted - told.finished
        if not left:
            return "", ""
        workers = "1 worker" if told.workers == 1 else f"{told.workers} workers"
        runs = "1 run" if left == 1 else f"{left} runs"
        cost = f"{runs} more, about {duration(told.seconds)} on {workers}"
        return self._command(chosen, unit), cost

    def _command(self, chosen: Mapping[str, Any], unit: str) -> str:
        words = ["regimes", "run", str(self._study.source or self._study.name)]
        words += ["--scale", self._scale, "--out", str(self._store.out)]
        words += ["--data", self._data] if isinstance(self._data, str) else []
        for name, value in chosen.items():
            if name == unit == "seeds":
                words += ["--seeds", str(value)]
            elif name == unit or canonical(value) != self._default[name]:
                words += ["--set", setting(name, value)]
        return shlex.join(words)
