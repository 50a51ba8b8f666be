"""The picture of ``which_layers.py``: each set of layers as a bar from its first layer to its last one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _which_tasks import SHIFTS
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from regimes.report.style import LOOK, styled

__all__ = ["save"]

COUNT = 5


def span(name: str) -> tuple[int, int]:
    """The first layer of a set and the last one, from 1.

    >>> span("layers 2-3 of 5"), span("head"), span("all")
    ((2, 3), (5, 5), (1, 5))
    """
    found = re.match(r"layers? (\d)(?:-(\d))?", name)
    if found:
        return int(found[1]), int(found[2] or found[1])
    return (1, COUNT) if name == "all" else (COUNT, COUNT)


@styled()
def save(rows: Sequence[Mapping[str, Any]], samples: int, path: Path) -> None:
    """A panel for each shift: test accuracy of each set at its best rate on the test set, means over seeds."""
    figure = Figure(figsize=(4.6, 7.6), layout="constrained")
    for axes, shift in zip(figure.subplots(4, 2, sharex=True).flat, SHIFTS, strict=True):
        some = [row for row in rows if (row["shift"], row["samples"]) == (shift, samples)]
        names = list(some[0]["table"])
        best = np.array([[row["table"][name] for name in names] for row in some]).mean(0).max(1)
        for name, value in zip(names, best, strict=True):
            first, last = span(name)
            full = name == "all"
            axes.plot(
                [first - 0.4, last + 0.4],
                [value, value],
                color="0.0" if full else "0.45",
                lw=2.6 if full else 1.6,
            )
        start = np.mean([row["start"] for row in some])
        if start > best.min() - 5:
            axes.axhline(float(start), color="0.0", lw=0.8, ls=(0, (1, 2)))
        axes.set_title(shift)
        axes.set_xlim(0.5, COUNT + 0.5)
        axes.set_xticks(range(1, COUNT + 1))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(axis="y")
    figure.supxlabel("layers that move (1: next to the inputs, 5: the head)", fontsize=LOOK["axes.labelsize"])
    figure.supylabel("test accuracy, %", fontsize=LOOK["axes.labelsize"])
    figure.savefig(path, dpi=200)
