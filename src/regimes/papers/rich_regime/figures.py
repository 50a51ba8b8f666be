"""Figures: how far parameters move, where the active ones lie, what they are worth, and training of few layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from regimes.core.check import checked
from regimes.core.estimate import array
from regimes.papers.rich_regime.runs import ABOVE, ActivityRun, SparseRun
from regimes.report.style import canvas, curve, legend_of, log_axes, marks, styled, subtitle
from regimes.report.table import ended, need, rows_of, summary

__all__ = ["FIGURES", "figures", "layer_enrichment", "parameter_changes", "reset_errors", "sparse_error"]

# The median of |z| for a normal z.
MEDIAN = 0.6745
# The least enrichment that is shown; a layer may have none of the active parameters.
SPARE = 0.01
# The columns of the reset test, in the order of the legend.
RESETS = {
    "reset_active": "active 1 % reset",
    "reset_layered": "as many of the same layers",
    "reset_random": "as many of all",
    "reset_least": "the least changed",
    "reset_none": "none reset",
}


@styled()
@checked
def parameter_changes(frame: pd.DataFrame) -> Figure:
    """The share of parameters that have moved at least so far, one panel for each law, one curve for each width.

    The dotted curve is that of normal changes with the median of the widest networks.

    Arguments:
        frame: rows of a store with ``changes``.
    """
    rows = ended(frame, ["changes", "width", "law"], ActivityRun)
    figure, panels = _panels(rows)
    look = marks(rows["width"])
    for axes, (_, own) in zip(panels, _by_law(rows), strict=True):
        for width, part in own.groupby("width"):
            far = _typical(part)
            there = far > 0
            mark = {**look[width], "marker": ""}
            axes.plot(far[there], 100 * np.array(ABOVE)[there], label=f"width {width}", **mark)
        _normal(axes, _typical(own.loc[own["width"] == own["width"].max()]))
        log_axes(axes, r"change $|\Delta w_i| / \sigma_\ell$", "parameters beyond (%)")
        axes.set_ylim(100 * ABOVE[-1], 130)
        axes.yaxis.set_major_formatter("{x:g}")
    legend_of(figure, panels)
    return figure


def _typical(rows: pd.DataFrame) -> np.ndarray:
    """The quantiles of a typical seed: medians over seeds."""
    return np.median(np.stack([array(each) for each in rows["changes"]]), axis=0)


def _normal(axes: Axes, far: np.ndarray) -> None:
    """P(|z| > x / s) of normal changes with the median of these quantiles."""
    from scipy.special import ndtri

    median = float(np.interp(np.log(2), -np.log(np.array(ABOVE)), far))
    above = np.array(ABOVE[1:])
    reach = median / MEDIAN * -ndtri(above / 2)
    axes.plot(
        reach,
        100 * above,
        color="black",
        linewidth=1.0,
        linestyle=(0, (1, 1)),
        label="normal changes, fit to the median",
    )


@styled()
@checked
def layer_enrichment(frame: pd.DataFrame) -> Figure:
    """The share of the active parameters that lie in a layer, over its share of all, against the width.

    Arguments:
        frame: rows of a store with ``layer_enrichment``.
    """
    rows = ended(frame, ["layer_enrichment", "width", "law"], ActivityRun)
    figure, panels = _panels(rows)
    layers = max(len(each) for each in rows["layer_enrichment"])
    look = marks(range(layers))
    for axes, (_, own) in zip(panels, _by_law(rows), strict=True):
        for place in range(layers):
            values = [float(each[place]) if place < len(each) else np.nan for each in own["layer_enrichment"]]
            table = summary(own.assign(value=values), "width", "value")
            name = {0: "bottom: layer 1", layers - 1: f"top: layer {layers}"}.get(place, f"layer {place + 1}")
            curve(axes, table.loc[table["mean"] > 0], "width", look[place], name)
        axes.axhline(1.0, color="0.4", linewidth=0.8, zorder=1)
        log_axes(axes, "width", "enrichment")
        _ticks(axes, own)
        axes.set_ylim(SPARE, 100)
        axes.yaxis.set_major_formatter("{x:g}")
    legend_of(figure, panels)
    return figure


@styled()
@checked
def reset_errors(frame: pd.DataFrame) -> Figure:
    """Test error with the active parameters back at their start, beside three controls, against the width.

    Arguments:
        frame: rows of a store with ``reset_active`` and its controls.
    """
    rows = ended(frame, ["width", "law", *RESETS], ActivityRun)
    figure, panels = _panels(rows)
    look = marks(range(len(RESETS)))
    for axes, (_, own) in zip(panels, _by_law(rows), strict=True):
        for number, (column, label) in enumerate(RESETS.items()):
            table = summary(own.assign(value=100 * own[column]), "width", "value")
            curve(axes, table, "width", look[number], label)
        log_axes(axes, "width", "test error (%)", log_y=False)
        _ticks(axes, own)
    legend_of(figure, panels)
    return figure


@styled()
@checked
def sparse_error(frame: pd.DataFrame) -> Figure:
    """Test error against the counted cost of the backward passes so far, one curve for each policy of layers.

    All curves end after the same number of steps; one vertical line is equal cost. Cost is in epochs of the backward
    passes of all layers.

    Arguments:
        frame: rows of a store with ``test_accuracy`` and ``products`` at every look.
    """
    rows = need(rows_of(need(frame, "run"), SparseRun), ["test_accuracy", "products", "policy"])
    done = ended(frame, ["test_accuracy"], SparseRun)["key"]
    rows = rows.loc[rows["key"].isin(done) & (rows["products"] > 0)]
    names = sorted(set(rows["dataset"]))
    figure, (panels,) = canvas(len(names), height=3.0)
    named = rows.assign(name=[_named(policy, p) for policy, p in zip(rows["policy"], rows["p"], strict=True)])
    order = sorted(set(named["name"]), key=lambda name: (name.startswith("sampled"), name))
    look = marks(range(len(order)))
    for axes, dataset in zip(panels, names, strict=True):
        own = named.loc[named["dataset"] == dataset]
        for number, name in enumerate(order):
            _path(axes, own.loc[own["name"] == name], look[number], name)
        log_axes(axes, "backward cost (epochs of all layers)", "test error (%)")
        subtitle(axes, dataset)
    legend_of(figure, panels)
    return figure


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


def _named(policy: str, p: float) -> str:
    """A policy in the legend."""
    names = {"all": "all layers", "top": "top only", "ends": "bottom and top"}
    return names.get(policy, f"sampled, p = {p:g}")


def _panels(rows: pd.DataFrame) -> tuple[Figure, list[Axes]]:
    """One panel for each data set and law."""
    groups = [name for name, _ in _by_law(rows)]
    figure, (panels,) = canvas(len(groups), height=2.6)
    for axes, name in zip(panels, groups, strict=True):
        subtitle(axes, name)
    return figure, panels


def _by_law(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows of each data set and law, the standard law first."""
    found = []
    for name in sorted(set(rows["dataset"])):
        own = rows.loc[rows["dataset"] == name]
        for law in sorted(set(own["law"]), key=lambda law: (law != "standard", law)):
            found.append((f"{name}, {law} law", own.loc[own["law"] == law]))
    return found


