"""Which layers move, and when: a picture of the layers against time, from the rows of ``measure.Activity``."""

from __future__ import annotations

from collections.abc import Sequence, Sized

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.report.style import canvas, legend_of, styled, subtitle
from regimes.report.table import need

__all__ = ["layers_in_time"]

_SHADES = "cividis_r"  # light to dark by equal steps of lightness: dark moves, in colour and without
_MOST = 24  # names that are legible on one axis


@checked
@styled()
def layers_in_time(frame: pd.DataFrame, *, names: Sequence[str] = (), time: str = "step") -> Figure:
    """Two panels: the relative change of each layer against time, and where the squared movement lies at the end.

    The first layer is at the bottom. Left, the darker, the further the layer has moved relative to its start, on a
    logarithmic scale; white where it has not moved. Right, the layer's share of the squared movement beside its share
    of the parameters, at the last time. Several runs at one time are averaged; rows of runs that diverged are left
    out.

    Args:
        frame: rows with ``layer_change``, ``layer_moved``, ``layer_share`` and the column of the time.
        names: of the layers, such as ``list(measure.activity(...).layers)`` (default: their numbers).
        time: "step", or another column of positive numbers.

    Raises:
        UserError: if a column is missing, no row has a positive time and layers that moved, or runs differ in their
            layers.

    >>> rows = pd.DataFrame({"step": [1, 10], "layer_change": [[0.1, 0.2], [0.2, 0.9]],
    ...                      "layer_moved": [[0.5, 0.5], [0.1, 0.9]], "layer_share": [[0.8, 0.2]] * 2})
    >>> len(layers_in_time(rows, names=["0", "2"]).axes)
    3
    """
    lists = ["layer_change", "layer_moved", "layer_share"]
    times, tables = _tables(need(frame, [time, *lists]), time, lists)
    count = tables["layer_change"].shape[1]
    if isinstance(names, str) or len(names) not in (0, count):
        came = repr(names) if isinstance(names, str) else len(names)
        raise UserError(f"`names`: got {came}, expected {count}, one for each layer")
    figure, ((left, right),) = canvas(2, height=max(2.2, 0.16 * min(count, _MOST) + 1.0))
    _shades(figure, left, times, tables["layer_change"], time)
    _ends(right, tables["layer_moved"][-1], tables["layer_share"][-1])
    labels = list(names) or [str(i + 1) for i in range(count)]
    shown = range(0, count, -(-count // _MOST))
    for axes in (left, right):
        axes.set_ylim(-0.5, count - 0.5)
        axes.set_yticks(list(shown), [labels[i] for i in shown] if axes is left else [])
    left.set_ylabel("layer (the first at the bottom)")
    legend_of(figure, [right])
    return figure


def _tables(frame: pd.DataFrame, time: str, lists: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The times, and for each column the means over runs, (times, layers)."""
    values = {name: frame[name].tolist() for name in lists}
    lengths = {len(one) if isinstance(one, Sized) else 0 for column in values.values() for one in column}
    if len(lengths) != 1 or 0 in lengths:
        raise UserError(
            "`frame`: its lists differ in their number of layers, expected rows of one architecture"
        )
    try:
        when = np.array(frame[time].tolist(), dtype=float)
    except (TypeError, ValueError) as error:
        raise UserError(f"`time`: '{time}' holds something other than numbers ({error})") from error
    stacks = {name: np.array(column, dtype=float) for name, column in values.items()}
    usable = (when > 0) & np.isfinite(when) & ~np.isnan(np.hstack(list(stacks.values()))).any(1)
    if not usable.any():
        raise UserError(
            f"`frame`: no row has a positive '{time}' and layers that moved; look later than the start"
        )
    times = np.unique(when[usable])
    means = {
        name: np.stack([stack[usable & (when == each)].mean(0) for each in times])
        for name, stack in stacks.items()
    }
    return times, means


def _shades(figure: Figure, axes: Axes, times: np.ndarray, changes: np.ndarray, time: str) -> None:
    """The heat map; each look fills the room up to half way to the next, on the logarithmic scale."""
    inner = np.sqrt(times[1:] * times[:-1])
    ends = (
        (times[0] ** 2 / inner[0], times[-1] ** 2 / inner[-1]) if len(inner) else (times[0] / 2, times[0] * 2)
    )
    there = changes[np.isfinite(changes) & (changes > 0)]
    low, high = (there.min(), there.max()) if there.size else (0.1, 1.0)
    high = high if high > low else 2 * low
    norm = LogNorm(low, high)
    rows = np.arange(changes.shape[1] + 1) - 0.5
    edges = np.concatenate([ends[:1], inner, ends[1:]])
    # What started at 0 has moved by inf: the darkest shade, beyond the scale.
    shades = np.ma.masked_where(changes == 0, np.where(np.isinf(changes), 10 * high, changes)).T
    mesh = axes.pcolormesh(edges, rows, shades, norm=norm, cmap=_SHADES, rasterized=True)
    axes.set_xscale("log")
    axes.set_xlabel(time)
    subtitle(axes, r"change $\|w_l - w_l(0)\| / \|w_l(0)\|$")
    figure.colorbar(mesh, ax=axes, pad=0.02, extend="max" if np.isinf(changes).any() else "neither")


def _ends(axes: Axes, moved: np.ndarray, share: np.ndarray) -> None:
    """Two marks for each layer, joined by a line."""
    places = np.arange(len(moved))
    axes.hlines(places, np.minimum(moved, share), np.maximum(moved, share), color="0.6", linewidth=0.7)
    axes.plot(share, places, "o", color="black", markerfacecolor="white", label="of the parameters")
    axes.plot(moved, places, "o", color="black", label="of the squared movement")
    axes.set_xlim(left=0)
    axes.grid(True, axis="x")
    axes.set_xlabel("share of the layer")
    subtitle(axes, "at the end")
