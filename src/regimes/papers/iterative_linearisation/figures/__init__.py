"""Every figure of the study, in the order of the page."""

from __future__ import annotations

from typing import Any

import pandas as pd

from regimes.core.check import checked
from regimes.papers.iterative_linearisation.figures.blocks import block_losses, kernel_per_block
from regimes.papers.iterative_linearisation.figures.damping import filters, newton_cosine
from regimes.papers.iterative_linearisation.figures.ladder import accuracy_updates, linearised_once
from regimes.papers.iterative_linearisation.runs import DampingRun
from regimes.papers.iterative_linearisation.tables import tasks
from regimes.report.table import rows_of

__all__ = [
    "FIGURES",
    "accuracy_updates",
    "block_losses",
    "figures",
    "filters",
    "kernel_per_block",
    "linearised_once",
    "newton_cosine",
]

FIGURES = (
    (
        "accuracy_updates",
        "How many feature updates a network needs",
        accuracy_updates,
        "Test accuracy after the same steps at the same rate, against the number of feature updates U = T / K; of the "
        "network at the last parameters, and of its linearisation at the last anchor. The lines are K = 1, training as "
        "usual, and K = T, the linear model of the start; whiskers and bands are 95 % intervals over seeds.",
    ),
    (
        "linearised_once",
        "Linearised once, after some steps",
        linearised_once,
        "Test accuracy at the end of training, of the network until step t and of its linearisation there from then "
        "on. The lines are the linear model of the start, t = 0, and the network itself; intervals over seeds.",
    ),
    (
        "block_losses",
        "Network and linearisation through the blocks",
        block_losses,
        "Training loss of the network and of its linearisation at the last anchor, at the same parameters, for U = 10 "
        "and one seed. At an anchor, marked by a vertical line, the two are the same.",
    ),
    (
        "kernel_per_block",
        "How far each block moves the kernel",
        kernel_per_block,
        "Distance of the tangent kernel from that at the anchor before, relative to it, on test points; U = 10, mean "
        "over seeds with its interval.",
    ),
    (
        "newton_cosine",
        "A block beside a damped Gauss-Newton step",
        newton_cosine,
        "Left, the cosine between the way of a block of K steps on least squares and a Gauss-Newton step with damping "
        "1 / (eta K); right, the length of the one over that of the other. Mean over seeds with its interval.",
    ),
    (
        "filters",
        "What a block takes away, and what damping does",
        filters,
        "The share of the residual taken away along an eigenvector of K / n: by K steps, and by a Gauss-Newton step "
        "with damping 1 / (eta K), against the eigenvalue. The ticks at the foot are the measured eigenvalues of one "
        "network. The two agree where the eigenvalue is small, and where it is large.",
    ),
)
BLOCKWISE = ("accuracy_updates", "block_losses", "kernel_per_block")
"""Those of the training in blocks."""


@checked
def figures(frame: pd.DataFrame) -> list[Any]:
    """The figures of the rows there are."""
    if not len(frame):
        return list(FIGURES)
    found = [rows for _, _, rows in tasks(frame)]
    there: dict[str, bool] = {name: bool(found) for name in BLOCKWISE}
    there["linearised_once"] = any(rows["once"].notna().to_numpy().any() for rows in found)
    damped = bool(len(rows_of(frame, DampingRun)))
    return [entry for entry in FIGURES if there.get(entry[0], damped)]
