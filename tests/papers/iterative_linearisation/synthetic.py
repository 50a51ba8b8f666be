"""Made-up rows of the study of iterative linearisation that obey its claims."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

SEEDS = 4
STEPS = 1000
# Accuracies of network and linear model at the end, by K.
LADDER = {1: (0.9, 0.9), 10: (0.9, 0.9), 100: (0.898, 0.897), 333: (0.87, 0.86), 1000: (0.3, 0.6)}
TASKS: dict[str, dict[str, Any]] = {
    "digits-mlp": {"run": "MlpBlocks", "dataset": "digits", "loss": "squared"},
    "fashion-mnist-cnn-cross-entropy": {
        "run": "CnnBlocks",
        "dataset": "fashion-mnist",
        "loss": "cross-entropy",
    },
    "2-parity": {"run": "ParityBlocks", "order": 2, "loss": "squared", "n": 2000},
}


def claims_obeyed() -> pd.DataFrame:
    """Every claim of the study holds in these rows."""
    rows = [task | row for task in TASKS.values() for row in _blocks()]
    frame = pd.DataFrame([*rows, *_identities(), *_damping()])
    noise = np.random.default_rng(0).standard_normal((2, len(frame)))
    for column, own in zip(("network_accuracy", "linear_accuracy"), noise, strict=True):
        frame[column] += 0.0005 * own
    frame["key"] = [f"{run}{key}" for run, key in zip(frame["run"], frame["key"], strict=True)]
    return frame


def _blocks() -> Iterator[dict[str, Any]]:
    for seed in range(SEEDS):
        for period, ends in LADDER.items():
            yield from _run(f"K{period}s{seed}", seed, period, None, *ends)
        yield from _run(f"once{seed}", seed, 1, 100, 0.4, 0.85)


def _run(
    key: str, seed: int, period: int, once: int | None, network: float, linear: float
) -> Iterator[dict[str, Any]]:
    """Looks at both ends of each block."""
    length = max(period, STEPS // 10) if once is None else STEPS
    for step in [*range(0, STEPS, length), STEPS]:
        last = step == STEPS
        trained = period > 1 or once is not None
        yield {
            "key": key, "seed": seed, "period": period, "once": once, "steps": STEPS, "step": step, "lr": 0.2,
            "status": "finished" if last else "running", "network_loss": 1 / (1 + step),
            "linear_loss": 0.9 / (1 + step), "network_accuracy": network if last else None,
            "linear_accuracy": linear if last else None, "bound": None if last or not trained else 2.0,
            "kernel_moved": 50.0 / step if step and trained else None, "seconds": 1.0 if last else None,
        }  # fmt: skip


def _identities() -> Iterator[dict[str, Any]]:
    for seed in range(SEEDS):
        for kind in ("sgd", "momentum", "adam", "adamw", "linear"):
            yield {
                "run": "IdentityRun", "key": f"{kind}{seed}", "kind": kind, "seed": seed, "step": 100,
                "status": "finished", "apart": 1e-15 * (1 + seed),
            }  # fmt: skip


def _damping() -> Iterator[dict[str, Any]]:
    for seed in range(SEEDS):
        for step in (1, 10, 100, 1000):
            last = step == 1000
            yield {
                "run": "DampingRun", "key": f"d{seed}", "seed": seed, "step": step, "lr": 0.5,
                "status": "finished" if last else "running", "newton_cosine": 0.99 - 0.01 / step - 0.001 * seed,
                "newton_length": 1.2, "closed_apart": 1e-14,
                "eigenvalues": [1.0, 0.1, 0.01, 0.001] if last else None,
            }  # fmt: skip
