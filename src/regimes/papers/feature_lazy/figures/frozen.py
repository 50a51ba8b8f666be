"""Figures of networks and of functions from their frozen kernels: which regime errs less, and which kernel knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from regimes.core.check import checked
from regimes.core.estimate import array, mean
from regimes.papers.feature_lazy.figures.width import REGIMES, power
from regimes.papers.feature_lazy.tables.frozen import networks, percent_by_seed, regimes
from regimes.report.ensemble import ensemble
from regimes.report.style import Mark, canvas, curve, legend_of, styled, subtitle
from regimes.report.table import need

__all__ = ["frozen_error", "regime_error"]

ERROR = "test error (%)"
LINE: Mark = {"color": "0.7", "linewidth": 0.6, "zorder": 1}
ONE: Mark = {"color": "black", "marker": "o", "linestyle": "none"}
ALL: Mark = {"color": "0.35", "marker": "D", "linestyle": "none", "markerfacecolor": "white",
             "markeredgecolor": "0.35", "markeredgewidth": 1.0}  # fmt: skip


@styled()
@checked
def regime_error(frame: pd.DataFrame) -> Figure:
    """Test error of convolutional networks in the feature and in the lazy regime: one network, and the average.

    A faint line joins the two networks of one start.

    Arguments:
        frame: rows of a store with ``test_error``, ``test_outputs`` and ``test_targets``.
    """
    parts = networks(frame, "cnn")
    figure, ((*row,),) = canvas(len(parts), height=2.7)
    for axes, (name, rows) in zip(row, parts, strict=True):
        sides = regimes(rows)
        _starts(axes, [percent_by_seed(part, "test_error") for part in sides.values()])
        _series(axes, [_mean(part, "test_error") for part in sides.values()], ONE, "one network, mean", -0.06)
        averages = [_average(part) for part in sides.values()]
        if all(averages):
            _series(axes, [found for found in averages if found], ALL, "average of all", 0.06)
        places = [
            rf"$\sqrt{{h}}\,\alpha$ = {power(float(array(part['x']).mean()))}" for part in sides.values()
        ]
        words = [f"{regime}\n{place}" for regime, place in zip(sides, places, strict=True)]
        _categories(axes, words, "regime")
        subtitle(axes, name)
    legend_of(figure, row)
    return figure


@styled()
@checked
def frozen_error(frame: pd.DataFrame) -> Figure:
    """Test error of a network against that of the functions trained from its kernels, in both regimes.

    A faint line joins what belongs to one start.

    Arguments:
        frame: rows of a store with ``test_error``, ``initial_error`` and ``final_error``.
    """
    columns = {
        "initial_error": "kernel at\nthe start",
        "test_error": "network",
        "final_error": "kernel at\nthe end",
    }
    parts = networks(frame)
    figure, ((*row,),) = canvas(len(parts), height=2.7)
    for axes, (name, rows) in zip(row, parts, strict=True):
        for (regime, part), shift in zip(regimes(rows).items(), (-0.06, 0.06), strict=True):
            mark = REGIMES[regime]
            _starts(axes, [percent_by_seed(part, column) for column in columns], shift, mark["linestyle"])
            found = [_mean(part, column) for column in columns]
            _series(axes, found, {**mark, "linewidth": 0.9}, f"{regime} regime", shift)
        _categories(axes, list(columns.values()), "what the gradient flow trains")
        subtitle(axes, name)
    legend_of(figure, row)
    return figure


def _mean(rows: pd.DataFrame, column: str) -> dict[str, float]:
    """The mean over seeds with its interval, in per cent."""
    one = mean(percent_by_seed(rows, column))
    return {"mean": one.value, "low": one.low, "high": one.high}


def _average(rows: pd.DataFrame) -> dict[str, float] | None:
    """The error of the average of all members with its interval, in per cent; None of fewer than two."""
    found = need(rows, ["test_outputs", "test_targets"])
    if len(found) < 2:
        return None
    table = ensemble(found.assign(all=0), "all").iloc[0]
    names = {"mean": "ensemble", "low": "ensemble_low", "high": "ensemble_high"}
    return {name: 100 * float(table[column]) for name, column in names.items()}


def _starts(axes: Axes, columns: Sequence[pd.Series], shift: float = 0.0, style: Any = "-") -> None:
    """A faint line for each seed, through its values."""
    table = pd.concat(columns, axis=1, join="inner").to_numpy()
    for line in table:
        axes.plot(np.arange(len(line)) + shift, line, linestyle=style, **LINE)


def _series(axes: Axes, found: Sequence[dict[str, float]], mark: Mark, label: str, shift: float) -> None:
    """Means with their intervals, one for each category."""
    table = pd.DataFrame(found).assign(place=np.arange(len(found)) + shift)
    curve(axes, table, "place", {"markersize": 5.0, **mark}, label)


def _categories(axes: Axes, names: Sequence[str], label: str) -> None:
    """Names along the axis."""
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    # an interval may reach below zero, an error cannot
    axes.set_ylim(bottom=max(axes.get_ylim()[0], 0.0))
    axes.grid(True, axis="y")
    axes.set_xlabel(label)
    axes.set_ylabel(ERROR)
