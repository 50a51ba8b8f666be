"""The plane of width and scale: rows to tidy tables, the crossover, and the fits that figures and claims share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.estimate import Estimate, array, jackknife
from regimes.report.ensemble import variance
from regimes.report.fit import PowerLaw, crossing, power_law
from regimes.report.table import filled, last, named, need

__all__ = [
    "EARLY_WINDOW",
    "FEATURE_WINDOW",
    "LATE_WINDOW",
    "LAZY_WINDOW",
    "PANEL",
    "curve_law",
    "ends",
    "ensembles",
    "panels",
    "star_law",
    "tidy",
    "transition",
    "variance_law",
]

FEATURE_WINDOW, LAZY_WINDOW = (1e-2, 3.0), (3e3, 1e5)
r"""Where the change of kernel and weights is fitted, in :math:`\sqrt h\,\alpha`."""
EARLY_WINDOW, LATE_WINDOW = (0.0, 0.3), (1e2, np.inf)
"""Where the time to halve the loss is fitted."""
PANEL = ("dataset", "task", "arch", "depth", "n")
"""What must not be mixed."""


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
            above 1) with the most members of :func:`ensembles`, the farthest from it among equals.
        lazy: the same on the lazy side.

    Returns:
        "feature" and "lazy" -> rows; a side without rows is absent.

    Raises:
        UserError: if neither side has rows.
    """
    found = need(frame, ["x", "dK", "width", "seed"])
    places = {x: (array(part["dK"]).mean(), _members(part)) for x, part in found.groupby("x")}
    beyond = {
        "feature": {x: members for x, (dK, members) in places.items() if dK > 1},
        "lazy": {x: members for x, (dK, members) in places.items() if dK < 1},
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


def _members(rows: pd.DataFrame) -> int:
    """How many networks the ensembles of these rows have."""
    return sum(len(part) for part in ensembles(rows).values())


@checked
def curve_law(rows: pd.DataFrame, column: str, window: tuple[float, float]) -> PowerLaw:
    r"""The power law of ``column`` against :math:`x = \sqrt h\,\alpha` in a window, over all widths.

    Only networks (one width and seed) measured at two or more values of x in the window count: one that was
    trained at a single x, for an ensemble, says nothing of a slope. The error is clustered over networks.

    Raises:
        UserError: if too few points lie in the window.
    """
    table = need(rows, ["x", "network", column], "rows")
    inside = table.loc[table["x"].between(*window)]
    parts = [part for _, part in inside.groupby("network") if part["x"].nunique() >= 2]
    curves = pd.concat(parts) if parts else inside.iloc[:0]
    return power_law(curves["x"], curves[column], window, groups=curves["network"])


@checked
def star_law(table: pd.DataFrame) -> PowerLaw:
    r"""The power law of :math:`\alpha^*` against the width, one point a network.

    Networks of different width or seed are independent; the points are weighted by their width, since the scatter of
    :math:`\alpha^*` between seeds comes from fluctuations that fall like :math:`h^{-1/2}`.

    Arguments:
        table: of :func:`regimes.report.table.transition`.
    """
    found = need(table, ["alpha_star", "width"], "table")
    return power_law(found["width"], found["alpha_star"], weights=found["width"])


@checked
def variance_law(widths: Sequence[int], samples: Sequence[np.ndarray]) -> Estimate:
    """The exponent of Var F against the width, with the jackknife interval over members.

    Arguments:
        widths: of the ensembles.
        samples: outputs (members, n) of each.
    """
    if len(widths) < 3:
        raise UserError(f"`widths` are {list(widths)}: expected at least 3, each with an ensemble")

    def slope(*members: np.ndarray) -> float:
        return float(np.polyfit(np.log(widths), [np.log(variance(each)) for each in members], 1)[0])

    return jackknife(samples, slope)
