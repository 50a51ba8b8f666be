"""Types that recur in runs: of their fields, of what they are told and of what they give back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

__all__ = ["Count", "Index", "Positive", "Rows", "Tick"]

Count = Annotated[int, Field(ge=1)]
"""A whole number from 1 on."""

Index = Annotated[int, Field(ge=0)]
"""A whole number from 0 on, such as a seed."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A positive finite number."""

Tick = Callable[[str], None]
"""Takes a short text, the metric of the moment."""

Rows = list[dict[str, Any]]
"""Measured columns, one mapping a row."""
