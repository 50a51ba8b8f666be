"""Rows to what claims and figures share: the two networks, policies of layers by name, accuracies at equal budgets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.estimate import array, mean
from regimes.papers.rich_regime.runs import ActivityRun, ConvActivityRun, ConvSparseRun, SparseRun
from regimes.report.table import ended, named, need, rows_of
from regimes.study import Run

__all__ = [
    "ACTIVITY",
    "BUDGETS",
    "SAMPLED",
    "SPARSE",
    "TABLES",
    "at_equal",
    "budgets",
    "networks",
    "policy_name",
    "tables",
]

SAMPLED = 0.2
"""The probability that the sampled policy is judged at."""
ACTIVITY: Mapping[str, type[Run]] = {"mlp": ActivityRun, "cnn": ConvActivityRun}
"""The first experiment by the network."""
SPARSE: Mapping[str, type[Run]] = {"mlp": SparseRun, "cnn": ConvSparseRun}
"""The second experiment by the network."""
BUDGETS: Mapping[str, str] = {
    "steps": "equal steps",
    "products": "equal backward cost",
    "passes": "equal forward and backward cost",
    "clock": "equal seconds",
}
"""What may be equal between policies: column -> in words."""


@checked
def networks(frame: pd.DataFrame, runs: Mapping[str, type[Run]]) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Data set, network and rows of each pair that is there.

    Args:
        frame: rows of a store.
        runs: :data:`ACTIVITY` or :data:`SPARSE`.
    """
    for network, run in runs.items():
        rows = rows_of(frame, run)
        for dataset in sorted(set(rows["dataset"])) if len(rows) else ():
            yield dataset, network, rows.loc[rows["dataset"] == dataset]


@checked
def policy_name(policy: str, p: float) -> str:
    """A policy in words.

    >>> policy_name("ends", 0.2), policy_name("sampled", 0.2)
    ('bottom and top', 'sampled, p = 0.2')
    """
    names = {"all": "all layers", "top": "top only", "ends": "bottom and top"}
    return names.get(policy, f"sampled, p = {p:g}")


@checked
def budgets(frame: pd.DataFrame) -> pd.DataFrame:
    """The test accuracy of each policy of layers at equal budgets, seed by seed.

    The budget is what the sampled policy with p = :data:`SAMPLED` has spent at its end. Between two looks accuracy
    counts as linear in the logarithm of what was spent. A policy that has ended before has spent less: it counts with
    its end, and ``spent`` says which share of the budget that was. Costs are counted in products; seconds are those of
    the whole runs, looks with them, as the machine took them: the median of a policy over its seeds.

    Arguments:
        frame: rows of a store with the policies of layers.

    Returns:
        A row for each data set, network, policy, seed and budget of :data:`BUDGETS` (``equal``): ``accuracy``, and
        ``spent``, the share of the budget.

    Raises:
        UserError: if no policy of layers is finished, or the sampled one is not.
    """
    columns = ["dataset", "network", "policy", "seed", "equal", "accuracy", "spent"]
    found = [
        (dataset, network, *line)
        for dataset, network, rows in networks(need(frame, "run"), SPARSE)
        for line in _at_budgets(_spending(rows))
    ]
    if not found:
        raise UserError("`frame` has no finished run of a policy of layers: let the study finish")
    return pd.DataFrame(found, columns=columns)


def _spending(rows: pd.DataFrame) -> pd.DataFrame:
    """The looks of finished runs, with what was spent until then of each kind."""
    ends = ended(rows, ["test_accuracy", "products", "forward_products"])
    pace = (array(ends["seconds"]) / array(ends["step"])).tolist()
    names = [policy_name(*each) for each in zip(rows["policy"], rows["p"], strict=True)]
    rows = rows.assign(name=names)
    ends = ends.assign(pace=pace, name=rows.loc[ends.index, "name"])
    paces = ends.groupby("name")["pace"].median()
    looks = rows.loc[rows["key"].isin(ends["key"]) & (array(rows["step"]) > 0)]
    return looks.assign(
        steps=looks["step"],
        passes=array(looks["products"]) + array(looks["forward_products"]),
        clock=array(looks["step"]) * array(looks["name"].map(paces)),
    )


