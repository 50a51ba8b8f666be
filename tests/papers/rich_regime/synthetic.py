"""Made-up rows of the rich-regime study that obey its claims."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from regimes.papers.rich_regime.runs import ABOVE
from regimes.papers.rich_regime.tables import ACTIVITY, SPARSE

SEEDS = 4
WIDTHS = (16, 32, 64, 128)
STEPS = (1, 10, 100, 400)


def claims_obeyed(dataset: str = "digits", network: str = "mlp") -> pd.DataFrame:
    """Every claim of the study holds in these rows of one network."""
    random = np.random.default_rng(0)
    rows = [row | {"run": ACTIVITY[network].__name__} for row in _activity()]
    rows += [row | {"run": SPARSE[network].__name__} for row in _sparse()]
    common = {"status": "finished", "dataset": dataset, "n": 6000, "batch_size": 300}
    frame = pd.DataFrame([common | row for row in rows])
    frame["key"] += network
    for column in ("top_moved", "median_change"):
        frame[column] *= np.exp(0.02 * random.standard_normal(len(frame)))
    for column in ("test_accuracy", "reset_active", "reset_layered", "reset_random", "reset_least"):
        frame[column] += 0.0005 * random.standard_normal(len(frame))
    return frame


def _activity() -> Iterator[dict[str, Any]]:
    for seed in range(SEEDS):
        for law in ("standard", "mup"):
            for width in WIDTHS:
                changes = [0.05 * share**-0.4 for share in ABOVE]
                bottom = 1 + 0.01 * width + 0.001 * seed
                yield {
                    "key": f"a{seed}{law}{width}", "seed": seed, "law": law, "width": width,
                    "step": 300, "top_moved": 0.2, "median_change": 0.066, "changes": changes,
                    "layer_enrichment": [bottom, 0.8, 0.7, 0.6], "reset_none": 0.05, "reset_all": 0.9,
                    "reset_active": 0.1, "reset_layered": 0.06, "reset_random": 0.055, "reset_least": 0.05,
                    "test_accuracy": 0.95, "train_accuracy": 1.0,
                }  # fmt: skip


POLICIES = {
    ("all", 0.2): (0.95, 1.0),
    ("top", 0.2): (0.85, 0.05),
    ("ends", 0.2): (0.945, 0.7),
    ("sampled", 0.1): (0.94, 0.14),
    ("sampled", 0.2): (0.949, 0.24),
}


LAYERS = {
    "layer_change": [0.1, 0.2, 0.3, 0.4],
    "layer_moved": [0.4, 0.3, 0.2, 0.1],
    "layer_share": [0.7, 0.1, 0.1, 0.1],
}


def _sparse() -> Iterator[dict[str, Any]]:
    for seed in range(SEEDS):
        for (policy, p), (end, cost) in POLICIES.items():
            for step in STEPS:
                yield {
                    "key": f"s{seed}{policy}{p}", "seed": seed, "policy": policy, "p": p,
                    "law": "standard", "width": 64, "top": 1, "step": step,
                    "status": "finished" if step == STEPS[-1] else "running",
                    "test_accuracy": end - 0.3 / step, "train_accuracy": 1.0, "seconds": 10 * cost + 10,
                    "products": 1e6 * step * cost, "full_products": 1e6 * step, "speedup": 1 / cost,
                    "forward_products": 0.8e6 * step, **LAYERS,
                }  # fmt: skip
