"""One rounding of matrix products, wherever their operands lie in memory."""

from __future__ import annotations

import os

__all__ = ["ROUNDING", "fix_rounding"]

ROUNDING = {"MKL_CBWR": "AUTO"}
"""Environment of a process in which equal products have equal bits on one machine.

MKL may round a product by the alignment of its operands, and does so on some processors, unless conditional numerical
reproducibility is on. AUTO is the mode that makers of all x86 processors are served with: the fastest kernels of the
machine, in a fixed order. Other libraries of linear algebra do not read this variable.

Source: Intel oneMKL Developer Guide, "Specifying Code Branches".
"""


def fix_rounding() -> None:
    """Ask for :data:`ROUNDING` in this process and those it starts; what the user has set stays.

    It is read at the first product: call this before anything computes.
    """
    for name, value in ROUNDING.items():
        os.environ.setdefault(name, value)
