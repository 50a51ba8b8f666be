"""Power laws with honest errors, crossings, and local exponents: straight lines in the log-log plane."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.estimate import Estimate, Numbers, array, positive, quantile

__all__ = ["PowerLaw", "crossing", "local_exponents", "power_law"]


@dataclass(frozen=True)
class PowerLaw:
    """A fitted law ``y = prefactor * x ** exponent``.

    Arguments:
        exponent: the slope in the log-log plane.
        prefactor: the value at ``x = 1``.
        error: standard error of the exponent.
        low: lower end of the exponent's 95 % interval.
        high: upper end of the exponent's 95 % interval.
        n: points used.
        window: smallest and largest ``x`` asked for, or seen if no window was asked for.
        r2: share of the variance of ``log y`` that the line explains.
        clusters: independent groups behind the error (``n`` if the points stand alone).
        freedom: degrees of freedom of the error.
        method: how it was fitted, in words.
    """

    exponent: float
    prefactor: float
    error: float
    low: float
    high: float
    n: int
    window: tuple[float, float]
    r2: float
    clusters: int
    freedom: float
    method: str

    def __call__(self, x: Numbers) -> np.ndarray:
        """The law at ``x``."""
        return self.prefactor * array(x) ** self.exponent

    def estimate(self) -> Estimate:
        """The exponent as a number with its interval, for a claim; ``n`` counts the independent groups."""
        return Estimate(self.exponent, self.low, self.high, self.clusters, self.method, freedom=self.freedom)


@checked
def power_law(
    x: Numbers,
    y: Numbers,
    window: tuple[float, float] | None = None,
    weights: Numbers | None = None,
    groups: Numbers | None = None,
) -> PowerLaw:
    r"""Least-squares line through ``(log x, log y)``.

    Without ``groups`` the points are independent: the standard error is that of ordinary least squares and
    the interval uses Student's t with ``n - 2`` degrees of freedom. With ``groups`` (the seed, or the
    network, that a point comes from) the points of one group may err together, so the standard error is
    *clustered*: the fit is repeated without each of the ``G`` groups, and

    .. math:: \mathrm{se}^2 = \frac{G-1}{G} \sum_g (b_{(g)} - \bar b)^2

    with ``G - 1`` degrees of freedom: the cluster jackknife (CV3 in MacKinnon, Nielsen and Webb,
    *Cluster-robust
    inference: a guide to empirical practice*, 2023). If every seed was measured at the same ``x`` this is
    exactly the Student t interval of the seeds' own slopes. A single group counts as ungrouped points. Either
    way the interval speaks of scatter, not of a curve bent through the window: look at
    :func:`local_exponents` for that.

    Arguments:
        x: (n,) positive.
        y: (n,) positive. Points where either is missing are left out.
        window: keep only ``window[0] <= x <= window[1]``.
        weights: (n,) relative weights of the points, for example one over their variance in ``log y``.
        groups: (n,) labels; points with the same label may err together.

    Raises:
        UserError: if fewer than 3 points or fewer than 2 different ``x`` lie in the window, if a value is not
            positive, or if one group alone carries the slope.

    >>> law = power_law([1, 10, 100], [2, 0.2, 0.02])
    >>> round(law.exponent, 6), round(law.prefactor, 6), law.n
    (-1.0, 2.0, 3)
    """
    points = _points(x, y, window, weights, groups)
    u, v, w = (points[name].to_numpy() for name in ("u", "v", "w"))
    slope, intercept = _line(u, v, w)
    labels, codes = np.unique(points["g"].astype(str), return_inverse=True)
    if groups is not None and len(labels) > 1:
        error, freedom = _clustered(u, v, w, codes), len(labels) - 1
        clusters, how = len(labels), f"error clustered over {len(labels)} groups"
    else:
        error, freedom = _ordinary(u, v, w, slope, intercept), len(u) - 2
        clusters, how = len(u), "points taken as independent"
    half = quantile(freedom) * error
    rest = float(np.sum(w * (v - intercept - slope * u) ** 2))
    spread = float(np.sum(w * (v - np.average(v, weights=w)) ** 2))
    seen = (float(np.exp(u.min())), float(np.exp(u.max())))
    return PowerLaw(
        exponent=slope,
        prefactor=math.exp(intercept),
        error=error,
        low=slope - half,
        high=slope + half,
        n=len(u),
        window=window or seen,
        r2=1 - rest / spread if spread > 0 else 1.0,
        clusters=clusters,
        freedom=freedom,
        method=f"log-log least squares, {len(u)} points; {how}; Student t, 95 %",
    )


def _points(
    x: Numbers,
    y: Numbers,
    window: tuple[float, float] | None,
    weights: Numbers | None,
    groups: Numbers | None,
) -> pd.DataFrame:
    """The usable points as columns u = log x, v = log y, w (weights, mean 1), g (groups)."""
    frame = pd.DataFrame({"x": array(x, "x")})
    parts = {"y": array(y, "y"), "w": 1.0 if weights is None else array(weights, "weights")}
    parts["g"] = 0 if groups is None else np.asarray(groups)
    for name, part in parts.items():
        if np.ndim(part) and len(part) != len(frame):
            word = {"y": "y", "w": "weights", "g": "groups"}[name]
            raise UserError(
                f"`{word}` has {len(part)} entries: expected {len(frame)}, one for each entry of `x`"
            )
        frame[name] = part
    frame = frame.loc[np.all(np.isfinite(frame[["x", "y", "w"]].to_numpy(dtype=float)), axis=1)]
    where = ""
    if window is not None:
        frame = frame.loc[frame["x"].between(*window)]
        where = f" in the window [{window[0]:g}, {window[1]:g}]"
    distinct = len(frame["x"].unique())
    if len(frame) < 3 or distinct < 2:
        raise UserError(
            f"`x` has {len(frame)} usable points at {distinct} different values{where}: "
            "expected at least 3 points at 2 values; run more of the sweep or widen `window`"
        )
    logs = {
        "u": np.log(positive(frame["x"].to_numpy(), "x")),
        "v": np.log(positive(frame["y"].to_numpy(), "y")),
    }
    weight = positive(frame["w"].to_numpy(), "weights")
    return frame.assign(**logs, w=weight / weight.mean())


def _line(u: np.ndarray, v: np.ndarray, w: np.ndarray) -> tuple[float, float]:
    """Slope and intercept of the weighted least-squares line."""
    centre, height = np.average(u, weights=w), np.average(v, weights=w)
    spread = float(np.sum(w * (u - centre) ** 2))
    if spread <= 1e-12 * len(u):
        raise UserError(
            "`groups`: without one of them all points share one `x`; give each group several values of `x`"
        )
    slope = float(np.sum(w * (u - centre) * (v - height))) / spread
    return slope, float(height - slope * centre)


def _ordinary(u: np.ndarray, v: np.ndarray, w: np.ndarray, slope: float, intercept: float) -> float:
    """Standard error of the slope of independent points."""
    rest = float(np.sum(w * (v - intercept - slope * u) ** 2)) / (len(u) - 2)
    return math.sqrt(rest / float(np.sum(w * (u - np.average(u, weights=w)) ** 2)))


def _clustered(u: np.ndarray, v: np.ndarray, w: np.ndarray, codes: np.ndarray) -> float:
    """Standard error of the slope by leaving out one group at a time."""
    count = int(codes.max()) + 1
    slopes = np.array([_line(u[codes != g], v[codes != g], w[codes != g])[0] for g in range(count)])
    return math.sqrt((count - 1) / count * float(np.sum((slopes - slopes.mean()) ** 2)))


def _curve(x: Numbers, y: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """The points sorted by x in logarithms, repeated x merged by the geometric mean of y."""
    place, height = array(x, "x"), array(y, "y")
    if len(place) != len(height):
        raise UserError(f"`y` has {len(height)} entries: expected {len(place)}, one for each entry of `x`")
    there = np.isfinite(place) & np.isfinite(height)
    u, v = np.log(positive(place[there], "x")), np.log(positive(height[there], "y"))
    merged, which = np.unique(u.round(9), return_inverse=True)
    if len(merged) < 2:
        raise UserError(f"`x` has {len(merged)} different usable values: a curve needs at least 2")
    return merged, np.bincount(which, weights=v) / np.bincount(which)


@checked
def crossing(x: Numbers, y: Numbers, level: float) -> float:
    """The ``x`` at which the curve ``y`` crosses ``level``, by linear interpolation in the log-log plane.

    Values at the same ``x`` are merged by their geometric mean. A noisy curve may cross several times: the
    ends lie on opposite sides, so the number of crossings is odd and the middle one is returned.

    Raises:
        UserError: if both ends of the curve lie on the same side of ``level``.

    >>> round(crossing([1, 10, 100], [10, 1, 0.1], 1.0), 6)
    10.0
    """
    u, v = _curve(x, y)
    gap = v - math.log(positive(np.array([float(level)]), "level")[0])
    if gap[0] * gap[-1] > 0:
        side = "above" if gap[0] > 0 else "below"
        raise UserError(
            f"`y` is {side} `level` = {level:g} at both ends "
            f"(x = {math.exp(u[0]):.3g} and {math.exp(u[-1]):.3g}): no crossing; extend the sweep"
        )
    sign = np.where(gap >= 0, 1, -1)
    if gap[-1] == 0:
        sign[-1] = -sign[0]
    places = np.flatnonzero(sign[:-1] != sign[1:])
    if len(places) == 0:
        return math.exp(u[int(np.argmin(np.abs(gap)))])
    i = places[len(places) // 2]
    share = gap[i] / (gap[i] - gap[i + 1])
    return math.exp(u[i] + share * (u[i + 1] - u[i]))


@checked
def local_exponents(x: Numbers, y: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """Slopes between neighbours in the log-log plane: where a power law holds they are flat.

    Returns:
        x (m - 1,): geometric midpoints of the ``m`` different values of ``x``; slopes (m - 1,).

    >>> local_exponents([1, 10, 100], [1, 100, 10000])[1].round(6).tolist()
    [2.0, 2.0]
    """
    u, v = _curve(x, y)
    return np.exp((u[1:] + u[:-1]) / 2), np.diff(v) / np.diff(u)
