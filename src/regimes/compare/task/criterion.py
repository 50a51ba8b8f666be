"""By what a comparison is decided, and how its numbers are printed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from regimes.core.error import UserError
from regimes.core.estimate import Estimate

__all__ = ["COLUMNS", "Answer", "Criterion", "criterion_of", "ends", "number", "ranges"]

Answer = Literal["yes", "no", "open"]
# The width of the sentence, about that of the table.
COLUMNS = 110


@dataclass(frozen=True)
class Criterion:
    """How it is decided.

    Attributes:
        margin: the error that may be lost.
        level: of the intervals.
    """

    margin: float
    level: float

    def answer(self, difference: Estimate) -> Answer:
        """ "yes" if the whole interval is below the margin, "no" if it is above, else "open"."""
        if difference.high < self.margin:
            return "yes"
        return "no" if difference.low > self.margin else "open"


def criterion_of(margin: float, level: float) -> Criterion:
    """Margin and level, checked."""
    for name, value, most in (("margin", margin, math.inf), ("level", level, 1.0)):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value < most or (name == "level" and value == 0):
            wanted = (
                "a finite number of 0 or more" if name == "margin" else "a number between 0 and 1, as 0.95"
            )
            raise UserError(f"`{name}`: got {value!r}, expected {wanted}")
    return Criterion(float(margin), float(level))


def ends(name: str, found: Estimate | None) -> dict[str, float]:
    """A value with the ends of its interval, for the columns that :func:`ranges` reads; nan where there is none."""
    value, low, high = (math.nan,) * 3 if found is None else (found.value, found.low, found.high)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def ranges(frame: pd.DataFrame, name: str) -> list[str]:
    """Values with their intervals."""
    columns = (frame[name], frame[f"{name}_low"], frame[f"{name}_high"])
    return [
        "-" if math.isnan(value) else f"{number(value)} ({number(low)} to {number(high)})"
        for value, low, high in zip(*columns, strict=True)
    ]


def number(value: float) -> str:
    """Four digits after the point, more of a small number; a dash for nan."""
    return "-" if math.isnan(value) else f"{value:.3g}" if abs(value) < 1e-3 and value else f"{value:.4f}"
