"""Every figure of the study, in the order of the page."""

from __future__ import annotations

from typing import Any

import pandas as pd

from regimes.core.check import checked
from regimes.papers.lazy_training.figures.spectrum import kernel_spectrum
from regimes.papers.lazy_training.figures.training import (
    accuracy_stability,
    lazy_rates,
    neuron_paths,
    student_loss,
    student_width,
)
from regimes.papers.lazy_training.runs import ImageRun, RateRun, SpectrumRun, StudentRun
from regimes.report.table import rows_of

__all__ = [
    "FIGURES",
    "accuracy_stability",
    "figures",
    "kernel_spectrum",
    "lazy_rates",
    "neuron_paths",
    "student_loss",
    "student_width",
]

FIGURES = (
    (
        "neuron_paths",
        "Paths of the neurons",
        neuron_paths,
        "|a| b of every neuron of a two-layer student in the plane, from its start (hollow) to the end of training "
        "(full); dashed, the directions of the teacher. From a small start the neurons turn to the teacher, from a "
        "large one they stay where they were; both fit the training points.",
    ),
    (
        "student_loss",
        "Test loss against the size of the start",
        student_loss,
        "Half the mean squared error at the end of training and at its best moment, and that of the linearised model "
        "after the same time.",
    ),
    (
        "student_width",
        "Test loss against width under two scalings",
        student_width,
        "1/sqrt(m) becomes lazy as the network widens, 1/m does not.",
    ),
    (
        "lazy_rates",
        "Rates of the theorem",
        lazy_rates,
        "Over a fixed time: how far the weights move, how far they are from those of the linearised model, and how far "
        "its outputs are.",
    ),
    (
        "accuracy_stability",
        "Accuracy and stability against alpha",
        accuracy_stability,
        "Accuracy of the trained network, and the share of ReLU units that are on the same side before and after "
        "training.",
    ),
    (
        "kernel_spectrum",
        "Spectrum of the tangent kernel",
        kernel_spectrum,
        "Eigenvalues of the kernel of all outputs at the start over their sum, against their index: on images and on "
        "random pixels. The first C, the number of classes, stand apart.",
    ),
)


@checked
def figures(frame: pd.DataFrame) -> list[Any]:
    """The figures of the rows there are."""
    shown = {"lazy_rates": RateRun, "accuracy_stability": ImageRun, "kernel_spectrum": SpectrumRun}
    there = [entry for entry in FIGURES if len(rows_of(frame, shown.get(entry[0], StudentRun)))]
    return there if len(frame) else list(FIGURES)
