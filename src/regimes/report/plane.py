"""The fits of the feature-lazy plane, the same for figures and claims."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.estimate import Estimate, jackknife
from regimes.report.ensemble import variance
from regimes.report.fit import PowerLaw, power_law
from regimes.report.table import need

__all__ = ["curve_law", "star_law", "variance_law"]


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
