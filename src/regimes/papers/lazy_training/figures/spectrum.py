"""The figure of the kernel spectrum: eigenvalues against their index, on images and on random pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from regimes.core.check import checked
from regimes.core.estimate import array, quantile
from regimes.papers.lazy_training.runs import SpectrumRun
from regimes.report.style import Mark, canvas, legend_of, log_axes, marks, styled, subtitle
from regimes.report.table import last, need, rows_of

__all__ = ["kernel_spectrum"]

# Indices shown: all of the first ones, then evenly in their logarithm.
_SHOWN = 300
_LAW: Mapping[str, Any] = {"color": "black", "linewidth": 0.9, "linestyle": (0, (1, 1))}
_KINDS = {"real": "images", "random": "random pixels"}
_PANEL = ["dataset", "model", "n", "width_factor", "gain", "dtype"]
_NAMES = {"conv": "four convolutions", "vgg": "VGG-11", "resnet": "ResNet-18"}


@styled()
@checked
def kernel_spectrum(frame: pd.DataFrame) -> Figure:
    r"""Eigenvalues of the tangent kernel over their sum against their index, one panel for each data set and network.

    Geometric means over seeds, with their interval as a band. Eigenvalues within rounding of 0 are left out. The
    line 1/i has the height that the curve of the images has in the decade after i = C, the number of outputs.

    Arguments:
        frame: rows of a store with ``eigenvalues``.
    """
    rows = rows_of(need(frame, "run"), SpectrumRun)
    ends = last(rows)
    rows = need(ends.loc[ends["status"] == "finished"], ["eigenvalues", "pixels", *_PANEL])
    parts = [part for _, part in rows.groupby(_PANEL, sort=True)]
    figure, ((*panels,),) = canvas(len(parts), height=2.8)
    for axes, part in zip(panels, parts, strict=True):
        dataset, model, n, factor, gain, dtype = part.iloc[0][_PANEL]
        _panel(axes, part, int(n), float(np.finfo(str(dtype)).eps))
        width = f" x {factor:g}" if factor != 1 else ""
        told = "".join([f", gain {gain:g}" if gain != 1 else "", f", {dtype}" if dtype != "float64" else ""])
        subtitle(axes, f"{dataset}, n = {n:g}", f"{_NAMES[model]}{width}{told}")
    legend_of(figure, panels)
    return figure


def _panel(axes: Axes, rows: pd.DataFrame, n: int, rounding: float) -> None:
    """The curves of one network, the line 1/i and the mark at i = C."""
    look = marks(range(3))
    outputs, level = 0, math.nan
    for number, (kind, label) in enumerate(_KINDS.items()):
        own = rows.loc[rows["pixels"] == kind]
        if own.empty:
            continue
        shares = np.stack([_shares(each, rounding) for each in own["eigenvalues"]])
        outputs = shares.shape[1] // n
        middle = _curve(axes, shares, {**look[number], "marker": ""}, label)
        level = _height(middle, outputs) if math.isnan(level) else level
    index = np.array([outputs + 1, n * outputs])
    axes.plot(index, level / index, label="1/i", zorder=4, **_LAW)
    axes.axvline(outputs, color="0.55", linewidth=0.8, zorder=1)
    # In the room below the curves, which fall to the right.
    axes.annotate(f"i = C = {outputs}", (outputs, 0.03), (-3, 0), xycoords=axes.get_xaxis_transform(),
                  textcoords="offset points", ha="right", va="bottom", fontsize=7.5, color="0.35")  # fmt: skip
    log_axes(axes, "index i", "eigenvalue over the sum of all")


def _height(middle: np.ndarray, outputs: int) -> float:
    """The geometric mean of i times the curve over C < i <= 10 C; nan where nothing is left of it."""
    index = np.arange(outputs + 1, min(10 * outputs, len(middle)) + 1)
    heights = np.log(index * middle[index - 1])
    heights = heights[np.isfinite(heights)]
    return math.exp(heights.mean()) if len(heights) else math.nan


def _shares(eigenvalues: object, rounding: float) -> np.ndarray:
    """Eigenvalues over their sum, the largest first; nan where rounding may be all there is."""
    values = np.sort(array(np.asarray(eigenvalues)))[::-1]
    noise = len(values) * rounding * values[0]
    return np.where(values > noise, values, np.nan) / values.sum()


def _curve(axes: Axes, shares: np.ndarray, mark: Mark, label: str) -> np.ndarray:
    """Geometric mean over seeds and its 95 % interval of Student's t; the mean of every index is returned."""
    logs = np.log(shares)
    seeds, count = logs.shape
    middle = logs.mean(0)
    shown = np.unique(np.geomspace(1, count, _SHOWN).round().astype(int))
    axes.plot(shown, np.exp(middle[shown - 1]), label=label, zorder=3, **mark)
    if seeds > 1:
        half = quantile(seeds - 1) * logs.std(0, ddof=1) / math.sqrt(seeds)
        low, high = (np.exp((middle + sign * half)[shown - 1]) for sign in (-1, 1))
        axes.fill_between(shown, low, high, color=mark["color"], alpha=0.25, linewidth=0, zorder=2)
    return np.exp(middle)
