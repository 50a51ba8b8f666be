"""Rows of networks and of functions trained from their frozen kernels: one table a network, split by regime."""

from __future__ import annotations

import numpy as np
import pandas as pd

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.estimate import array
from regimes.papers.feature_lazy.runs import FrozenRun
from regimes.report.table import by_seed, last, need, rows_of

__all__ = ["NETWORK", "networks", "percent_by_seed", "regimes"]

# sqrt(h) alpha up to which a network counts as one of the feature regime, and from which as one of the lazy
FEATURE_MOST, LAZY_LEAST = 1.0, 1e3
NETWORK = ("dataset", "model", "depth", "width", "n", "pca", "size", "kernel", "activation", "tolerance")
"""What must not be mixed."""


@checked
def networks(frame: pd.DataFrame, model: str | None = None) -> list[tuple[str, pd.DataFrame]]:
    r"""The last rows of the finished runs, with :math:`x = \sqrt h\,\alpha`, one table for each network and data set.

    Arguments:
        frame: rows of a store.
        model: "fc" or "cnn"; both if left out.

    Returns:
        (label, rows), fully connected networks first; the label as in ``"mnist, fc, h = 64, n = 300"``.

    Raises:
        UserError: if there is none.
    """
    rows = rows_of(need(frame, "run"), FrozenRun)
    rows = last(rows) if len(rows) else rows
    if len(rows):
        rows = rows.loc[(rows["status"] == "finished") & ((rows["model"] == model) | (model is None))]
    if rows.empty:
        raise UserError(
            f"`frame` has no finished {model or 'network'} with frozen kernels: let the study finish"
        )
    x = np.sqrt(array(rows["width"])) * array(rows["alpha"])
    there = [name for name in NETWORK if name in rows.columns]
    parts = []
    for _, part in rows.assign(x=x).groupby(there, sort=True, dropna=False):
        first = part.iloc[0]
        label = f"{first['dataset']}, {first['model']}, h = {first['width']:g}, n = {first['n']:g}"
        parts.append((label, part))
    return sorted(parts, key=lambda entry: (entry[1]["dataset"].iloc[0], entry[1]["model"].iloc[0] != "fc"))


@checked
def regimes(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of one network in the feature and in the lazy regime.

    Raises:
        UserError: if one is missing, or its kernels did not move as they do there.
    """
    rows = need(rows, ["x", "dK"], "rows")
    sides = {"feature": rows.loc[rows["x"] <= FEATURE_MOST], "lazy": rows.loc[rows["x"] >= LAZY_LEAST]}
    for name, part in sides.items():
        if part.empty:
            raise UserError(f"`frame` has no network in the {name} regime: let the study finish")
        drift = float(array(part["dK"]).mean())
        if (drift > 1) != (name == "feature"):
            raise UserError(
                f"`frame`: the kernels of the {name} regime moved by {drift:.2g} of themselves, expected "
                f"{'more' if name == 'feature' else 'less'} than 1; train at another sqrt(h) alpha"
            )
    return sides


@checked
def percent_by_seed(rows: pd.DataFrame, column: str) -> pd.Series:
    """A column by seed, in per cent; what is missing is left out."""
    return 100 * by_seed(rows, column, {}).sort_index()
