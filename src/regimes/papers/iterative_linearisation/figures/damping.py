"""A block of K steps beside a damped Gauss-Newton step: cosine and length, and the two filters on a spectrum."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from regimes import train
from regimes.core.check import checked
from regimes.core.estimate import array
from regimes.papers.iterative_linearisation.runs import DampingRun
from regimes.report.style import canvas, curve, legend, log_axes, marks, styled, subtitle
from regimes.report.table import ended, need, rows_of, summary

__all__ = ["filters", "newton_cosine"]

# The lengths of the blocks whose filters are drawn.
LENGTHS = (10, 100, 1000)


@styled()
@checked
def newton_cosine(frame: pd.DataFrame) -> Figure:
    """Cosine and length of a block's way beside a damped Gauss-Newton step, against K.

    Arguments:
        frame: rows of a store with blocks beside Gauss-Newton steps.
    """
    rows = need(rows_of(frame, DampingRun), ["newton_cosine", "newton_length"])
    figure, ((left, right),) = canvas(2, height=2.5)
    look = marks(["mean"])["mean"]
    panels = (
        (left, "newton_cosine", "cosine", "direction"),
        (right, "newton_length", "way of the block / step", "length"),
    )
    for axes, column, label, title in panels:
        curve(axes, summary(rows, "step", column), "step", look, "")
        log_axes(axes, "steps K of the block", label, log_y=False)
        subtitle(axes, title)
    left.axhline(0.9, color="0.4", linewidth=0.8, linestyle=(0, (5, 1.5)), zorder=1)
    left.set_ylim(0.88, 1.005)
    right.axhline(1.0, color="0.4", linewidth=0.8, zorder=1)
    return figure


@styled()
@checked
def filters(frame: pd.DataFrame) -> Figure:
    """Both filters against the eigenvalue of K / n, with the eigenvalues of one network at the foot.

    Arguments:
        frame: rows of a store with blocks beside Gauss-Newton steps.
    """
    rows = ended(rows_of(frame, DampingRun), "eigenvalues")
    values = array(rows["eigenvalues"].iloc[0])
    lr = float(array(rows["lr"])[0])
    values = values[values > 1e-8 * values.max()]
    grid = torch.logspace(
        np.log10(values.min()) - 0.3, np.log10(values.max()) + 0.2, 200, dtype=torch.float64
    )
    figure, ((axes,),) = canvas(1, height=3.0)
    look = marks(LENGTHS)
    for steps in LENGTHS:
        colour = look[steps]["color"]
        axes.plot(grid, train.descent_filter(grid, steps, lr), color=colour, linestyle="-")
        axes.plot(grid, train.damping_filter(grid, 1 / (lr * steps)), color=colour, linestyle=(0, (5, 1.5)))
        axes.annotate(f"K = {steps}", (5 / (lr * steps), 1.03), ha="center", va="bottom", color="0.2")
    axes.plot(values, np.full_like(values, -0.04), "|", color="0.3", markersize=5, markeredgewidth=0.5)
    log_axes(axes, "eigenvalue k of K / n", "share of the residual taken away", log_y=False)
    axes.set_ylim(-0.08, 1.15)
    kinds = [Line2D([], [], color="0.2"), Line2D([], [], color="0.2", linestyle=(0, (5, 1.5)))]
    ticks = Line2D([], [], color="0.3", marker="|", linestyle="none")
    legend(
        figure,
        [*kinds, ticks],
        [r"block: $1 - (1 - \eta k)^K$", r"Gauss-Newton: $k / (k + \lambda)$", "eigenvalues"],
    )
    return figure
