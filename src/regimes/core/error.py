"""One exception for every mistake of a user: the command line prints it as one line and exits with 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["UserError", "nearest"]


class UserError(ValueError):
    """A mistake of the caller: names the argument, what came, what was expected and the way out."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A suggestion to end an error with: ``"; did you mean 'mnist'?"``, or nothing if no known word is near.

    >>> nearest("minst", ["mnist", "digits"])
    "; did you mean 'mnist'?"
    >>> nearest("x", ["mnist", "digits"])
    ''
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
