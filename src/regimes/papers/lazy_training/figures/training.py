"""Figures of lazy training: neurons in the plane, test losses of students, rates in alpha, networks on images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.estimate import array
from regimes.papers.lazy_training.runs import ImageRun, RateRun, StudentRun
from regimes.report.fit import power_law
from regimes.report.style import canvas, curve, legend_of, log_axes, marks, styled, subtitle
from regimes.report.table import ended, need, rows_of, summary

__all__ = ["accuracy_stability", "lazy_rates", "neuron_paths", "student_loss", "student_width"]

# The last five octaves of 1 to 1024.
WINDOW = (32.0, 1024.0)
FIT: Mapping[str, Any] = {"linestyle": (0, (1, 1)), "color": "black", "linewidth": 1.0}


@styled()
@checked
def neuron_paths(frame: pd.DataFrame) -> Figure:
    r"""Paths of :math:`|a_j| b_j` in the plane, one panel for each size of the start, the largest at the right.

    Arguments:
        frame: rows of a store with ``neurons`` of students with two inputs, at every look.
    """
    rows = need(rows_of(need(frame, "run"), StudentRun), ["neurons", "tau", "seed"])
    rows = rows.loc[rows["inputs"] == 2]
    if rows.empty:
        raise UserError("`frame` has no neurons in the plane: expected students with two inputs")
    rows = rows.loc[rows["seed"] == rows["seed"].min()]
    taus = sorted(set(rows["tau"]))
    figure, ((*row,),) = canvas(len(taus), height=2.8)
    for axes, tau in zip(row, taus, strict=True):
        _paths(axes, rows.loc[rows["tau"] == tau].sort_values("step"))
        subtitle(axes, f"tau = {tau:g}")
    legend_of(figure, row)
    return figure


def _paths(axes: Axes, looks: pd.DataFrame) -> None:
    """The paths of the neurons of one student, from the start to the end, and the directions of the teacher."""
    paths = np.stack([array(each).reshape(-1, 2) for each in looks["neurons"]])
    axes.plot(paths[:, :, 0], paths[:, :, 1], color="0.45", linewidth=0.7, zorder=2)
    start, end = paths[0], paths[-1]
    axes.plot(
        *start.T,
        linestyle="",
        marker="o",
        markersize=5.5,
        markerfacecolor="none",
        color="0.3",
        label="start",
        zorder=3,
    )
    axes.plot(*end.T, linestyle="", marker="o", markersize=2.8, color="black", label="end", zorder=4)
    reach = 1.1 * float(np.abs(paths).max())
    for number, direction in enumerate(array(looks["teacher"].dropna().iloc[-1]).reshape(-1, 2)):
        ends = 1.5 * reach * direction / np.linalg.norm(direction)
        # a neuron with a negative outer weight points along b as well
        sides = np.stack([-ends, ends])
        axes.plot(*sides.T, color="C1", linewidth=0.9, linestyle=(0, (4, 2)), zorder=1,
                  label="teacher" if number == 0 else None)  # fmt: skip
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    axes.set_aspect("equal")
    axes.set_xlabel(r"$|a_j|\,b_{j,1}$")
    axes.set_ylabel(r"$|a_j|\,b_{j,2}$")


@styled()
@checked
def student_loss(frame: pd.DataFrame) -> Figure:
    r"""Test loss of symmetric students against :math:`\tau`: end of training, best moment, linearised model.

    Arguments:
        frame: rows of a store with ``test_loss``, ``best_loss`` and ``linear_loss``.
    """
    rows = ended(frame, ["test_loss", "tau"], StudentRun)
    rows = rows.loc[rows["symmetric"].astype(bool) & ~rows["traced"].astype(bool)]
    return _curves(
        rows,
        "tau",
        {
            "test_loss": "end of training",
            "best_loss": "best over training",
            "linear_loss": "linearised model",
        },
        (r"$\tau$", "test loss"),
    )


@styled()
@checked
def student_width(frame: pd.DataFrame) -> Figure:
    """Test loss of students against their width m, one curve for each scaling of the sum over neurons.

    Arguments:
        frame: rows of a store with ``test_loss``.
    """
    rows = ended(frame, ["test_loss", "width", "scaling"], StudentRun)
    rows = rows.loc[~rows["symmetric"].astype(bool)]
    if rows.empty:
        raise UserError("`frame` has no student with a plain start: let the study finish some runs")
    names = sorted(set(rows["scaling"]), reverse=True)
    wide = rows.assign(**{name: rows["test_loss"].where(rows["scaling"] == name) for name in names})
    return _curves(wide, "width", {name: name for name in names}, ("width m", "test loss"))


@styled()
@checked
def lazy_rates(frame: pd.DataFrame, window: tuple[float, float] = WINDOW) -> Figure:
    r"""The three suprema of theorem 2.2 against :math:`\alpha`, each with its fitted power.

    Arguments:
        frame: rows of a store with ``moved``, ``apart`` and ``missed``.
        window: of the fits.
    """
    told = {
        "moved": r"$\|w-w_0\|$",
        "apart": r"$\|w-w_\mathrm{lin}\|$",
        "missed": r"$|F-F_\mathrm{lin}|$",
    }
    rows = ended(frame, ["alpha", *told], RateRun)
    figure, ((axes,),) = canvas(1, height=3.0)
    look = marks(range(len(told)))
    for number, (column, label) in enumerate(told.items()):
        law = power_law(rows["alpha"], rows[column], window, groups=rows["seed"])
        exponent = f"{law.exponent:.3f}".replace("-", "\N{MINUS SIGN}")
        curve(axes, summary(rows, "alpha", column, log=True), "alpha", look[number], f"{label}: {exponent}")
        ends = np.array(window)
        axes.plot(ends, law(ends), zorder=4, label="fit", **FIT)
    log_axes(axes, r"$\alpha$", "largest over time")
    legend_of(figure, [axes])
    return figure


@styled()
@checked
def accuracy_stability(frame: pd.DataFrame) -> Figure:
    r"""Accuracy (above) and activation stability (below) against :math:`\alpha`, one panel for each data set.

    Arguments:
        frame: rows of a store with ``train_accuracy``, ``test_accuracy`` and ``stability``.
    """
    rows = ended(frame, ["alpha", "train_accuracy", "test_accuracy", "stability"], ImageRun)
    rows = rows.loc[rows["width_factor"] == 1]
    names = sorted(set(rows["dataset"]))
    if not names:
        raise UserError("`frame` has no network of the plain width: let the study finish some runs")
    figure, grid = canvas(len(names), 2, height=2.1)
    shown = (
        {"train_accuracy": "training accuracy", "test_accuracy": "test accuracy"},
        {"stability": "stability"},
    )
    for line, columns, label in zip(grid, shown, ("accuracy (%)", "stability (%)"), strict=True):
        for axes, name in zip(line, names, strict=True):
            _percents(axes, rows.loc[rows["dataset"] == name], columns)
            log_axes(axes, r"$\alpha$" if line is grid[-1] else "", label, log_y=False)
            # An interval may reach above all, a share cannot; a sliver keeps markers at all whole.
            axes.set_ylim(top=min(axes.get_ylim()[1], 102))
            subtitle(axes, name if line is grid[0] else "")
    legend_of(figure, [axes for line in grid for axes in line])
    return figure


def _percents(axes: Axes, rows: pd.DataFrame, columns: Mapping[str, str]) -> None:
    """Shares in per cent against alpha, the mean over seeds with its interval."""
    look = marks(range(3))
    for number, (column, label) in enumerate(columns.items()):
        mark = look[2] if column == "stability" else look[number]
        curve(
            axes, summary(rows.assign(**{column: 100 * rows[column]}), "alpha", column), "alpha", mark, label
        )


def _curves(rows: pd.DataFrame, x: str, columns: Mapping[str, str], labels: tuple[str, str]) -> Figure:
    """Geometric means over seeds against x in the log-log plane, one curve for each column."""
    there = {column: label for column, label in columns.items() if rows[column].notna().to_numpy().any()}
    if not there:
        raise UserError("`frame` has no finished student: let the study finish some runs")
    figure, ((axes,),) = canvas(1, height=3.0)
    look = marks(range(len(columns)))
    for number, (column, label) in enumerate(there.items()):
        curve(axes, summary(rows, x, column, log=True), x, look[number], label)
    log_axes(axes, *labels)
    legend_of(figure, [axes])
    return figure