def _ticks(axes: Axes, rows: pd.DataFrame) -> None:
    """The widths themselves under the axis."""
    there = sorted(set(rows["width"]))
    axes.set_xticks(there, [str(width) for width in there])


FIGURES = (
    (
        "parameter_changes",
        "How far parameters move",
        parameter_changes,
        "Share of the parameters that have moved at least so far by the end of training, relative to the scale of "
        "their layer at the start; medians over seeds. Dotted: normal changes with the same median.",
    ),
    (
        "layer_enrichment",
        "Where the active parameters lie",
        layer_enrichment,
        "The layer's share of the most active 1 % of the parameters over its share of all parameters: above 1, it has "
        "more of them than its size says. Where a layer has none of them, no point is drawn.",
    ),
    (
        "reset_errors",
        "What the active parameters are worth",
        reset_errors,
        "Test error with the most active 1 % of the parameters back at their start, and with as many others.",
    ),
    (
        "sparse_error",
        "Training few layers",
        sparse_error,
        "Test error against the cost of the backward passes so far, counted in products; sampled: all layers move with "
        "probability p, else the top one alone. Every curve ends after the "
        "same number of steps: ends compare at equal steps, heights above one place at equal cost of backward passes. "
        "The cost of forward passes is the same for all steps and not in it.",
    ),
)


@checked
def figures(frame: pd.DataFrame) -> list[Any]:
    """The figures of the rows there are."""
    there = [
        entry
        for entry in FIGURES
        if len(rows_of(frame, SparseRun if entry[0] == "sparse_error" else ActivityRun))
    ]
    return there if len(frame) else list(FIGURES)
