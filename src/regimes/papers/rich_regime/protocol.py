"""What was changed of this study after a look at its results."""

from __future__ import annotations

from regimes.study import Amendment

__all__ = ["PROTOCOL"]

PROTOCOL: tuple[Amendment, ...] = ()
"""The changes, the oldest first."""
