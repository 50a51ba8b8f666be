"""What Geiger et al. claim of convolutional networks (R13) and of frozen kernels (R14); ranges set before any run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd

from regimes.core.error import UserError
from regimes.core.estimate import Estimate, jackknife, mean
from regimes.papers.feature_lazy import CARD
from regimes.papers.feature_lazy.tables.frozen import by_seed, networks, regimes
from regimes.report.claim import Claim
from regimes.report.ensemble import ensemble_error, outputs

__all__ = ["frozen_claims"]

Statistic = Callable[[pd.DataFrame], Estimate]


def frozen_claims(frame: pd.DataFrame) -> list[Claim]:
    """R13 and R14 of every network that was trained with its frozen kernels; none without such rows."""
    try:
        parts = networks(frame)
    except UserError:
        return []
    found: list[Claim] = []
    for name, rows in parts:
        label = name.replace(", ", "-").replace(" = ", "=")
        if set(rows["model"]) == {"cnn"}:
            found += _regimes(label, name, rows)
        found += _kernels(label, name, rows)
    return found


def _regimes(label: str, name: str, rows: pd.DataFrame) -> list[Claim]:
    """R13: one network, and the average of all."""
    return [
        _claim(
            f"R13/{label}",
            f"a convolutional network is better in the feature regime: its test error over the lazy one ({name})",
            "1.7 % over 3.7 %",
            (None, 0.8),
            partial(_ratio, rows),
        ),
        _claim(
            f"R13/ensemble/{label}",
            f"and so is an ensemble of them: test error of the averages, feature over lazy ({name})",
            "1 over 1.7",
            (None, 0.8),
            partial(_ensemble_ratio, rows),
        ),
    ]


def _kernels(label: str, name: str, rows: pd.DataFrame) -> list[Claim]:
    """R14: the kernel at the end, the kernel at the start."""
    return [
        _claim(
            f"R14/final/{label}",
            "in the feature regime the frozen kernel of the end gives the test error of the network: difference in "
            f"percentage points ({name})",
            "equal",
            (-1.0, 1.0),
            partial(_difference, rows, "feature", "final_error"),
        ),
        _claim(
            f"R14/initial/{label}",
            "in the lazy regime the frozen kernel of the start gives the test error of the network: difference in "
            f"percentage points ({name})",
            "equal",
            (-0.5, 0.5),
            partial(_difference, rows, "lazy", "initial_error"),
        ),
    ]


def _claim(
    id: str, sentence: str, reference: str, allowed: tuple[float | None, float | None], statistic: Statistic
) -> Claim:
    return Claim(
        id, CARD.name, sentence, reference, "paper text (version 1)", allowed, statistic, unit="frozen"
    )


def _difference(rows: pd.DataFrame, regime: str, column: str, _frame: pd.DataFrame) -> Estimate:
    """The mean over seeds of the error from a frozen kernel less that of the network it is the kernel of."""
    part = regimes(rows)[regime]
    return mean((by_seed(part, column) - by_seed(part, "test_error")).dropna())


def _ratio(rows: pd.DataFrame, _frame: pd.DataFrame) -> Estimate:
    """The mean error in the feature regime over that in the lazy one, by the jackknife over seeds common to both."""
    feature, lazy = (by_seed(part, "test_error") for part in regimes(rows).values())
    both = pd.concat([feature, lazy], axis=1, join="inner").to_numpy()
    return _paired(list(both), lambda some: float(some[:, 0].mean()), lambda some: float(some[:, 1].mean()))


def _ensemble_ratio(rows: pd.DataFrame, _frame: pd.DataFrame) -> Estimate:
    """The same of the averages of all members."""
    sides = regimes(rows)
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
