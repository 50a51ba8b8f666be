"""What Geiger et al. claim of convolutional networks (R13) and of frozen kernels (R14); ranges set before any run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd

from regimes.core.error import UserError
from regimes.core.estimate import Estimate, jackknife, mean
from regimes.papers.feature_lazy import CARD
from regimes.papers.feature_lazy.runs import FrozenRun
from regimes.papers.feature_lazy.tables.frozen import NETWORK, networks, percent_by_seed, regimes
from regimes.report.claim import Claim, Scope
from regimes.report.ensemble import ensemble_error, outputs
from regimes.report.table import shared

__all__ = ["frozen_claims"]

# Of fewer images a convolutional network learns no features that the lazy one lacks.
SCOPE = Scope(
    {"n": 1000},
    "the ratio falls with the number of training images, from 1.02 for 192 and 0.91 for 256 to 0.84 for 1000; the "
    "paper has 5000",
)


def frozen_claims(frame: pd.DataFrame) -> list[Claim]:
    """R13 and R14 of every network that was trained with its frozen kernels; none without such rows."""
    try:
        parts = networks(frame)
    except UserError:
        return []
    found: list[Claim] = []
    for name, table in parts:
        label = name.replace(", ", "-").replace(" = ", "=")
        about = {"run": FrozenRun.__name__, **shared(table, NETWORK)}
        one = partial(Claim, paper=CARD.name, origin="paper text (version 1)", unit="frozen", rows=about)
        if about["model"] == "cnn":
            found += _regimes(one, label, name)
        found += _kernels(one, label, name)
    return found


def _regimes(one: Callable[..., Claim], label: str, name: str) -> list[Claim]:
    """R13: one network, and the average of all."""
    return [
        one(
            id=f"R13/{label}",
            claim="a convolutional network is better in the feature regime: its test error over the lazy one "
            f"({name})",
            reference="1.7 % over 3.7 %",
            range=(None, 0.8),
            statistic=_ratio,
            truth=1.7 / 3.7,
            scope=SCOPE,
        ),
        one(
            id=f"R13/ensemble/{label}",
            claim=f"and so is an ensemble of them: test error of the averages, feature over lazy ({name})",
            reference="1 over 1.7",
            range=(None, 0.8),
            statistic=_ensemble_ratio,
            truth=1 / 1.7,
            scope=SCOPE,
        ),
    ]


def _kernels(one: Callable[..., Claim], label: str, name: str) -> list[Claim]:
    """R14: the kernel at the end; and that at the start, which is the network in the lazy limit: a control."""
    return [
        one(
            id=f"R14/final/{label}",
            claim="in the feature regime the frozen kernel of the end gives the test error of the network: difference "
            f"in percentage points ({name})",
            reference="equal",
            range=(-1.0, 1.0),
            statistic=partial(_difference, "feature", "final_error"),
            truth=0.0,
        ),
        one(
            id=f"R14/initial/{label}",
            claim="in the lazy regime the frozen kernel of the start gives the test error of the network: difference "
            f"in percentage points ({name})",
            reference="equal",
            range=(-0.5, 0.5),
            statistic=partial(_difference, "lazy", "initial_error"),
            truth=0.0,
            kind="control",
        ),
    ]


def _sides(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The finished runs of one network in either regime."""
    ((_, table),) = networks(rows)
    return regimes(table)


def _difference(regime: str, column: str, rows: pd.DataFrame) -> Estimate:
    """The mean over seeds of the error from a frozen kernel less that of the network it is the kernel of."""
    part = _sides(rows)[regime]
    return mean((percent_by_seed(part, column) - percent_by_seed(part, "test_error")).dropna())


def _ratio(rows: pd.DataFrame) -> Estimate:
    """The mean error in the feature regime over that in the lazy one, by the jackknife over seeds common to both."""
    feature, lazy = (percent_by_seed(part, "test_error") for part in _sides(rows).values())
    both = pd.concat([feature, lazy], axis=1, join="inner").to_numpy()
    return _paired(list(both), lambda some: float(some[:, 0].mean()), lambda some: float(some[:, 1].mean()))


def _ensemble_ratio(rows: pd.DataFrame) -> Estimate:
    """The same of the averages of all members."""
    sides = _sides(rows)
    seeds = sorted(set(sides["feature"]["seed"]) & set(sides["lazy"]["seed"]))
    tables = [part.set_index("seed").loc[seeds] for part in sides.values()]
    if not seeds:
        raise UserError("`frame` has no seed in both regimes: let the study finish")
    (feature, targets), (lazy, _) = (outputs(table) for table in tables)
    both = np.stack([feature, lazy], axis=1)
    return _paired(
        list(both),
        lambda some: ensemble_error(some[:, 0], targets),
        lambda some: ensemble_error(some[:, 1], targets),
    )


def _paired(
    members: Sequence[np.ndarray],
    above: Callable[[np.ndarray], float],
    below: Callable[[np.ndarray], float],
) -> Estimate:
    """A ratio of two errors of the same members, by the jackknife over them."""
    if not members:
        raise UserError("`frame` has no seed in both regimes: let the study finish")

    def ratio(some: Sequence[np.ndarray]) -> float:
        stack = np.stack(list(some))
        if not below(stack) > 0:
            raise UserError(
                "`frame`: no test point is decided wrongly in the lazy regime; test on more points"
            )
        return above(stack) / below(stack)

    return jackknife([members], ratio)
