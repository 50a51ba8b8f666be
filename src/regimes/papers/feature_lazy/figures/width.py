"""Figures against the width h: the crossover, the variance, ensembles, and the phase diagram."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, NullLocator

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.estimate import array
from regimes.papers.feature_lazy.figures.scale import spoken
from regimes.papers.feature_lazy.tables.plane import (
    ends,
    ensembles,
    panels,
    star_law,
    tidy,
    transition,
    variance_law,
)
from regimes.report.ensemble import ensemble, outputs
from regimes.report.fit import PowerLaw
from regimes.report.style import Mark, canvas, curve, legend_of, log_axes, marks, styled, subtitle
from regimes.report.table import need, summary

__all__ = ["crossover", "crossover_by_law", "ensemble_error", "fluctuation_width", "phase_diagram"]

ALPHA = r"$\alpha$  (paper convention)"
WIDTH = "width $h$"
SHADES = mpl.colormaps["cividis"]
REGIMES: dict[str, Mark] = {
    "feature": {"color": "#b35806", "marker": "o", "linestyle": (0, ())},
    "lazy": {"color": "#2d3f8f", "marker": "s", "linestyle": (0, (5, 1.5))},
}


@styled()
@checked
def crossover(frame: pd.DataFrame, level: float = 1.0) -> Figure:
    r"""The crossover :math:`\alpha^*`, where the kernel drift is ``level``, against the width, with its law.

    One dot per network (they are clouds around the geometric mean); theory: :math:`\alpha^* \sim h^{-1/2}`.
    """
    parts = panels(tidy(frame))
    figure, ((*row,),) = canvas(len(parts))
    for axes, (name, part) in zip(row, parts, strict=True):
        table = transition(part, level).dropna(subset=["alpha_star"])
        axes.plot(
            table["width"],
            table["alpha_star"],
            "o",
            ms=3,
            mfc="none",
            mec="0.5",
            mew=0.6,
            label="one network",
        )
        look = {"color": "black", "marker": "D", "linestyle": "none"}
        curve(axes, summary(table, "width", "alpha_star", log=True), "width", look, "mean, 95 % interval")
        law = _law(table)
        if law is not None:
            span = np.array([table["width"].min() / 1.3, table["width"].max() * 1.3])
            axes.plot(
                span, law(span), color="black", linestyle=(0, (6, 2)), linewidth=1, zorder=1, label="fit"
            )
            axes.plot(
                span,
                _theory(table, span),
                color="0.45",
                linestyle=(0, (1, 1.2)),
                zorder=0,
                label=r"$h^{-1/2}$",
            )
        _widths(axes, table["width"], rf"$\alpha^*$  ($\|\Delta K\|/\|K_0\|={level:g}$)")
        subtitle(axes, name, r"$\alpha^*$: " + spoken(law) if law else "too few widths for a fit")
    legend_of(figure, row)
    return figure


def _law(table: pd.DataFrame) -> PowerLaw | None:
    """The law of alpha* over widths; None if there are too few points."""
    try:
        return star_law(table)
    except UserError:
        return None


@styled()
@checked
def crossover_by_law(frame: pd.DataFrame, level: float = 1.0) -> Figure:
    r"""The crossover :math:`\alpha^*` against the width, in the convention of each law of width, with its law."""
    every = panels(tidy(frame))
    parts = [(name, part) for name, part in every if len(set(part["law"])) > 1] or every
    figure, ((*row,),) = canvas(len(parts), height=3.0)
    for axes, (name, part) in zip(row, parts, strict=True):
        look, words = marks(part["law"]), []
        for name_of_law, rows in part.groupby("law"):
            table = transition(rows, level).dropna(subset=["alpha_star"])
            law = _law(table)
            said = f": {spoken(law).removeprefix('exponent ')}" if law else ""
            mark = {**look[name_of_law], "linestyle": "none"}
            curve(
                axes, summary(table, "width", "alpha_star", log=True), "width", mark, f"{name_of_law}{said}"
            )
            if law is not None:
                span = np.array([table["width"].min() / 1.2, table["width"].max() * 1.2])
                axes.plot(
                    span,
                    law(span),
                    color=mark["color"],
                    linestyle=look[name_of_law]["linestyle"],
                    linewidth=0.9,
                )
        _widths(axes, part["width"], r"$\alpha^*$  (convention of the law)")
        subtitle(axes, name, "\n".join(words))
    legend_of(figure, row)
    return figure


def _theory(table: pd.DataFrame, span: np.ndarray) -> np.ndarray:
    """The line of exponent -1/2 through the middle of the points."""
    height = np.log(table["alpha_star"]).mean() + 0.5 * np.log(table["width"]).mean()
    return np.exp(height) * span**-0.5


@styled()
@checked
def ensemble_error(frame: pd.DataFrame, feature: float | None = None, lazy: float | None = None) -> Figure:
    """Test error of one network and of the average of all seeds, against the width, in both regimes.

    Arguments:
        frame: rows of a store with ``test_outputs`` and ``test_targets``.
        feature: the value of ``x`` that stands for the feature regime; see :func:`regimes.report.table.ends`.
        lazy: the same for the lazy regime.
    """
    return _regimes(
        frame, feature, lazy, {"single": "one network", "ensemble": "ensemble"}, "test error (%)", 100.0
    )


@styled()
@checked
def fluctuation_width(frame: pd.DataFrame, feature: float | None = None, lazy: float | None = None) -> Figure:
    """Variance of the function over seeds against the width, in both regimes, with a power law in each."""
    return _regimes(frame, feature, lazy, {"variance": ""}, r"$\mathrm{Var}\,F$", 1.0)


def _regimes(
    frame: pd.DataFrame,
    feature: float | None,
    lazy: float | None,
    columns: dict[str, str],
    label: str,
    factor: float,
) -> Figure:
    """Columns of the ensemble table against the width: feature and lazy in each panel."""
    parts = panels(tidy(frame))
    figure, ((*row,),) = canvas(len(parts))
    for axes, (name, part) in zip(row, parts, strict=True):
        words = []
        for regime, rows in ends(part, feature, lazy).items():
            table = ensemble(rows, "width")
            for column, word in columns.items():
                shown = _shown(table, column, factor)
                mark = dict(REGIMES[regime])
                if column == "ensemble":
                    mark |= {"markerfacecolor": "white", "markeredgecolor": mark["color"], "linewidth": 0.9}
                # A little to either side, so that whiskers do not hide each other.
                shift = 0.97 if regime == "feature" else 1.03
                curve(axes, shown, "width", mark, ", ".join(filter(None, (regime, word))), shift)
            x = float(rows["x"].iloc[0])
            words.append(rf"{regime}: $\sqrt{{h}}\,\alpha$ = {power(x)}" + _slope(rows, columns))
        _widths(axes, part["width"], label, log_y="variance" in columns)
        if "variance" not in columns:
            axes.set_ylim(bottom=-0.02 * axes.get_ylim()[1])
        subtitle(axes, name, "\n".join(words))
    legend_of(figure, row)
    return figure


def _shown(table: pd.DataFrame, column: str, factor: float) -> pd.DataFrame:
    """A column of the ensemble table under the names of a summary."""
    names = {"mean": column, "low": f"{column}_low", "high": f"{column}_high"}
    return pd.DataFrame(
        {"width": table["width"], **{name: factor * table[old] for name, old in names.items()}}
    )


def power(x: float) -> str:
    """0.01 and 300 as they are, 1e5 as a power of ten."""
    if 1e-3 <= x < 1e4:
        return f"{x:g}"
    digits, exponent = f"{x:.2e}".split("e")
    digits = digits.rstrip("0").rstrip(".")
    return ("" if digits == "1" else rf"{digits}$\times$") + f"$10^{{{int(exponent)}}}$"


def _slope(rows: pd.DataFrame, columns: dict[str, str]) -> str:
    """The law of the variance, where there are enough widths."""
    if "variance" not in columns:
        return ""
    parts = ensembles(rows)
    try:
        law = variance_law(list(parts), [outputs(part)[0] for part in parts.values()])
    except UserError:
        return ""
    half = (law.high - law.low) / 2
    return rf",  $h^{{\,{law.value:.2f} \pm {half:.2f}}}$"


def _widths(axes: Axes, widths: Any, label: str, *, log_y: bool = True) -> None:
    """A logarithmic axis of widths that names the widths there are, as many as there is room for."""
    log_axes(axes, WIDTH, label, log_y=log_y)
    there = sorted(set(widths))
    step = -(-len(there) // 7)
    axes.xaxis.set_major_locator(FixedLocator(there[::step]))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())


@styled()
@checked
def phase_diagram(frame: pd.DataFrame, level: float = 1.0) -> Figure:
    r"""The plane of width and :math:`\alpha`: mean kernel drift as shade, the fitted crossover as a line.

    The shade is logarithmic and centred at ``level``; it grows lighter with the drift in equal steps, so that
    a black-and-white print shows the same.
    """
    if not 0 < level < np.inf:
        raise UserError(f"`level`: got {level}, expected a positive finite kernel change")
    rows = need(tidy(frame), ["width", "alpha", "dK"])
    parts = panels(rows)
    figure, ((*row,),) = canvas(len(parts), height=2.7)
    # Beyond three decades on either side there is nothing to tell apart.
    reach = float(np.clip(np.exp(np.abs(np.log(rows["dK"] / level)).max()), 10, 1e3))
    norm = LogNorm(level / reach, level * reach)
    for axes, (name, part) in zip(row, parts, strict=True):
        _tiles(axes, part, norm)
        _widths(axes, part["width"], ALPHA)
        axes.grid(False)
        words = _boundary(axes, part, level)
        subtitle(axes, name, words)
    bar = figure.colorbar(ScalarMappable(norm, SHADES), ax=row, pad=0.02, aspect=25, extend="both")
    bar.set_label(r"kernel drift  $\|\Delta K\|\,/\,\|K_0\|$")
    legend_of(figure, row)
    return figure


def _tiles(axes: Axes, rows: pd.DataFrame, norm: LogNorm) -> None:
    """One tile per (width, alpha), half-way to its neighbours; each width may have its own alphas."""
    sides = _edges(np.unique(array(rows["width"])))
    for i, (_, part) in enumerate(rows.groupby("width", sort=True)):
        table = summary(part, "alpha", "dK", log=True)
        edges = _edges(table["alpha"].to_numpy(dtype=float))
        axes.pcolormesh(
            sides[i : i + 2],
            edges,
            table[["mean"]].to_numpy(dtype=float),
            norm=norm,
            cmap=SHADES,
            edgecolors="face",
            linewidth=0.3,
        )
    axes.set_xlim(sides[0], sides[-1])


def _edges(values: np.ndarray) -> np.ndarray:
    """Edges of the tiles around positive values: geometric midpoints, the outer ones mirrored."""
    logs = np.log(np.asarray(values, dtype=float))
    if len(logs) == 1:
        return np.exp(logs[0] + np.array([-0.5, 0.5]))
    middle = (logs[1:] + logs[:-1]) / 2
    return np.exp(np.concatenate([[2 * logs[0] - middle[0]], middle, [2 * logs[-1] - middle[-1]]]))


def _boundary(axes: Axes, rows: pd.DataFrame, level: float) -> str:
    """The crossover as dots and fitted line, the regions named beside it; returns the words for the title."""
    try:
        table = transition(rows, level).dropna(subset=["alpha_star"])
    except UserError:
        return "no crossover in the plane"
    stars = summary(table, "width", "alpha_star", log=True)
    axes.plot(
        stars["width"], stars["mean"], "o", mfc="white", mec="black", ms=4, zorder=4, label=r"$\alpha^*$"
    )
    law, words = _law(table), ""
    span = np.geomspace(*axes.get_xlim(), 50)
    middle = float(np.exp(np.log(stars["mean"]).mean()))
    if law is not None:
        axes.plot(span, law(span), color="white", linewidth=3, zorder=2)
        axes.plot(
            span, law(span), color="black", linewidth=1.2, linestyle=(0, (6, 2)), zorder=2.5, label="fit"
        )
        words, middle = r"$\alpha^*$: " + spoken(law), float(law([np.sqrt(span[0] * span[-1])])[0])
    centre = float(np.sqrt(span[0] * span[-1]))
    low, high = axes.get_ylim()
    places = {"feature": (low * middle) ** 0.5, "lazy": (high * middle) ** 0.5}
    for word, height in places.items():
        text = axes.text(
            centre, height, word, ha="center", va="center", fontsize=11, fontweight="bold", color="white"
        )
        text.set_path_effects([withStroke(linewidth=2.5, foreground="black")])
    return words
