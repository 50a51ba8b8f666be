"""How far along a solution to go: by halves, on samples that were not solved."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["search"]

# The share of the promised slope that a step has to keep (Armijo), and how often its length is halved.
_SHARE, _HALVINGS = 1e-4, 8


def search(decrease: Callable[[float], float], slope: float) -> tuple[float, float, bool]:
    """The first length of 1, 1/2, 1/4, ... at which the loss falls by at least 1e-4 of length times slope.

    Args:
        decrease: from a length to how much the loss falls; nan where it is not finite.
        slope: how fast the loss falls at length 0; where it rises, any fall will do.

    Returns:
        The length that was tried last, what the loss fell by, and whether that is enough.

    >>> search(lambda t: t - 3 * t**2, 1.0)
    (0.25, 0.0625, True)
    """
    length, fallen = 1.0, math.nan
    for _ in range(_HALVINGS + 1):
        fallen = decrease(length)
        if fallen > max(_SHARE * length * slope, 0.0):
            return length, fallen, True
        length /= 2
    return 2 * length, fallen, False
