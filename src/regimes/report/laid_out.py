"""A table of a study laid out, or the reason why it is not there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.report.entry import Entries, all_made, made
from regimes.study.fault import Heard, unheard

__all__ = ["Table", "lay_out", "lay_out_all"]


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


def lay_out_all(tables: Entries, frame: pd.DataFrame, heard: Heard = unheard) -> list[Table]:
    """The tables of a study, or one note where the list of them cannot be had.

    Arguments:
        tables: tuples ``(name, title, function, caption)``, or a function from the rows to them.
        frame: the rows.
        heard: is told of an exception in the study's code.
    """
    return all_made("table", tables, frame, heard, lambda entry: lay_out(entry, frame, heard), _absent)


@checked
def lay_out(entry: object, frame: pd.DataFrame, heard: Heard = unheard) -> Table:
    """One table of a study, ``(name, title, function, caption)`` with ``function(rows)`` a data frame.

    Rows that do not suffice become a note, and so does an exception in the function or an entry of another form.

    Arguments:
        entry: the table.
        frame: the rows.
        heard: is told of an exception in the function.
    """
    return made("table", entry, frame, heard, partial(_laid_out, frame), _absent)


def _absent(name: str, title: str, caption: str, note: str) -> Table:
    return Table(name, title, caption, note=note)


def _laid_out(
    frame: pd.DataFrame, name: str, title: str, function: Callable[[pd.DataFrame], object], caption: str
) -> Table:
    found = function(frame)
    if not isinstance(found, pd.DataFrame):
        raise UserError(f"table {name} gave {type(found).__name__}: expected a data frame")
    cells = tuple(tuple(map(str, row)) for row in found.itertuples(index=False, name=None))
    return Table(name, title, caption, tuple(map(str, found.columns)), cells)
