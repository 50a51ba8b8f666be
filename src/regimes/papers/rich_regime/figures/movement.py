"""How far parameters move, where the active ones lie, and what they are worth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.estimate import array
from regimes.papers.rich_regime.runs import ABOVE
from regimes.papers.rich_regime.tables import ACTIVITY, networks
from regimes.report.style import canvas, curve, legend, legend_of, log_axes, marks, styled, subtitle
from regimes.report.table import ended, summary

__all__ = ["layer_enrichment", "parameter_changes", "reset_errors"]

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
    """The share of parameters that have moved at least so far, one panel for each network and law, one curve a width.

    The dotted curve is that of normal changes with the median of the widest networks.

    Arguments:
        frame: rows of a store with ``changes``.
    """
    figure, panels = _panels(frame, ["changes"])
    look = marks(width for _, own in panels for width in own["width"])
    for axes, own in panels:
        for width, part in own.groupby("width"):
            far = _typical(part)
            # the least change of all says nothing of the others
            there = (far > 0) & (np.array(ABOVE) < 1)
            mark = {**look[width], "marker": ""}
            axes.plot(far[there], 100 * np.array(ABOVE)[there], label=f"width {width}", **mark)
        _normal(axes, _typical(own.loc[own["width"] == own["width"].max()]))
        log_axes(axes, r"change $|\Delta w_i| / \sigma_\ell$", "parameters beyond (%)")
        axes.set_ylim(100 * ABOVE[-1], 130)
        axes.yaxis.set_major_formatter("{x:g}")
    legend_of(figure, [axes for axes, _ in panels])
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
    figure, panels = _panels(frame, ["layer_enrichment"])
    most = max(len(each) for _, own in panels for each in own["layer_enrichment"])
    look = marks(range(most))
    for axes, own in panels:
        layers = max(len(each) for each in own["layer_enrichment"])
        for place in range(layers):
            values = [float(each[place]) for each in own["layer_enrichment"]]
            table = summary(own.assign(value=values), "width", "value")
            name = {0: "bottom: layer 1", layers - 1: "top: the last layer"}.get(place, f"layer {place + 1}")
            mark = look[most - 1 if place == layers - 1 else place]
            curve(axes, table.loc[table["mean"] > 0], "width", mark, name)
        axes.axhline(1.0, color="0.4", linewidth=0.8, zorder=1)
        axes.set_ylim(SPARE, 100)
        log_axes(axes, "width", "enrichment")
        _ticks(axes, own)
        axes.yaxis.set_major_formatter("{x:g}")
    pairs = [pair for axes, _ in panels for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    pairs.sort(key=lambda pair: (pair[1].startswith("top"), pair[1]))
    legend(figure, [handle for handle, _ in pairs], [label for _, label in pairs])
    return figure


@styled()
@checked
def reset_errors(frame: pd.DataFrame) -> Figure:
    """Test error with the active parameters back at their start, beside three controls, against the width.

    Arguments:
        frame: rows of a store with ``reset_active`` and its controls.
    """
    figure, panels = _panels(frame, [*RESETS])
    look = marks(range(len(RESETS)))
    for axes, own in panels:
        for number, (column, label) in enumerate(RESETS.items()):
            table = summary(own.assign(value=100 * own[column]), "width", "value")
            curve(axes, table, "width", look[number], label)
        log_axes(axes, "width", "test error (%)", log_y=False)
        _ticks(axes, own)
    legend_of(figure, [axes for axes, _ in panels])
    return figure


def _panels(frame: pd.DataFrame, columns: Sequence[str]) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:
    """One panel for each data set, network and law, the standard law first; with its rows that have these columns."""
    found: list[tuple[str, pd.DataFrame]] = []
    for dataset, network, rows in networks(frame, ACTIVITY):
        done = ended(rows, ["width", "law", *columns])
        for law in sorted(set(done["law"]), key=lambda law: (law != "standard", law)):
            found.append((f"{dataset}, {network}, {law} law", done.loc[done["law"] == law]))
    if not found:
        raise UserError("`frame` has no finished run whose parameters are looked at: let the study finish")
    figure, (panels,) = canvas(len(found), height=2.6)
    for axes, (name, _) in zip(panels, found, strict=True):
        subtitle(axes, name)
    return figure, [(axes, rows) for axes, (_, rows) in zip(panels, found, strict=True)]


def _ticks(axes: Axes, rows: pd.DataFrame) -> None:
    """The widths themselves under the axis."""
    there = sorted(set(rows["width"]))
    axes.set_xticks(there, [str(width) for width in there])
