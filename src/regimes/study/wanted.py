"""What a sweep wants: runs of the study's classes, each once, no more than can be kept, of a known cost."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any, final

import pandas as pd

from regimes.core.error import UserError
from regimes.study.fault import blame
from regimes.study.run import Run
from regimes.study.study import Settings, Study
from regimes.study.sweep import Listed, one_study

__all__ = ["Watched", "declared", "wanted_runs", "was_seen", "weighed"]


def declared(study: Study, scale: str, settings: Settings) -> Listed:
    """The sweep of a scale.

    Raises:
        UserError: an exception where it is built, a ``StudyFault``; or it is no function of the rows.
    """
    with blame(f"`sweep` of scale {scale} of study {study.name}"), one_study():
        return study.sweep(scale, settings)


def wanted_runs(sweep: Listed, frame: pd.DataFrame, study: Study) -> tuple[Run, ...]:
    """What a sweep wants after these rows, each run once.

    Raises:
        UserError: something else than runs of the study's classes, or too many of them.
    """
    with blame(f"`sweep` of study {study.name}"):
        wanted = sweep(frame)
        for run in wanted:
            if type(run) not in study.runs:
                raise UserError(
                    f"`sweep` of study {study.name} wants {type(run).__name__}: expected "
                    f"{', '.join(cls.__name__ for cls in study.runs)} (declared in `runs`)"
                )
        return tuple({run.key: run for run in wanted}.values())


def weighed(runs: Iterable[Run]) -> list[Run]:
    """The same runs, if what tasks are made by can be had of each: its cost, its batch, its cap.

    Raises:
        UserError: one of them is not of its type, or raises.
    """
    found = list(runs)
    for run in found:
        name = type(run).__name__
        with blame(f"`cost` of {name}"):
            cost = float(run.cost())
        if not 0 <= cost < math.inf:
            raise UserError(f"`cost` of {name} is {cost} for {run!r}: expected seconds, 0 or more")
        with blame(f"`batch` of {name}"):
            hash(run.batch)
        with blame(f"`cap` of {name}"):
            operator.index(run.cap)
    return found


@final
class Watched(pd.DataFrame):
    """Rows that note whether they are looked at: a sweep that does not wants the same runs whatever they hold."""

    def __init__(self, rows: pd.DataFrame) -> None:
        super().__init__(rows)
        object.__setattr__(self, "_seen", False)

    def __getattribute__(self, name: str) -> Any:
        # len, subscripts and functions of pandas come here too, for what they need of the frame
        object.__setattr__(self, "_seen", True)
        return super().__getattribute__(name)


def was_seen(rows: Watched) -> bool:
    """Whether the rows were looked at."""
    return object.__getattribute__(rows, "_seen")
