"""A table of a study laid out, or the reason why it is not there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.report.shown import EXPECTED, plain
from regimes.study.fault import Heard, StudyFault, blame, unheard
from regimes.study.run import shorten

__all__ = ["Table", "Tables", "lay_out", "lay_out_all"]

Tables = Sequence[Any] | Callable[[pd.DataFrame], Sequence[Any]]
"""The tables of a study, or a function from its rows to them."""


@dataclass(frozen=True)
class Table:
    """A table on the page, or the reason why it is not there.

    Arguments:
        name: of its file; empty if it can have none.
        title: its heading.
        caption: what is to be seen.
        columns: the heads of its columns.
        rows: its cells as text, row by row.
        note: the reason if it could not be laid out.
    """

    name: str
    title: str
    caption: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    note: str = ""

    @property
    def csv(self) -> bytes:
        """Its cells, separated by commas."""
        return pd.DataFrame(list(self.rows), columns=list(self.columns)).to_csv(index=False).encode()


def lay_out_all(tables: Tables, frame: pd.DataFrame, heard: Heard = unheard) -> list[Table]:
    """The tables of a study, or one note where the list of them cannot be had.

    Arguments:
        tables: tuples ``(name, title, function, caption)``, or a function from the rows to them.
        frame: the rows.
        heard: is told of an exception in the study's code.
    """
    try:
        with blame("`tables`"):
            wanted = list(tables(frame)) if callable(tables) else list(tables)
    except UserError as error:
        if isinstance(error, StudyFault):
            heard(error)
        return [Table("", "Tables", "", note=str(error))]
    return [lay_out(entry, frame, heard) for entry in wanted]


@checked
def lay_out(entry: object, frame: pd.DataFrame, heard: Heard = unheard) -> Table:
    """One table of a study, ``(name, title, function, caption)`` with ``function(rows)`` a data frame.

    Rows that do not suffice become a note, and so does an exception in the function or an entry of another form.

    Arguments:
        entry: the table.
        frame: the rows.
        heard: is told of an exception in the function.
    """
    match entry:
        case (str(name), str(title), function, str(caption)) if plain(name) and callable(function):
            pass
        case _:
            note = f"`tables` holds {shorten(entry, 100)}: {EXPECTED}"
            return Table("", "A table without a proper name", "", note=note)
    try:
        if frame.empty:
            raise UserError("no run is finished yet")
        with blame(f"table {name}"):
            found = function(frame)
            if not isinstance(found, pd.DataFrame):
                raise UserError(f"table {name} gave {type(found).__name__}: expected a data frame")
            cells = tuple(tuple(map(str, row)) for row in found.itertuples(index=False, name=None))
            return Table(name, title, caption, tuple(map(str, found.columns)), cells)
    except StudyFault as fault:
        heard(fault)
        return Table(name, title, caption, note=str(fault))
    except UserError as error:
        return Table(name, title, caption, note=str(error))
