"""One exception for every mistake of a user: the command line prints it as one line and exits with 2."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["UserError", "at_home", "nearest"]


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


def at_home(path: str | Path, name: str) -> Path:
    """A path whose ``~`` or ``~user`` at the start stands for a home.

    Args:
        path: as the user wrote it.
        name: of the argument, for the error.

    Raises:
        UserError: no user of that name has a home; a directory of that name would be one by mistake.

    >>> at_home("runs/~", "out").as_posix()
    'runs/~'
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        first = os.fspath(path).split(os.sep)[0]
        raise UserError(
            f"`{name}` is {os.fspath(path)!r}: {first} is the home of nobody here; "
            f"for a directory of that name write .{os.sep}{first}"
        ) from None
