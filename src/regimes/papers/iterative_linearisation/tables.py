"""Rows to what claims and figures share: tasks by name, feature updates, accuracies of what was trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.estimate import array, mean
from regimes.papers.iterative_linearisation.runs import CnnBlocks, MlpBlocks, ParityBlocks
from regimes.report.table import ended, rows_of, select
from regimes.study import Run

__all__ = ["BLOCKS", "TABLES", "accuracies", "ladder", "side_by_side", "tables", "tasks", "with_updates"]

BLOCKS: Mapping[str, type[Run]] = {"mlp": MlpBlocks, "cnn": CnnBlocks, "parity": ParityBlocks}
"""Training in blocks by the network."""


@checked
def tasks(frame: pd.DataFrame) -> Iterator[tuple[str, dict[str, Any], pd.DataFrame]]:
    """Each task that was trained in blocks: its name, the values that pick its rows, and the rows.

    Args:
        frame: rows of a store.
    """
    for kind, run in BLOCKS.items():
        rows = rows_of(frame, run)
        by = ["order", "loss"] if kind == "parity" else ["dataset", "loss"]
        pairs = sorted(set(zip(*(rows[name].tolist() for name in by), strict=True))) if len(rows) else []
        for first, loss in pairs:
            name = f"{int(first)}-parity" if kind == "parity" else f"{first}-{kind}"
            picked = {"run": run.__name__, by[0]: first, "loss": loss}
            name = name if loss == "squared" else f"{name}-{loss}"
            yield name, picked, select(rows, picked)


@checked
def with_updates(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with ``updates``, U = T / K rounded up, and ``accuracy``, the test accuracy of what was trained.

    What was trained is the linear model where the anchor stays at its place until the end (U = 1, and runs that were
    linearised once); else the network, which at the end of a block is what the next anchor would be taken from.
    """
    updates = np.ceil(array(rows["steps"]) / array(rows["period"]))
    once = ~rows["once"].isna().to_numpy()
    linear = once | (updates == 1)
    accuracy = np.where(linear, array(rows["linear_accuracy"]), array(rows["network_accuracy"]))
    return rows.assign(updates=np.where(once, np.nan, updates), accuracy=accuracy)


@checked
def accuracies(rows: pd.DataFrame, *, updates: int | None = None, once: int | None = None) -> pd.Series:
    """The final test accuracy in percent by seed, of U feature updates, or of runs that were linearised once.

    Args:
        rows: of one task.
        updates: U; None, without ``once``, for K = 1.
        once: the step of the one linearisation.

    Raises:
        UserError: if no such run has finished.
    """
    done = with_updates(ended(rows, ["linear_accuracy", "network_accuracy", "period"]))
    if once is not None:
        found, words = done.loc[done["once"] == once], f"linearised once at step {once}"
    elif updates is None:
        found, words = done.loc[(done["period"] == 1) & done["once"].isna()], "K = 1"
    else:
        found, words = done.loc[done["updates"] == updates], f"U = {updates}"
    if found.empty:
        raise UserError(f"`frame` has no finished run of {words}: let the study finish")
    return pd.Series(100 * array(found["accuracy"]), index=array(found["seed"]))


@checked
def ladder(rows: pd.DataFrame) -> pd.DataFrame:
    """Final accuracies over seeds against U: ``updates``, ``period``, ``mean``, ``low``, ``high``, n; then the two.

    Args:
        rows: of one task.

    Returns:
        columns ``updates``, ``period``, and ``accuracy``, ``network`` and ``linear``, each an estimate in percent.
    """
    done = with_updates(ended(rows, ["linear_accuracy", "network_accuracy", "period"]))
    done = done.loc[done["once"].isna()]
    lines = []
    for updates, own in done.groupby("updates"):
        line: dict[str, Any] = {"updates": updates, "period": int(array(own["period"])[0])}
        columns = {"accuracy": "accuracy", "network": "network_accuracy", "linear": "linear_accuracy"}
        lines.append(
            line | {name: mean(100 * array(own[column])) for name, column in columns.items()} | {"rows": own}
        )
    return pd.DataFrame(lines)


@checked
def side_by_side(frame: pd.DataFrame) -> pd.DataFrame:
    """Network and linear model at the end of each ladder, as text, with the rate and what its blocks would bear.

    Arguments:
        frame: rows of a store with training in blocks.
    """
    lines = []
    for name, _, rows in tasks(frame):
        bounds = rows.dropna(subset=["bound"])
        for line in ladder(rows).to_dict("records"):
            own = line["rows"]
            there = bounds.loc[bounds["key"].isin(own["key"]), "bound"]
            lines.append(
                {
                    "task": name,
                    "K": line["period"],
                    "U": int(line["updates"]),
                    "network (%)": _text(line["network"]),
                    "linear model (%)": _text(line["linear"]),
                    "loss of the network": f"{float(array(own['network_loss']).mean()):.3g}",
                    "loss of the linear model": f"{float(array(own['linear_loss']).mean()):.3g}",
                    "rate": f"{float(array(own['lr'])[0]):g}",
                    "least bound at an anchor": f"{float(there.min()):.3g}" if len(there) else "",
                }
            )
    return pd.DataFrame(lines)


def _text(one: Any) -> str:
    return f"{one.value:.1f} ± {(one.high - one.low) / 2:.1f}"


TABLES = (
    (
        "side_by_side",
        "Network and linear model at the end",
        side_by_side,
        "Test accuracy in percent after the same steps at the same rate, mean over seeds with the half-width of its "
        "95 % interval: of the network at the last parameters, and of the linearisation at the last anchor at the same "
        "parameters. Then their training losses, the rate, and the least of the bounds that the linear dynamics had at "
        "the anchors that were looked at. No block was shortened and no rate lowered.",
    ),
)


@checked
def tables(frame: pd.DataFrame) -> list[Any]:
    """The tables of the rows there are."""
    return list(TABLES) if any(True for _ in tasks(frame)) else []
