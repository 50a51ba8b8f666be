"""What a study lists to be shown, ``(name, title, function, caption)``: made of its rows, or the reason why not."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pandas as pd

from regimes.core.error import UserError
from regimes.study.fault import Heard, StudyFault, blame
from regimes.study.run import shorten

__all__ = ["Entries", "all_made", "made", "plain"]

Entries = Sequence[Any] | Callable[[pd.DataFrame], Sequence[Any]]
"""The figures or tables of a study, or a function from its rows to them."""
Thing = TypeVar("Thing")
Absent = Callable[[str, str, str, str], Thing]
"""From name, title, caption and the reason to what stands in the place of a thing that could not be made."""


def all_made(
    kind: str,
    entries: Entries,
    frame: pd.DataFrame,
    heard: Heard,
    one: Callable[[object], Thing],
    absent: Absent[Thing],
) -> list[Thing]:
    """All that a study lists of a kind, or one note where the list cannot be had.

    Arguments:
        kind: "figure" or "table".
        entries: what is listed, or a function from the rows to it.
        frame: the rows.
        heard: is told of an exception in the study's code.
        one: makes one of them.
        absent: stands for the list.
    """
    try:
        with blame(f"`{kind}s`"):
            wanted = list(entries(frame)) if callable(entries) else list(entries)
    except UserError as error:
        if isinstance(error, StudyFault):
            heard(error)
        return [absent("", f"{kind.capitalize()}s", "", str(error))]
    return [one(entry) for entry in wanted]


def made(
    kind: str,
    entry: object,
    frame: pd.DataFrame,
    heard: Heard,
    make: Callable[[str, str, Callable[[pd.DataFrame], object], str], Thing],
    absent: Absent[Thing],
) -> Thing:
    """One thing. Rows that do not suffice become a note, and so does an exception in the function or another form.

    The name, above all, has to be a plain one: it is that of a file, and might lead out of its folder.
    """
    match entry:
        case (str(name), str(title), function, str(caption)) if plain(name) and callable(function):
            pass
        case _:
            note = (
                f"`{kind}s` holds {shorten(entry, 100)}: expected (name, title, function, caption), the name of "
                "letters, digits, dots, dashes and underscores"
            )
            return absent("", f"A {kind} without a proper name", "", note)
    try:
        if frame.empty:
            raise UserError("no run is finished yet")
        with blame(f"{kind} {name}"):
            return make(name, title, function, caption)
    except StudyFault as fault:
        heard(fault)
        return absent(name, title, caption, str(fault))
    except UserError as error:
        return absent(name, title, caption, str(error))


def plain(name: str) -> bool:
    """Whether a name is that of a file in the folder at hand, on every system.

    >>> plain("kernel_change.v2"), plain("../kernel_change"), plain("CON\\0"), plain("x" * 200)
    (True, False, False, False)
    """
    return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name) is not None
