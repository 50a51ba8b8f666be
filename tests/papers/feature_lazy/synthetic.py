"""Rows of a made-up study that obeys the laws of the feature-lazy plane exactly, up to known noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

FEATURE_DK, LAZY_DK = -4 / 3, -1.0
"""Exponents of the kernel drift for L = 2."""
FEATURE_DW, LAZY_DW = -1 / 3, -1.0
CROSSOVER = 60.0
"""The value of sqrt(h) alpha at which the kernel drift is 1."""
HALF_DECADES = tuple(np.arange(-2, 5.01, 0.5))
SHARPNESS = 4.0
TESTS = 200


def bent(x: np.ndarray, below: float, above: float, place: float) -> np.ndarray:
    """x**below for small x, x**above for large x, equal to 1 at ``place``."""
    s = x / place
    # A large positive power lets the larger of the two terms win, a negative one the smaller.
    power = SHARPNESS if below < above else -SHARPNESS
    return ((s ** (below * power) + s ** (above * power)) / 2) ** (1 / power)


def study(
    widths: Sequence[int] = (16, 32, 64, 128, 256),
    exponents: np.ndarray | Sequence[float] = HALF_DECADES,
    seeds: int = 3,
    noise: float = 0.05,
    depth: int = 2,
    dataset: str = "digits",
    outputs: bool = True,
    looks: int = 2,
    seed: int = 0,
) -> pd.DataFrame:
    """Rows as a store would hold them: ``looks`` rows that are running, then the last one, for each run."""
    generator = np.random.default_rng(seed)
    target = np.where(np.arange(TESTS) % 2, 1.0, -1.0)
    rows: list[dict[str, object]] = []
    for width in widths:
        for member in range(seeds):
            shift = noise * generator.normal(size=4)
            for exponent in exponents:
                x = 10.0**exponent
                rough = np.exp(shift + 0.3 * noise * generator.normal(size=4))
                own = _run(x, width, member, rough, depth, dataset)
                margin = 1.4 + 0.25 * np.tanh(np.log10(x / CROSSOVER))
                spread = np.sqrt(40.0 / width)
                function = target * margin + spread * generator.normal(size=TESTS)
                error = float((function * target <= 0).mean())
                rows += _looks(own, looks)
                last = {"status": "finished", "test_error": error, "test_targets": target.tolist()}
                rows.append(own | last | {"test_outputs": function.tolist() if outputs else None})
    return pd.DataFrame(rows)


def _run(x: float, width: int, member: int, rough: np.ndarray, depth: int, dataset: str) -> dict[str, object]:
    """What a finished run has measured."""
    at = np.array([x])
    return {
        "key": f"{dataset}-{depth}-{width}-{member}-{x:.6g}",
        "dataset": dataset,
        "task": "parity",
        "n": 500,
        "depth": depth,
        "law": "ntk",
        "width": width,
        "alpha": x / np.sqrt(width),
        "seed": member,
        "member": member,
        "step": 100,
        "time": 10.0,
        "status": "running",
        "loss": 0.01,
        "seconds": 1.5,
        "dK": float(bent(at, FEATURE_DK, LAZY_DK, CROSSOVER)[0] * rough[0]),
        "dW": float(bent(at, FEATURE_DW, LAZY_DW, CROSSOVER)[0] * rough[1] / np.sqrt(width)),
        "t1": float(3 * x / (1 + (x / 3)) * rough[2]),
        "t2": float(5.0 * rough[3]),
    }


def _looks(last: dict[str, object], count: int) -> list[dict[str, object]]:
    """Earlier rows of the same run: less time, less drift, no outputs yet."""
    return [last | {"step": 10**i, "dK": 0.01 * (i + 1), "t1": None, "t2": None} for i in range(count)]
