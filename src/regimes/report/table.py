"""Rows to tidy tables: one row per finished run, derived columns, means, panels, the crossover."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.estimate import Values, array, mean
from regimes.report.fit import crossing

__all__ = [
    "ends",
    "ensembles",
    "filled",
    "last",
    "named",
    "need",
    "panels",
    "summary",
    "tidy",
    "transition",
]

PANEL = ("dataset", "task", "arch", "depth", "n")


@checked
def need(frame: pd.DataFrame, columns: str | Sequence[str], name: str = "frame") -> pd.DataFrame:
    """The rows that have a value in each of ``columns`` (one name, or several); ``name`` is that of the rows in errors.

    Raises:
        UserError: if a column is missing or no row is left.
    """
    columns = [columns] if isinstance(columns, str) else list(columns)
    if missing := [each for each in columns if each not in frame.columns]:
        raise UserError(
            f"`{name}` ({len(frame)} rows) has no column {', '.join(map(repr, missing))}: "
            "expected the rows of a study that measures it"
        )
    found = frame.dropna(subset=columns)
    if found.empty:
        raise UserError(
            f"`{name}` has {len(frame)} rows, none with {', '.join(columns)}: let the study finish some runs"
        )
    return found


@checked
def tidy(frame: pd.DataFrame, rows: Literal["finished", "last", "looks"] = "finished") -> pd.DataFrame:
    r"""One row per run, with the derived columns of the feature-lazy plane.

    ========== ================================================================
    column     what it is
    ========== ================================================================
    x          :math:`\sqrt h\,\alpha` to 6 digits; nan under another law than NTK
    sqrt_h_dW  :math:`\sqrt h\,\|w - w_0\| / \|w_0\|`
    t1_over_x  :math:`t_1 / (\sqrt h\,\alpha)`
    network    label of width and seed: what may err together along a curve
    ========== ================================================================

    Geiger, Spigler, Jacot and Wyart, *Disentangling feature and lazy training in deep neural networks*, 2020,
    https://arxiv.org/abs/1906.08034, compare only runs that came to their end: so does ``rows="finished"``.

    Arguments:
        frame: the rows of a store, several per run (``key``): the looks, and a last one whose ``status`` is
            not "running".
        rows: "finished" (last rows of the runs that met their goal), "last" (last rows, diverged and stopped
            runs too) or "looks" (all rows).

    Raises:
        UserError: if no row is left.
    """
    need(frame, ["key", "status"])
    chosen = frame
    if rows != "looks":
        chosen = last(frame)
        if rows == "finished":
            chosen = chosen.loc[chosen["status"] == "finished"]
    if chosen.empty:
        states = ", ".join(f"{count} {name}" for name, count in frame["status"].value_counts().items())
        raise UserError(f"`frame` has no {rows} run (rows: {states}): let the study finish some runs")
    return _derived(chosen.reset_index(drop=True))


@checked
def last(frame: pd.DataFrame) -> pd.DataFrame:
    """The last row of each run that has come to some end: finished, diverged or stopped."""
    frame = need(frame, ["status", "key"]) if len(frame) else frame.assign(status=[], key=[])
    return frame.loc[frame["status"] != "running"].drop_duplicates(subset=["key"], keep="last")


def keys_of(by: Sequence[str] | str) -> list[str]:
    """The columns that make a group, at least one."""
    keys = [by] if isinstance(by, str) else list(by)
    if not keys:
        raise UserError("`by`: names no column, expected at least one that makes a group")
    return keys


@checked
def named(keys: Sequence[str], values: Any) -> dict[str, Any]:
    """The label of a group as column -> value."""
    if not isinstance(values, tuple | list) or len(keys) != len(values):
        raise UserError(
            f"`values`: got {values!r}, expected one for each of {', '.join(keys) or 'no columns'}"
        )
    return dict(zip(keys, values, strict=True))


def _derived(frame: pd.DataFrame) -> pd.DataFrame:
    """The same rows with the derived columns whose ingredients are there."""
    new: dict[str, Any] = {}
    if {"width", "seed"} <= set(frame.columns):
        new["network"] = [f"{h} / {seed}" for h, seed in zip(frame["width"], frame["seed"], strict=True)]
    if {"width", "alpha"} <= set(frame.columns):
        root = np.sqrt(array(frame["width"]))
        x = np.array([float(f"{value:.5e}") for value in root * array(frame["alpha"])])
        laws = frame["law"].astype(str).str.lower() if "law" in frame.columns else "ntk"
        new["x"] = np.where(laws == "ntk", x, np.nan)
        if "dW" in frame.columns:
            new["sqrt_h_dW"] = root * array(frame["dW"])
        if "t1" in frame.columns:
            new["t1_over_x"] = array(frame["t1"]) / new["x"]
    return frame.assign(**new)


@checked
def filled(frame: pd.DataFrame) -> list[str]:
    """The columns that have a value somewhere."""
    return [name for name in frame.columns if not frame[name].isna().to_numpy().all()]


@checked
def panels(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows split by what must not be mixed: data set, task, architecture, depth, training points.

    Returns:
        (label, rows) in sorted order, the label naming the data set, the depth and whatever else differs,
        such as ``"mnist, L = 2"``.
    """
    there = [name for name in PANEL if name in filled(frame)]
    if not there:
        return [("", frame)]
    told = [name for name in there if name in ("dataset", "depth") or len(frame[name].unique()) > 1]
    spelled = {"depth": "L = {}", "n": "n = {}"}
    parts = []
    for values, part in frame.groupby(there, sort=True, dropna=False):
        label = named(there, values)
        words = [spelled.get(name, "{}").format(_plain(label[name])) for name in told]
        parts.append((", ".join(words), part))
    return parts


