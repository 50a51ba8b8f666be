"""A figure of a study drawn, or the reason why it is not there."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.report.entry import Entries, all_made, made
from regimes.report.style import as_bytes
from regimes.study.fault import Heard, unheard

__all__ = ["Shown", "draw", "draw_all"]


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


def draw_all(figures: Entries, frame: pd.DataFrame, heard: Heard = unheard) -> list[Shown]:
    """The figures of a study, or one note where the list of them cannot be had.

    Arguments:
        figures: tuples ``(name, title, function, caption)``, or a function from the rows to them.
        frame: the rows.
        heard: is told of an exception in the study's code.
    """
    return all_made("figure", figures, frame, heard, lambda entry: draw(entry, frame, heard), _absent)


@checked
def draw(entry: object, frame: pd.DataFrame, heard: Heard = unheard) -> Shown:
    """One figure of a study, ``(name, title, function, caption)``.

    Rows that do not suffice become a note, and so does an exception in the function or an entry of another form.

    Arguments:
        entry: the figure.
        frame: the rows.
        heard: is told of an exception in the function.
    """
    return made("figure", entry, frame, heard, partial(_drawn, frame), _absent)


def _absent(name: str, title: str, caption: str, note: str) -> Shown:
    return Shown(name, title, caption, note=note)


def _drawn(
    frame: pd.DataFrame, name: str, title: str, function: Callable[[pd.DataFrame], object], caption: str
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
