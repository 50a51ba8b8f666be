"""A figure of a study drawn, or the reason why it is not there."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.report.style import as_bytes
from regimes.study.fault import Heard, StudyFault, blame, unheard
from regimes.study.run import shorten

__all__ = ["Figures", "Shown", "draw", "draw_all"]

Figures = Sequence[Any] | Callable[[pd.DataFrame], Sequence[Any]]
"""The figures of a study, or a function from its rows to them."""
EXPECTED = (
    "expected (name, title, function, caption), the name of letters, digits, dots, dashes and underscores"
)


@dataclass(frozen=True)
class Shown:
    """A figure on the page, or the reason why it is not there.

    Arguments:
        name: of its files; empty if it can have none.
        title: its heading.
        caption: what is to be seen.
        svg: the figure; empty if it could not be drawn.
        png: the same as pixels.
        note: the reason if it could not be drawn.
        size: width and height in CSS pixels.
    """

    name: str
    title: str
    caption: str
    svg: bytes = b""
    png: bytes = b""
    note: str = ""
    size: tuple[int, int] = (0, 0)

    @property
    def wide(self) -> bool:
        """Whether it needs the whole width of the page: more than one panel across."""
        return self.size[0] > 450

    @property
    def source(self) -> str:
        """The SVG as a data address: an image of its own, whose identifiers cannot clash with another's."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode()


def draw_all(figures: Figures, frame: pd.DataFrame, heard: Heard = unheard) -> list[Shown]:
    """The figures of a study, or one note where the list of them cannot be had.

    Arguments:
        figures: tuples ``(name, title, function, caption)``, or a function from the rows to them.
        frame: the rows.
        heard: is told of an exception in the study's code.
    """
    try:
        with blame("`figures`"):
            wanted = list(figures(frame)) if callable(figures) else list(figures)
    except UserError as error:
        if isinstance(error, StudyFault):
            heard(error)
        return [Shown("", "Figures", "", note=str(error))]
    return [draw(entry, frame, heard) for entry in wanted]


@checked
def draw(entry: object, frame: pd.DataFrame, heard: Heard = unheard) -> Shown:
    """One figure of a study, ``(name, title, function, caption)``.

    Rows that do not suffice become a note, and so does an exception in the function or an entry of another form: a
    name, above all, that is no plain name of a file and might lead out of ``figures/``.

    Arguments:
        entry: the figure.
        frame: the rows.
        heard: is told of an exception in the function.
    """
    match entry:
        case (str(name), str(title), function, str(caption)) if plain(name) and callable(function):
            pass
        case _:
            note = f"`figures` holds {shorten(entry, 100)}: {EXPECTED}"
            return Shown("", "A figure without a proper name", "", note=note)
    try:
        if frame.empty:
            raise UserError("no run is finished yet")
        with blame(f"figure {name}"):
            return _drawn(name, title, function, caption, frame)
    except StudyFault as fault:
        heard(fault)
        return Shown(name, title, caption, note=str(fault))
    except UserError as error:
        return Shown(name, title, caption, note=str(error))


def plain(name: str) -> bool:
    """Whether a name is that of a file in the folder at hand, on every system.

    >>> plain("kernel_change.v2"), plain("../kernel_change"), plain("CON\\0"), plain("x" * 200)
    (True, False, False, False)
    """
    return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name) is not None


def _drawn(
    name: str, title: str, function: Callable[[pd.DataFrame], object], caption: str, frame: pd.DataFrame
) -> Shown:
    try:
        figure = function(frame)
        if not isinstance(figure, Figure):
            raise UserError(f"figure {name} gave {type(figure).__name__}: expected a matplotlib Figure")
        svg = as_bytes(figure, "svg", name)
        figure.set_layout_engine("none")  # the places are found; finding them again takes as long as drawing
        png = as_bytes(figure, "png")
    except KeyError as error:
        raise UserError(f"the rows have no column {error}") from None
    except ValueError as error:  # so does numpy speak of too few numbers
        raise UserError(str(error)) from None
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    return Shown(name, title, caption, svg, png, size=(width, height))
