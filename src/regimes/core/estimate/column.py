"""Numbers as they come, a list, an array, a column of a data frame: as one vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from regimes.core.check import checked
from regimes.core.error import UserError

__all__ = ["Column", "Numbers", "array", "positive"]


@runtime_checkable
class Column(Protocol):
    """A column of a data frame, or a data frame."""

    def to_numpy(self) -> Any:
        """Its values."""


Numbers = Sequence[Any] | np.ndarray | Column
"""Numbers as they come: a list, an array, a column of a data frame (which pandas may call a frame)."""


@checked
def array(values: Numbers, name: str = "values") -> np.ndarray:
    """The numbers as a float64 vector; what is missing becomes nan. Errors say ``name``.

    >>> array([1, "2.5", None, True])
    array([1. , 2.5, nan, 1. ])
    """
    try:
        found = np.asarray(values).ravel()
        if found.dtype.kind in "cmM":
            raise TypeError(f"values of {found.dtype}")
        if found.dtype.kind not in "biuf":
            found = np.array([_number(each) for each in found.tolist()])
        return found.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"`{name}`: hold something other than numbers ({error}); leave it out") from error


def _number(value: Any) -> float:
    """A number, also one in words; nan where it is missing: None, and the NA and NaT of pandas, which is not loaded."""
    return math.nan if value is None or type(value).__name__ in ("NAType", "NaTType") else float(value)


@checked
def positive(values: np.ndarray, name: str) -> np.ndarray:
    """The same values if all are above zero, for a logarithm; else a UserError that counts the others."""
    if values.dtype.kind not in "biuf":
        raise UserError(f"`{name}`: got an array of {values.dtype}, expected real numbers")
    if (bad := int((values <= 0).sum())) > 0:
        raise UserError(
            f"`{name}` has {bad} of {len(values)} values at or below zero: a logarithm needs positive ones; "
            "leave these rows out or work on the plain scale"
        )
    return values
