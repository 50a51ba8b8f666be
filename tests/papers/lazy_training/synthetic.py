"""Made-up rows of the lazy-training study that obey its claims."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

SEEDS = 4


def laws_obeyed() -> pd.DataFrame:
    """Every claim of the study holds in these rows, the figures of the paper where there are some."""
    random = np.random.default_rng(0)
    rows = [*_rates(), *_students(), *_images(), *_paths(), *_spectra()]
    common = {"status": "finished", "step": 10}
    frame = pd.DataFrame([common | row | {"key": str(i)} for i, row in enumerate(rows)])
    for column in ("moved", "apart", "missed", "test_loss"):
        frame[column] *= np.exp(0.01 * random.standard_normal(len(frame)))
    frame["linear_loss"] = frame["test_loss"].where(frame["tau"] >= 1)
    frame["best_loss"] = 0.7 * frame["test_loss"]
    for column in ("train_accuracy", "test_accuracy", "stability"):
        frame[column] += 0.001 * random.standard_normal(len(frame))
    return frame


def _rates() -> Iterator[dict[str, Any]]:
    for seed in range(SEEDS):
        for alpha in 2.0 ** np.arange(11):
            far = {"moved": 1 / alpha, "apart": 1 / alpha**2, "missed": 1 / alpha}
            yield {"run": "RateRun", "seed": seed, "alpha": alpha, **far}


def _students() -> Iterator[dict[str, Any]]:
    common = {"run": "StudentRun", "traced": False, "inputs": 50}
    for seed in range(SEEDS):
        for tau in (0.01, 0.1, 1.0, 3.0, 10.0):
            loss = 3.1 * min(1.0, 1.7 * tau)
            yield {**common, "seed": seed, "tau": tau, "symmetric": True, "scaling": "1", "width": 40,
                   "test_loss": loss}  # fmt: skip
        for width in (8, 128, 512):
            for scaling, loss in (("1/sqrt(m)", 0.9 * width / 512), ("1/m", 0.18)):
                yield {**common, "seed": seed, "tau": 1.0, "symmetric": False, "scaling": scaling, "width": width,
                       "test_loss": loss}  # fmt: skip


def _images() -> Iterator[dict[str, Any]]:
    told = {
        1.0: (0.99, 0.88, 0.55),
        10.0: (0.73, 0.73, 0.78),
        100.0: (0.53, 0.55, 0.99),
        1000.0: (0.52, 0.54, 0.999),
    }
    for seed in range(SEEDS):
        for dataset in ("digits", "fashion-mnist", "cifar-10"):
            for alpha, (train, test, stability) in told.items():
                yield {"run": "ImageRun", "seed": seed, "dataset": dataset, "alpha": alpha, "width_factor": 1.0,
                       "model": "conv", "train_accuracy": train, "test_accuracy": test,
                       "stability": stability}  # fmt: skip
        for alpha, train, test in ((1.0, 0.999, 0.897), (1e7, 0.61, 0.617)):
            yield {"run": "ImageRun", "seed": seed, "dataset": "cifar-10", "alpha": alpha, "width_factor": 8.0,
                   "model": "vgg", "train_accuracy": train, "test_accuracy": test, "stability": 1.0}  # fmt: skip


def _paths() -> Iterator[dict[str, Any]]:
    start = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    for tau in (0.1, 2.0):
        for step in range(5):
            yield {"run": "StudentRun", "traced": True, "inputs": 2, "symmetric": True, "scaling": "1", "width": 3,
                   "seed": 0, "tau": tau, "step": step, "status": "finished" if step == 4 else "running",
                   "neurons": (start * tau * (1 + step)).reshape(-1).tolist(), "test_loss": 0.1,
                   "teacher": [1.0, 0.0, 0.0, -1.0] if step == 4 else None}  # fmt: skip


def _spectra() -> Iterator[dict[str, Any]]:
    values = 1 / np.arange(1, 51)
    values[:10] *= 10
    for seed in range(SEEDS):
        for pixels in ("real", "random"):
            yield {"run": "SpectrumRun", "seed": seed, "dataset": "digits", "model": "conv", "n": 5, "pixels": pixels,
                   "width_factor": 1.0, "gain": 1.0, "dtype": "float64",
                   "eigenvalues": values.tolist()}  # fmt: skip
