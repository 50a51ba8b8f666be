"""Accuracy against the number of feature updates, and against the step of the one linearisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.estimate import Estimate, array, mean
from regimes.papers.iterative_linearisation.tables import accuracies, ladder, tasks, with_updates
from regimes.report.style import canvas, curve, legend_of, log_axes, marks, shifts, styled, subtitle
from regimes.report.table import ended, summary

__all__ = ["accuracy_updates", "linearised_once"]

# The two ends of the ladder: how they are drawn, and what they are called.
ENDS = (("0.25", (0, ()), "K = 1"), ("0.25", (0, (5, 1.5)), "K = T"))


@styled()
@checked
def accuracy_updates(frame: pd.DataFrame) -> Figure:
    """Test accuracy of network and linear model against U, one panel a task.

    Arguments:
        frame: rows of a store with training in blocks.
    """
    found = [(name, rows) for name, _, rows in tasks(frame)]
    if not found:
        raise UserError("`frame` has no run of training in blocks: let the study finish some")
    figure, (panels,) = canvas(len(found), height=2.6)
    names = ["network", "linear"]
    look, side = marks(names), shifts(names)
    for axes, (name, rows) in zip(panels, found, strict=True):
        table = ladder(rows)
        whole = table["period"] > 1
        _ends(axes, accuracies(rows), accuracies(rows, updates=1))
        for model, label in (("linear", "linear model"), ("network", "network")):
            curve(axes, _estimates(table.loc[whole], model), "updates", look[model], label, side[model])
        log_axes(axes, "feature updates U = T / K", "test accuracy (%)", log_y=False)
        _ticks(axes, table.loc[whole, "updates"].tolist())
        subtitle(axes, name)
    legend_of(figure, panels)
    return figure


@styled()
@checked
def linearised_once(frame: pd.DataFrame) -> Figure:
    """Test accuracy at the end against the step of the one linearisation, one panel a task.

    Arguments:
        frame: rows of a store with runs that are linearised once.
    """
    found = [(name, rows) for name, _, rows in tasks(frame) if rows["once"].notna().to_numpy().any()]
    if not found:
        raise UserError("`frame` has no run that is linearised once: let the study finish some")
    figure, (panels,) = canvas(len(found), height=2.6)
    look = marks(["once"])["once"]
    for axes, (name, rows) in zip(panels, found, strict=True):
        done = with_updates(ended(rows, ["linear_accuracy", "once"]))
        table = summary(done.assign(value=100 * array(done["accuracy"])), "once", "value")
        _ends(axes, accuracies(rows), accuracies(rows, updates=1))
        curve(axes, table, "once", look, "linear model of step t")
        log_axes(axes, "step t of the linearisation", "test accuracy (%)", log_y=False)
        _ticks(axes, table["once"].tolist())
        subtitle(axes, f"{name}, T = {int(array(rows['steps'])[0])}")
    legend_of(figure, panels)
    return figure


def _ends(axes: Axes, network: pd.Series, linear: pd.Series) -> None:
    """K = 1 and K = T as lines, with their intervals."""
    for (colour, dashes, label), values in zip(ENDS, (network, linear), strict=True):
        one = mean(values)
        axes.axhline(one.value, color=colour, linestyle=dashes, linewidth=0.9, label=label, zorder=1)
        axes.axhspan(one.low, one.high, color=colour, alpha=0.13, linewidth=0, zorder=0)


def _estimates(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """A column of estimates as the curve takes them."""
    found: list[Estimate] = table[column].tolist()
    lines: list[dict[str, Any]] = [{"mean": one.value, "low": one.low, "high": one.high} for one in found]
    return pd.DataFrame(lines).assign(updates=np.asarray(table["updates"], dtype=float))


def _ticks(axes: Axes, places: list[float]) -> None:
    """The values themselves under the axis."""
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(min(places) / 1.6, max(places) * 1.6)
