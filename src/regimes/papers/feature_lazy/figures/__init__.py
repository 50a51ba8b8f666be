"""Every figure of the study, in the order of the page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from regimes.core.check import checked
from regimes.papers.feature_lazy.figures.frozen import frozen_error, regime_error
from regimes.papers.feature_lazy.figures.scale import (
    fluctuation,
    kernel_change,
    learning_time,
    test_error,
    weight_change,
)
from regimes.papers.feature_lazy.figures.width import (
    crossover,
    crossover_by_law,
    ensemble_error,
    fluctuation_width,
    phase_diagram,
)
from regimes.papers.feature_lazy.runs import FlowRun, FrozenRun
from regimes.report.table import rows_of

__all__ = [
    "FIGURES",
    "FROZEN",
    "crossover",
    "crossover_by_law",
    "ensemble_error",
    "figures",
    "fluctuation",
    "fluctuation_width",
    "frozen_error",
    "kernel_change",
    "learning_time",
    "phase_diagram",
    "regime_error",
    "test_error",
    "weight_change",
]


def _ntk(draw: Callable[[pd.DataFrame], Figure]) -> Callable[[pd.DataFrame], Figure]:
    """The figure of the runs under the NTK law, in whose convention its axes are."""
    return lambda frame: draw(rows_of(frame, FlowRun).loc[lambda rows: rows["law"] == "ntk"])


FIGURES = (
    (
        "phase_diagram",
        "The phase diagram",
        _ntk(phase_diagram),
        "Relative change of the tangent kernel, dK, of every run in the plane of width and scale; the line is the "
        "fitted crossover alpha*, where dK = 1.",
    ),
    (
        "kernel_change",
        "Change of the kernel",
        _ntk(kernel_change),
        "dK = ||K(end) - K(0)|| / ||K(0)|| on test points: the widths fall on one curve in "
        "sqrt(h) alpha, with one power law in each regime.",
    ),
    (
        "weight_change",
        "Change of the weights",
        _ntk(weight_change),
        "sqrt(h) ||w - w0|| / ||w0||, in the same units.",
    ),
    (
        "learning_time",
        "Time to learn",
        _ntk(learning_time),
        "t1, when the loss has halved: proportional to sqrt(h) alpha in the feature regime, constant in "
        "the lazy one.",
    ),
    (
        "crossover",
        "The crossover against width",
        _ntk(crossover),
        "alpha* of each network, and the fitted power of the width.",
    ),
    (
        "crossover_by_law",
        "The crossover under other laws of width",
        lambda frame: crossover_by_law(rows_of(frame, FlowRun)),
        "alpha* of each law in its own convention: NTK and standard fall like h^-1/2, mean-field and muP "
        "stay.",
    ),
    (
        "test_error",
        "Test error",
        _ntk(test_error),
        "Mean over seeds with its interval.",
    ),
    (
        "fluctuation",
        "Fluctuations along the curve",
        _ntk(fluctuation),
        "h Var F over seeds, against sqrt(h) alpha.",
    ),
    (
        "fluctuation_width",
        "Fluctuations against width",
        _ntk(fluctuation_width),
        "Var F over seeds falls like 1/h in both regimes.",
    ),
    (
        "ensemble_error",
        "Averaging over seeds",
        _ntk(ensemble_error),
        "Test error of one network and of the average of an ensemble: the average does not depend on the width.",
    ),
    (
        "regime_error",
        "A convolutional network in both regimes",
        regime_error,
        "Test error of one network, mean over seeds with its interval, and of the average of all of them; a faint line "
        "joins the two networks of one start.",
    ),
    (
        "frozen_error",
        "Training from a frozen kernel",
        frozen_error,
        "Test error of networks, and of the functions that the same gradient flow makes of their tangent kernels, "
        "frozen at the start and at the end of training; a faint line joins what belongs to one start.",
    ),
)
# Figures of the networks with frozen kernels.
FROZEN = ("regime_error", "frozen_error")


@checked
def figures(frame: pd.DataFrame) -> list[Any]:
    """The figures of the rows: the laws are compared where several were run, networks and their frozen kernels too."""
    left_out = {"crossover_by_law"} if frame.empty or len(set(rows_of(frame, FlowRun)["law"])) < 2 else set()
    frozen = rows_of(frame, FrozenRun)
    if frozen.empty:
        left_out |= set(FROZEN)
    elif "cnn" not in set(frozen["model"]):
        left_out.add("regime_error")
    return [entry for entry in FIGURES if entry[0] not in left_out]