def _at_budgets(looks: pd.DataFrame) -> Iterator[tuple[str, float, str, float, float]]:
    """Policy, seed, budget, accuracy and share of the budget."""
    judged = policy_name("sampled", SAMPLED)
    whole = looks.loc[looks["name"] == judged].groupby("seed")[list(BUDGETS)].max()
    if whole.empty:
        raise UserError(f"`frame` has no finished run of the policy '{judged}', whose cost is the budget")
    for group, own in looks.groupby(["name", "seed"]):
        name, seed = named(["name", "seed"], group).values()
        if seed not in whole.index:
            continue
        path = own.sort_values("step")
        for equal in BUDGETS:
            budget, spent = float(whole.loc[seed, equal]), np.log(array(path[equal]))
            accuracy = float(np.interp(np.log(budget), spent, array(path["test_accuracy"])))
            yield str(name), float(seed), equal, accuracy, min(1.0, float(array(path[equal])[-1]) / budget)


@checked
def at_equal(frame: pd.DataFrame) -> pd.DataFrame:
    """The table of :func:`budgets` as text: mean test accuracy in percent with the half-width of its interval.

    Beside it what the same steps cost, over those of all layers: backward passes, both passes, seconds; and the
    training accuracy after all steps. A star: the policy had ended before the budget was spent.

    Arguments:
        frame: rows of a store with the policies of layers.
    """
    found, lines = budgets(frame), []
    keys = ["dataset", "network", "policy"]
    for group, own in found.groupby(keys, sort=False):
        line = named(keys, group)
        for equal, words in BUDGETS.items():
            part = own.loc[own["equal"] == equal]
            one = mean(100 * array(part["accuracy"]))
            star = "*" if float(part["spent"].mean()) < 0.999 else ""
            line[words] = f"{one.value:.1f} ± {(one.high - one.low) / 2:.1f}{star}"
        lines.append(line | _costs(frame, **named(keys, group)))
    return pd.DataFrame(lines).rename(columns={"dataset": "data", "policy": "layers that move"})


def _costs(frame: pd.DataFrame, dataset: str, network: str, policy: str) -> dict[str, str]:
    """What the steps of a policy cost over those of all layers, and where training ended."""
    rows = ended(frame.loc[frame["dataset"] == dataset], "products", SPARSE[network])
    names = [policy_name(*each) for each in zip(rows["policy"], rows["p"], strict=True)]
    own, all_layers = (rows.loc[[each == which for each in names]] for which in (policy, "all layers"))
    forward, full = float(array(own["forward_products"]).mean()), float(array(own["full_products"]).mean())
    backward = float(array(own["products"]).mean())
    seconds = float(own["seconds"].median()) / float(all_layers["seconds"].median())
    return {
        "backward cost": f"{backward / full:.2f}",
        "cost of both": f"{(forward + backward) / (forward + full):.2f}",
        "seconds": f"{seconds:.2f}",
        "training accuracy": f"{100 * float(array(own['train_accuracy']).mean()):.1f}",
    }


TABLES = (
    (
        "equal_budgets",
        "Policies of layers at equal steps, costs and seconds",
        at_equal,
        "Test accuracy in percent, mean over seeds with the half-width of its 95 % interval: after the same steps; at "
        "the cost of the backward passes that the sampled policy has at its end; at its cost of forward and backward "
        "passes; and after its seconds. Costs are counted products and the same on every machine; seconds are those of "
        "the machine of this study, with all else it had to do, and no verdict rests on them. A star: the policy had "
        "ended before. Then what the same steps take, over those of all layers, and the accuracy on the training "
        "images after all steps: where it is low, that policy had not come to an end.",
    ),
)


@checked
def tables(frame: pd.DataFrame) -> list[Any]:
    """The tables of the rows there are."""
    return list(TABLES) if any(True for _ in networks(frame, SPARSE)) else []
