"""Every figure of the study, in the order of the page."""

from __future__ import annotations

from typing import Any

import pandas as pd

from regimes.core.check import checked
from regimes.papers.rich_regime.figures.movement import layer_enrichment, parameter_changes, reset_errors
from regimes.papers.rich_regime.figures.policies import (
    cnn_in_time,
    equal_budgets,
    mlp_in_time,
    sparse_error,
)
from regimes.papers.rich_regime.tables import ACTIVITY, SPARSE, networks

__all__ = [
    "FIGURES",
    "MOVEMENT",
    "cnn_in_time",
    "equal_budgets",
    "figures",
    "layer_enrichment",
    "mlp_in_time",
    "parameter_changes",
    "reset_errors",
    "sparse_error",
]

FIGURES = (
    (
        "parameter_changes",
        "How far parameters move",
        parameter_changes,
        "Share of the parameters that have moved at least so far by the end of training, relative to the scale of "
        "their layer at the start; medians over seeds. Dotted: normal changes with the same median.",
    ),
    (
        "layer_enrichment",
        "Where the active parameters lie",
        layer_enrichment,
        "The layer's share of the most active 1 % of the parameters over its share of all parameters: above 1, it has "
        "more of them than its size says. Where a layer has none of them, no point is drawn.",
    ),
    (
        "reset_errors",
        "What the active parameters are worth",
        reset_errors,
        "Test error with the most active 1 % of the parameters back at their start, and with as many others.",
    ),
    (
        "sparse_error",
        "Training few layers",
        sparse_error,
        "Test error against the cost of the backward passes so far, counted in products; sampled: all layers move with "
        "probability p, else the top one alone. Every curve ends after the "
        "same number of steps: ends compare at equal steps, heights above one place at equal cost of backward passes. "
        "The cost of forward passes is the same for all steps and not in it.",
    ),
    (
        "equal_budgets",
        "What training of few layers gains or loses",
        equal_budgets,
        "Test accuracy of each policy, less that of all layers after the same steps, the same counted cost of the "
        "backward passes, the same counted cost of forward and backward passes, and the same seconds on the machine "
        "of this study; paired by seed. The budget is what the sampled policy has spent at its end; a policy that "
        "ended before counts with its end. Below 0, all layers do better; beyond 1 point the axis is logarithmic.",
    ),
    (
        "mlp_in_time",
        "Which layers move when: fully connected",
        mlp_in_time,
        "Left, how far each layer has moved relative to its start, against the steps; right, its share of the squared "
        "movement at the end beside its share of the parameters. All layers move; mean over seeds.",
    ),
    (
        "cnn_in_time",
        "Which layers move when: convolutional",
        cnn_in_time,
        "As above, for the convolutional network.",
    ),
)
MOVEMENT = ("parameter_changes", "layer_enrichment", "reset_errors")
"""Those of the first experiment."""


@checked
def figures(frame: pd.DataFrame) -> list[Any]:
    """The figures of the rows there are."""
    if not len(frame):
        return list(FIGURES)
    looked = [network for _, network, _ in networks(frame, ACTIVITY)]
    trained = [network for _, network, _ in networks(frame, SPARSE)]
    there = {"mlp_in_time": "mlp" in trained, "cnn_in_time": "cnn" in trained}
    there |= dict.fromkeys(MOVEMENT, bool(looked))
    return [entry for entry in FIGURES if there.get(entry[0], bool(trained))]
