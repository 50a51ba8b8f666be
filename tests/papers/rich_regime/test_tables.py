"""Accuracies at equal steps, costs and seconds: against a plain reading of the rows."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from regimes.core.error import UserError
from regimes.papers.rich_regime.figures import equal_budgets
from regimes.papers.rich_regime.tables import BUDGETS, SPARSE, at_equal, budgets, networks, tables
from tests.papers.rich_regime.synthetic import POLICIES, SEEDS, STEPS, claims_obeyed

BOTH = pd.concat([claims_obeyed(), claims_obeyed(network="cnn")])


def plain(frame: pd.DataFrame, policy: str, seed: int, equal: str) -> tuple[float, float]:
    """The accuracy at the budget, and the share of it that was spent, look by look."""

    def path(policy: str) -> list[tuple[float, float]]:
        own = frame.loc[(frame["run"] == "SparseRun") & (frame["policy"] == policy) & (frame["p"] == 0.2)]
        ends = own.loc[own["step"] == STEPS[-1], "seconds"].median() / STEPS[-1]
        spent = {
            "steps": lambda row: row["step"],
            "products": lambda row: row["products"],
            "passes": lambda row: row["products"] + row["forward_products"],
            "clock": lambda row: row["step"] * ends,
        }[equal]
        return [(spent(row), row["test_accuracy"]) for _, row in own.loc[own["seed"] == seed].iterrows()]

    budget, own = path("sampled")[-1][0], path(policy)
    if budget >= own[-1][0]:
        return own[-1][1], own[-1][0] / budget
    before = max(look for look in own if look[0] <= budget)
    after = min(look for look in own if look[0] > budget)
    share = math.log(budget / before[0]) / math.log(after[0] / before[0])
    return before[1] + share * (after[1] - before[1]), 1.0


@pytest.mark.parametrize("equal", BUDGETS)
@pytest.mark.parametrize("policy", ["all", "top", "ends", "sampled"])
def test_accuracy_at_a_budget_is_read_between_the_looks(policy: str, equal: str) -> None:
    names = {"all": "all layers", "top": "top only", "ends": "bottom and top", "sampled": "sampled, p = 0.2"}
    found = budgets(BOTH)
    own = found.loc[
        (found["network"] == "mlp") & (found["policy"] == names[policy]) & (found["equal"] == equal)
    ]
    assert sorted(own["seed"]) == list(range(SEEDS))
    for _, line in own.iterrows():
        accuracy, spent = plain(BOTH, policy, int(line["seed"]), equal)
        assert line["accuracy"] == pytest.approx(accuracy, rel=1e-12)
        assert line["spent"] == pytest.approx(spent, rel=1e-12)


def test_equal_steps_are_the_ends_and_what_is_judged() -> None:
    """At equal steps nothing is read between looks: the accuracy is that of the last row."""
    found = budgets(BOTH)
    ends = BOTH.loc[(BOTH["run"] == "ConvSparseRun") & (BOTH["step"] == STEPS[-1])]
    own = found.loc[(found["network"] == "cnn") & (found["equal"] == "steps")]
    assert sorted(own["accuracy"]) == pytest.approx(sorted(ends["test_accuracy"]))
    assert set(own["spent"]) == {1.0}


def test_the_table_has_a_line_for_each_network_and_policy() -> None:
    found = at_equal(BOTH)
    assert len(found) == 2 * len(POLICIES) and not found.isna().any(axis=None)
    own = found.loc[found["network"] == "mlp"].set_index("layers that move")
    assert own.loc["all layers", "backward cost"] == own.loc["all layers", "seconds"] == "1.00"
    assert own.loc["sampled, p = 0.2", "backward cost"] == "0.24"
    assert own.loc["sampled, p = 0.2", "cost of both"] == f"{(0.8 + 0.24) / 1.8:.2f}"
    assert own.loc["sampled, p = 0.2", "seconds"] == "0.62"
    assert own.loc["top only", "equal backward cost"].endswith("*")
    assert not own.loc["all layers", "equal backward cost"].endswith("*")
    assert [entry[0] for entry in tables(BOTH)] == ["equal_budgets"]


def test_what_was_not_run_is_said() -> None:
    with pytest.raises(UserError, match=r"'sampled, p = 0.2', whose cost is the budget"):
        budgets(BOTH.loc[(BOTH["policy"] != "sampled") | (BOTH["p"] != 0.2)])
    looked = BOTH.loc[BOTH["run"] == "ActivityRun"]
    assert tables(looked) == [] and not list(networks(looked, SPARSE))
    with pytest.raises(UserError, match="policy of layers"):
        budgets(looked)


def test_a_seed_without_the_judged_policy_is_left_out() -> None:
    part = BOTH.loc[~((BOTH["policy"] == "sampled") & (BOTH["p"] == 0.2) & (BOTH["seed"] == 1))]
    assert 1 not in set(budgets(part)["seed"])
    assert equal_budgets(part).axes[0].get_title(loc="left") == "digits, mlp"
