"""Training of few layers: the error against what the backward passes cost, and policies at equal budgets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.estimate import array, mean
from regimes.papers.rich_regime.tables import BUDGETS, SPARSE, budgets, networks, policy_name
from regimes.report.activity import layers_in_time
from regimes.report.style import canvas, curve, legend_of, log_axes, marks, styled, subtitle
from regimes.report.table import ended, named, need, summary

__all__ = ["cnn_in_time", "equal_budgets", "mlp_in_time", "sparse_error"]

# Differences of accuracy under the axis, in percentage points: even steps to 1, then a logarithmic scale.
POINTS = (-100, -30, -10, -3, -1, -0.5, 0, 0.5, 1, 3)


@styled()
@checked
def sparse_error(frame: pd.DataFrame) -> Figure:
    """Test error against the counted cost of the backward passes so far, one panel a network, one curve a policy.

    All curves end after the same number of steps; one vertical line is equal cost. Cost is in epochs of the backward
    passes of all layers.

    Arguments:
        frame: rows of a store with ``test_accuracy`` and ``products`` at every look.
    """
    found = [(f"{dataset}, {network}", _looks(rows)) for dataset, network, rows in networks(frame, SPARSE)]
    if not found:
        raise UserError("`frame` has no run of a policy of layers: let the study finish some")
    figure, (panels,) = canvas(len(found), height=3.0)
    order = _ordered([name for _, rows in found for name in rows["name"]])
    look = marks(range(len(order)))
    for axes, (title, rows) in zip(panels, found, strict=True):
        for number, name in enumerate(order):
            _path(axes, rows.loc[rows["name"] == name], look[number], name)
        log_axes(axes, "backward cost (epochs of all layers)", "test error (%)")
        # whiskers of the first steps may reach below 0
        axes.set_ylim(0.7 * 100 * (1 - float(array(rows["test_accuracy"]).max())), 110)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        subtitle(axes, title)
    legend_of(figure, panels)
    return figure


def _looks(rows: pd.DataFrame) -> pd.DataFrame:
    """The looks of finished runs, each with the name of its policy."""
    rows = need(rows, ["test_accuracy", "products", "policy"])
    rows = rows.loc[rows["key"].isin(ended(rows, ["test_accuracy"])["key"]) & (array(rows["products"]) > 0)]
    return rows.assign(name=[policy_name(*each) for each in zip(rows["policy"], rows["p"], strict=True)])


def _ordered(names: list[str]) -> list[str]:
    """All layers first, the sampled policies last."""
    return sorted(set(names), key=lambda name: (name.startswith("sampled"), name))


def _path(axes: Axes, rows: pd.DataFrame, mark: Any, label: str) -> None:
    """The mean error at each look against the mean cost so far."""
    if rows.empty:
        return
    # what an epoch costs with all layers, from the counts of the same steps
    epoch = array(rows["full_products"]) * array(rows["n"]) / _seen(rows)
    cost, value = array(rows["products"]) / epoch, 100 * (1 - array(rows["test_accuracy"]))
    percent = rows.assign(cost=cost, value=value)
    table = summary(percent, "step", "value").assign(cost=summary(percent, "step", "cost")["mean"])
    curve(axes, table, "cost", mark, label)


def _seen(rows: pd.DataFrame) -> np.ndarray:
    """Samples so far: full batches, and one batch of what is left at the end of each epoch."""
    step, n = array(rows["step"]), array(rows["n"])
    batch = np.minimum(array(rows["batch_size"]), n)
    epoch = np.ceil(n / batch)
    return step // epoch * n + step % epoch * batch


@styled()
@checked
def equal_budgets(frame: pd.DataFrame) -> Figure:
    """Test accuracy of each policy, less that of all layers at the same budget, seed by seed.

    One panel for each data set and network. The budgets are those of :func:`regimes.papers.rich_regime.tables.budgets`.

    Arguments:
        frame: rows of a store with the policies of layers.
    """
    found = budgets(frame)
    keys = ["dataset", "network"]
    groups = [(named(keys, group), own) for group, own in found.groupby(keys, sort=False)]
    order = [name for name in _ordered(found["policy"].tolist()) if name != "all layers"]
    figure, (panels,) = canvas(len(groups), height=3.0)
    look = marks(range(len(order)))
    for axes, (label, own) in zip(panels, groups, strict=True):
        axes.axhline(0.0, color="0.4", linewidth=0.8, zorder=1)
        for number, name in enumerate(order):
            side = 0.16 * (number - (len(order) - 1) / 2)
            mark = {**look[number], "linestyle": "none", "markersize": 5.0}
            curve(axes, _beside_all(own, name, side), "place", mark, name)
        axes.set_xlim(-0.5, len(BUDGETS) - 0.5)
        axes.set_yscale("symlog", linthresh=1.0)
        axes.set_yticks(POINTS, [f"{each:g}" for each in POINTS])
        axes.set_ylim(POINTS[0], POINTS[-1])
        axes.set_xticks(range(len(BUDGETS)), [_wrapped(words) for words in BUDGETS.values()])
        axes.grid(True, axis="y")
        axes.set_ylabel("test accuracy, less that of\nall layers (points)")
        subtitle(axes, ", ".join(label.values()))
    legend_of(figure, panels)
    return figure


def _beside_all(rows: pd.DataFrame, name: str, side: float) -> pd.DataFrame:
    """The mean difference from all layers at each budget, with its interval."""
    lines = []
    for place, equal in enumerate(BUDGETS):
        own = rows.loc[rows["equal"] == equal].pivot(index="seed", columns="policy", values="accuracy")
        one = mean(100 * array((own[name] - own["all layers"]).dropna()))
        lines.append({"place": place + side, "mean": one.value, "low": one.low, "high": one.high})
    return pd.DataFrame(lines)


def _wrapped(words: str) -> str:
    """The words of a budget on three short lines."""
    return words.removeprefix("equal ").replace(" and ", "\nand ").replace(" cost", "\ncost")


@checked
def mlp_in_time(frame: pd.DataFrame) -> Figure:
    """How far each layer of the fully connected network moves under training of all layers.

    Arguments:
        frame: rows of a store with the policies of layers.
    """
    return _in_time(frame, "mlp")


@checked
def cnn_in_time(frame: pd.DataFrame) -> Figure:
    """How far each layer of the convolutional network moves under training of all layers.

    Arguments:
        frame: rows of a store with the policies of layers.
    """
    return _in_time(frame, "cnn")


def _in_time(frame: pd.DataFrame, kind: str) -> Figure:
    """The layers against the steps, the mean over seeds, on the first data set."""
    for _, network, rows in networks(frame, SPARSE):
        if network == kind:
            return layers_in_time(rows.loc[(rows["policy"] == "all") & (array(rows["step"]) > 0)])
    raise UserError(f"`frame` has no run of a policy of layers of the {kind}: let the study finish some")
