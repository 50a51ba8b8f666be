"""Its one figure."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from regimes.report.style import canvas, log_axes, styled
from regimes.report.table import last

__all__ = ["FIGURES"]


@styled()
def movement(frame: pd.DataFrame) -> Figure:
    """Movement against the scale."""
    figure, ((axes,),) = canvas(1)
    rows = last(frame)
    axes.plot(rows["alpha"], rows["dW"], "o")
    log_axes(axes, "alpha", "movement")
    return figure


FIGURES = (("movement", "Movement", movement, "One dot a network."),)