def _plain(value: object) -> object:
    """3 rather than 3.0: a column with gaps holds its integers as floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


@checked
def summary(
    frame: pd.DataFrame, by: Sequence[str] | str, column: str, *, log: bool = False, level: float = 0.95
) -> pd.DataFrame:
    """Mean of ``column`` over seeds within each group, with its interval.

    The seed is the unit: several rows of one seed in one group are averaged first. The interval is Student's
    t with ``n - 1`` degrees of freedom (see :func:`regimes.core.estimate.mean`), nan where there is a
    single seed.

    Arguments:
        frame: tidy rows.
        by: column or columns that make a group.
        column: what to average; rows without it are left out.
        log: the geometric mean, for quantities that live on a logarithmic scale.
        level: coverage of the interval.

    Returns:
        columns ``by``, ``mean``, ``low``, ``high``, ``n`` (seeds), sorted by ``by``.

    >>> rows = pd.DataFrame({"width": [8, 8, 8], "seed": [0, 1, 2], "dK": [1.0, 2.0, 3.0]})
    >>> summary(rows, "width", "dK")[["width", "mean", "n"]].values.tolist()
    [[8.0, 2.0, 3.0]]
    """
    keys = keys_of(by)
    found = need(frame, [*keys, column])
    lines = []
    for values, part in found.groupby(keys, sort=True):
        sample: Values = part[column]
        if "seed" in part.columns and "seed" not in keys:
            sample = [float(array(own[column]).mean()) for _, own in part.groupby("seed")]
        one = mean(sample, log=log, level=level)
        lines.append({**named(keys, values), "mean": one.value, "low": one.low, "high": one.high, "n": one.n})
    return pd.DataFrame(lines)


@checked
def transition(frame: pd.DataFrame, level: float = 1.0, factor: float = 10.0) -> pd.DataFrame:
    r"""The crossover :math:`\alpha^*` of each network: where its kernel drift is ``level``.

    One interpolation (:func:`regimes.report.fit.crossing`) per panel, width and seed.

    Arguments:
        frame: tidy rows.
        level: of the kernel drift.
        factor: between two values of alpha that lie farther apart than this nothing is interpolated.

    Returns:
        columns of the panel, ``width``, ``seed``, ``alpha_star``; networks whose curve does not cross
        ``level``, or only between values too far apart, have nan.

    Raises:
        UserError: if no network crosses.
    """
    found = need(frame, ["width", "seed", "alpha", "dK"])
    keys = [name for name in PANEL if name in filled(found)] + ["width", "seed"]
    lines = []
    for values, part in found.groupby(keys, sort=True, dropna=False):
        try:
            place = crossing(part["alpha"], part["dK"], level)
            alphas = array(part["alpha"])
            wide = alphas[alphas >= place].min() > 1.001 * factor * alphas[alphas <= place].max()
        except UserError:
            place, wide = np.nan, True
        lines.append({**named(keys, values), "alpha_star": np.nan if wide else place})
    table = pd.DataFrame(lines)
    if not np.isfinite(array(table["alpha_star"])).any():
        raise UserError(
            f"`frame`: none of {len(table)} networks has kernel drifts on both sides of {level:g}; "
            "extend the sweep in alpha"
        )
    return table


@checked
def ends(
    frame: pd.DataFrame, feature: float | None = None, lazy: float | None = None
) -> dict[str, pd.DataFrame]:
    r"""The rows of a feature and of a lazy value of :math:`\sqrt h\,\alpha`: the regimes at equal width.

    Arguments:
        frame: tidy rows of one panel.
        feature: the value of ``x`` on the feature side; by default the one below the crossover (mean drift
            above 1) that most networks were trained at, the farthest from it among equals.
        lazy: the same on the lazy side.

    Returns:
        "feature" and "lazy" -> rows; a side without rows is absent.

    Raises:
        UserError: if neither side has rows.
    """
    found = need(frame, ["x", "dK"])
    drifts = {x: array(part["dK"]) for x, part in found.groupby("x")}
    beyond = {
        "feature": {x: len(dK) for x, dK in drifts.items() if dK.mean() > 1},
        "lazy": {x: len(dK) for x, dK in drifts.items() if dK.mean() < 1},
    }
    sides = {}
    for name, wanted in (("feature", feature), ("lazy", lazy)):
        if wanted is None and beyond[name]:
            most = [float(str(x)) for x, size in beyond[name].items() if size == max(beyond[name].values())]
            wanted = min(most) if name == "feature" else max(most)
        place = np.nan if wanted is None else wanted
        rows = found.loc[np.isclose(array(found["x"]), place, rtol=1e-3, atol=0.0)]
        if not rows.empty:
            sides[name] = rows
    if not sides:
        raise UserError(
            f"`frame` has no rows at x = {feature} (feature) or x = {lazy} (lazy): choose values it holds"
        )
    return sides


@checked
def ensembles(rows: pd.DataFrame) -> dict[int, pd.DataFrame]:
    """Width -> the rows of its members, for the widths that have as many of them as any has."""
    parts = {
        int(str(width)): part
        for width, part in need(rows, ["width", "seed"], "rows").groupby("width", sort=True)
    }
    sizes = {width: len(set(part["seed"])) for width, part in parts.items()}
    return {width: part for width, part in parts.items() if sizes[width] == max(sizes.values())}
