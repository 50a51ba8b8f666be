"""One look for all figures: single-column panels, legends below them, curves told apart without colour."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

__all__ = [
    "COLUMN",
    "LOOK",
    "X_LABEL",
    "Mark",
    "as_bytes",
    "canvas",
    "curve",
    "legend",
    "legend_of",
    "log_axes",
    "marks",
    "shifts",
    "styled",
    "subtitle",
]

COLUMN = 3.5
"""Width of one panel in inches: a column of a two-column page."""

X_LABEL = r"$\sqrt{h}\,\alpha$  (paper convention)"

LOOK: Any = {
    "font.size": 8.5,
    "font.family": "DejaVu Sans",
    "mathtext.fontset": "dejavusans",
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 5,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.facecolor": "white",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "legend.columnspacing": 1.4,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.8,
    # Glyphs as outlines: the file looks the same wherever it is opened, no font has to be there.
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}

Mark = dict[str, Any]
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
DASHES = ((0, ()), (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))


def styled() -> Any:
    """A decorator: the function draws in :data:`LOOK`, matplotlib's own settings stay as they were."""
    return mpl.rc_context(LOOK)


def marks(values: Iterable[Any]) -> dict[Any, Mark]:
    """How each value of an ordered quantity (a width) is drawn: its own shade, marker and dashes.

    The shades come from cividis, which the colour-blind see as others do, dark to light with equal steps of
    lightness, so that the order survives a black-and-white print.
    """
    there = sorted(set(values))
    shades = mpl.colormaps["cividis"]
    found = {}
    for i, value in enumerate(there):
        place = 0.78 * i / max(len(there) - 1, 1)
        dash = DASHES[i % len(DASHES)]
        # Smaller and smaller, so that where curves collapse the earlier markers show around the later ones.
        size = 6.0 - 2.6 * i / max(len(there) - 1, 1)
        shape = SHAPES[i % len(SHAPES)]
        found[value] = {"color": shades(place), "marker": shape, "markersize": size, "linestyle": dash}
    return found


def shifts(values: Iterable[Any]) -> dict[Any, float]:
    """Factors near 1, one for each value, that set their whiskers side by side on a logarithmic axis."""
    there = sorted(set(values))
    step = 1.6 ** (1 / max(len(there) - 1, 4))
    return {value: step ** (i - (len(there) - 1) / 2) for i, value in enumerate(there)}


def canvas(count: int, rows: int = 1, height: float = 2.5) -> tuple[Figure, list[list[Axes]]]:
    """An empty figure: ``rows`` lists of ``count`` panels, each about a column wide; no pyplot.

    A single list of more than three panels is wrapped over several lines, four as two by two.
    """
    most = 2 if count == 4 else 3
    across, lines = (count, rows) if rows > 1 or count <= 3 else (most, -(-count // most))
    figure = Figure(
        figsize=(COLUMN if across == 1 else 3.0 * across, height * lines + 0.55), layout="constrained"
    )
    every = list(figure.subplots(lines, across, squeeze=False).ravel())
    for axes in every[rows * count :]:
        axes.set_axis_off()
    return figure, [every[i * count : (i + 1) * count] for i in range(rows)]


def log_axes(axes: Axes, x_label: str, y_label: str, *, log_y: bool = True) -> None:
    """Logarithmic axes with few, clean decades and a faint grid."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=7))
    axes.xaxis.set_minor_locator(NullLocator())
    if log_y:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        if high / low > 30:
            axes.yaxis.set_major_locator(LogLocator(numticks=7))
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter("{x:.3g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(True, which="major")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)


def curve(axes: Axes, table: pd.DataFrame, x: str, mark: Mark, label: str, shift: float = 1.0) -> None:
    """The means of a :func:`regimes.report.table.summary` joined by a line, intervals as whiskers.

    ``shift`` multiplies x, to set the whiskers of neighbouring curves side by side.
    """
    place, middle = shift * table[x].to_numpy(dtype=float), table["mean"].to_numpy(dtype=float)
    below = (middle - table["low"].to_numpy(dtype=float)).clip(min=0)
    above = (table["high"].to_numpy(dtype=float) - middle).clip(min=0)
    axes.errorbar(
        place,
        middle,
        yerr=[below, above],
        label=label,
        elinewidth=0.7,
        capsize=1.8,
        capthick=0.7,
        **({"markeredgecolor": "white", "markeredgewidth": 0.4} | mark),
    )


def subtitle(axes: Axes, panel: str, second: str = "") -> None:
    """The panel's name above it, then what was fitted there: above the axes it covers no data."""
    axes.set_title("\n".join(part for part in (panel, second) if part))


def legend(figure: Figure, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    """One legend for all panels, below them, where it covers no data."""
    seen: dict[str, Artist] = {}
    for handle, label in zip(handles, labels, strict=True):
        if label and not label.startswith("_"):
            seen.setdefault(label, handle)
    if not seen:
        return
    # The room of an entry in inches: its handle, then its letters.
    longest = max(len(label) for label in seen)
    across = max(1, int(figure.get_figwidth() / (0.5 + 0.055 * longest)))
    figure.legend(list(seen.values()), list(seen), loc="outside lower center", ncols=min(len(seen), across))


def legend_of(figure: Figure, every: Sequence[Axes]) -> None:
    """:func:`legend` of all that is labelled in the panels: widths in order, fits at the end."""
    found: list[tuple[Artist, str]] = []
    for axes in every:
        found += zip(*axes.get_legend_handles_labels(), strict=True)
    found.sort(key=lambda pair: ("fit" in pair[1], _number(pair[1])))
    legend(figure, [handle for handle, _ in found], [label for _, label in found])


def _number(label: str) -> int:
    """The width in ``h = 64``."""
    word = label.rsplit(" ", 1)[-1]
    return int(word) if word.isdigit() else 0


def as_bytes(figure: Figure, kind: str, name: str = "figure") -> bytes:
    """The figure as "svg" or "png" (200 dpi); the same figure gives the same bytes.

    Arguments:
        figure: what to write.
        kind: "svg" or "png".
        name: seeds the identifiers inside an SVG.
    """
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": name}):
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, dpi=200, metadata=metadata)
    return buffer.getvalue()
