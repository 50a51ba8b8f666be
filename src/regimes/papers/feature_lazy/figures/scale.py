r"""Figures against :math:`\sqrt h\,\alpha`: widths collapse on one curve, which bends at the crossover."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.estimate import array
from regimes.papers.feature_lazy.tables.plane import FEATURE_WINDOW, LAZY_WINDOW, curve_law, panels, tidy
from regimes.report.ensemble import ensemble
from regimes.report.fit import PowerLaw
from regimes.report.style import (
    X_LABEL,
    Mark,
    canvas,
    curve,
    legend_of,
    log_axes,
    marks,
    shifts,
    styled,
    subtitle,
)
from regimes.report.table import need, summary

__all__ = ["fluctuation", "kernel_change", "learning_time", "test_error", "weight_change"]

Window = tuple[float, float] | None
FITS = {
    "feature": {"linestyle": (0, (6, 2)), "color": "black"},
    "lazy": {"linestyle": (0, (1, 1)), "color": "black"},
}


@styled()
@checked
def kernel_change(
    frame: pd.DataFrame, feature: Window = FEATURE_WINDOW, lazy: Window = LAZY_WINDOW
) -> Figure:
    r"""Kernel drift :math:`\|\Delta K\|/\|K_0\|` against :math:`\sqrt h\,\alpha`, fitted in each regime.

    Arguments:
        frame: rows of a store with ``dK``.
        feature: window of the feature fit; None: no fit.
        lazy: window of the lazy fit; None: no fit.
    """
    label = r"$\|\Delta K\|\,/\,\|K_0\|$"
    return _against(frame, ["dK"], [label], {"feature": feature, "lazy": lazy}, level=1.0)


@styled()
@checked
def weight_change(
    frame: pd.DataFrame, feature: Window = FEATURE_WINDOW, lazy: Window = LAZY_WINDOW
) -> Figure:
    r"""Weight change :math:`\sqrt h\,\|w - w_0\|/\|w_0\|` against :math:`\sqrt h\,\alpha`, fitted alike."""
    label = r"$\sqrt{h}\;\|w-w_0\|\,/\,\|w_0\|$"
    return _against(frame, ["sqrt_h_dW"], [label], {"feature": feature, "lazy": lazy})


@styled()
@checked
def learning_time(frame: pd.DataFrame, feature: Window = (0.0, 0.3), lazy: Window = (1e2, np.inf)) -> Figure:
    r"""Time :math:`t_1` at which the loss has halved, and :math:`t_1/(\sqrt h\,\alpha)` below it."""
    labels = [r"$t_1$  (flow time)", r"$t_1\,/\,(\sqrt{h}\,\alpha)$"]
    return _against(frame, ["t1", "t1_over_x"], labels, {"feature": feature, "lazy": lazy})


@styled()
@checked
def test_error(frame: pd.DataFrame) -> Figure:
    r"""Test error (mean over seeds, 95 % interval) against :math:`\sqrt h\,\alpha`."""
    rows = tidy(frame)
    return _against(
        rows.assign(percent=100 * need(rows, ["test_error"])["test_error"]), ["percent"], ["test error (%)"]
    )


# pytest would take the name for a test's own
test_error.__test__ = False  # type: ignore[attr-defined]


@styled()
@checked
def fluctuation(frame: pd.DataFrame, scaled: bool = True) -> Figure:
    r"""Variance of the function over seeds, times ``h`` if ``scaled``, against :math:`\sqrt h\,\alpha`."""
    parts = panels(tidy(frame))
    figure, ((*row,),) = canvas(len(parts))
    look, aside = marks(tidy(frame)["width"]), shifts(tidy(frame)["width"])
    for axes, (name, part) in zip(row, parts, strict=True):
        table = ensemble(need(part, ["x"]), ["width", "x"])
        for width, line in table.groupby("width"):
            factor = float(width) if scaled else 1.0  # type: ignore[arg-type]
            shown = pd.DataFrame(
                {
                    "x": line["x"],
                    "mean": factor * line["variance"],
                    "low": factor * line["variance_low"],
                    "high": factor * line["variance_high"],
                }
            )
            curve(axes, shown, "x", look[width], f"h = {width}", aside[width])
        log_axes(axes, X_LABEL, r"$h\;\mathrm{Var}\,F$" if scaled else r"$\mathrm{Var}\,F$")
        subtitle(axes, name)
    legend_of(figure, row)
    return figure


def _against(
    frame: pd.DataFrame,
    columns: Sequence[str],
    labels: Sequence[str],
    windows: dict[str, Window] | None = None,
    level: float | None = None,
) -> Figure:
    """Panels (data set, depth) across, quantities down: one curve per width, fits over all widths."""
    rows = need(tidy(frame), ["x", "width", *columns])
    parts = panels(rows)
    log = windows is not None
    look, aside = marks(rows["width"]), shifts(rows["width"])
    figure, grid = canvas(len(parts), len(columns), height=2.5 if len(columns) == 1 else 2.1)
    for line, column, label in zip(grid, columns, labels, strict=True):
        for axes, (name, part) in zip(line, parts, strict=True):
            for width, own in part.groupby("width"):
                shift = 1.0 if log else aside[width]
                curve(axes, summary(own, "x", column, log=log), "x", look[width], f"h = {width}", shift)
            axes.set_xscale("log")
            fitted = [
                _fitted(axes, part, column, which, window)
                for which, window in (windows or {}).items()
                if window
            ]
            if level is not None:
                axes.axhline(level, color="0.35", linewidth=0.6, zorder=0)
            log_axes(axes, X_LABEL if line is grid[-1] else "", label, log_y=log)
            if not log:
                # An interval may reach below zero, an error cannot; a sliver keeps markers at zero whole.
                low, high = axes.get_ylim()
                axes.set_ylim(bottom=max(low, -0.02 * high))
            subtitle(axes, name if line is grid[0] else "", "\n".join(fitted))
    legend_of(figure, [axes for line in grid for axes in line])
    return figure


def _fitted(axes: Axes, rows: pd.DataFrame, column: str, which: str, window: tuple[float, float]) -> str:
    """Draw a regime's window and law; returns the words for the title."""
    try:
        law = curve_law(rows, column, window)
    except UserError:
        return f"{which}: too few points in its window"
    x = array(rows["x"])
    seen = x[(x >= window[0]) & (x <= window[1])]
    shown = (float(seen.min()), float(seen.max()))
    axes.axvspan(*shown, color="0.945", linewidth=0, zorder=-1)
    ends = np.array([shown[0] / 1.6, shown[1] * 1.6])
    mark: Mark = FITS[which]
    axes.plot(ends, law(ends), linewidth=1.1, zorder=4, label=f"{which} fit", **mark)
    return f"{which} {spoken(law)}"


def spoken(law: PowerLaw) -> str:
    """The exponent in words: ``exponent −1.31 ± 0.05``, half the width of the 95 % interval."""
    half = (law.high - law.low) / 2
    digits = int(np.clip(-np.floor(np.log10(half)), 2, 4)) if half > 0 else 2
    return f"exponent {law.exponent:.{digits}f} ± {half:.{digits}f}".replace("-", "−")
