"""What happens inside the blocks: both losses, and how far the kernel moves."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.estimate import array
from regimes.papers.iterative_linearisation.claims import FEW
from regimes.papers.iterative_linearisation.tables import tasks, with_updates
from regimes.report.style import canvas, curve, legend_of, marks, styled, subtitle
from regimes.report.table import summary

__all__ = ["block_losses", "kernel_per_block"]


@styled()
@checked
def block_losses(frame: pd.DataFrame) -> Figure:
    """Training loss of network and linear model against the step, for U = 10, one panel a task.

    Arguments:
        frame: rows of a store with training in blocks.
    """
    found = _ten_blocks(frame)
    figure, (panels,) = canvas(len(found), height=2.6)
    look = marks(["network_loss", "linear_loss"])
    for axes, (name, rows) in zip(panels, found, strict=True):
        own = rows.loc[rows["seed"] == rows["seed"].min()].sort_values("step")
        _anchors(axes, own)
        for column, label in (("linear_loss", "linear model"), ("network_loss", "network")):
            axes.plot(array(own["step"]), array(own[column]), label=label, **look[column])
        axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel(f"training loss ({own['loss'].iloc[0]})")
        axes.grid(True, axis="y")
        subtitle(axes, name)
    legend_of(figure, panels)
    return figure


def _anchors(axes: Axes, rows: pd.DataFrame) -> None:
    """A line at each anchor but the first."""
    period, steps = int(array(rows["period"])[0]), int(array(rows["steps"])[0])
    for number, step in enumerate(range(period, steps, period)):
        axes.axvline(step, color="0.8", linewidth=0.7, zorder=0, label="anchor" if not number else None)


@styled()
@checked
def kernel_per_block(frame: pd.DataFrame) -> Figure:
    """How far each of ten blocks moves the kernel, mean over seeds, one curve a task.

    Arguments:
        frame: rows of a store with training in blocks.
    """
    found = _ten_blocks(frame)
    figure, ((axes,),) = canvas(1, height=2.8)
    look = marks(range(len(found)))
    for number, (name, rows) in enumerate(found):
        moved = rows.dropna(subset=["kernel_moved"])
        block = np.ceil(array(moved["step"]) / array(moved["period"]))
        table = summary(moved.assign(block=block), "block", "kernel_moved")
        curve(axes, table, "block", look[number], name)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(True)
    axes.set_xlabel("block")
    axes.set_ylabel(r"kernel movement $\|K - K'\| / \|K'\|$")
    legend_of(figure, [axes])
    return figure


def _ten_blocks(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The looks of the runs with U = 10, by task."""
    found = []
    for name, _, rows in tasks(frame):
        ten = with_updates(rows).loc[lambda each: each["updates"] == FEW]
        if len(ten):
            found.append((name, ten))
    if not found:
        raise UserError(f"`frame` has no run with U = {FEW}: let the study finish some")
    return found
