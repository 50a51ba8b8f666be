"""Members that differ by their seed alone: variance of the function, error of one, error of the average."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from regimes.core.error import UserError
from regimes.report.table import named, need
from regimes.study.estimate import Estimate, jackknife

__all__ = ["ensemble", "ensemble_error", "outputs", "single_error", "variance"]

Members = Sequence[np.ndarray] | np.ndarray
"""(m, n) or (m, n * c): the outputs of each member on the test points."""


def outputs(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The members' outputs (m, n * c) and the targets (n,) of rows that share a test set.

    Raises:
        UserError: if no row has outputs, or the rows come from different test sets.
    """
    found = need(rows, ["test_outputs", "test_targets"])
    sizes = set(found["test_outputs"].map(len))
    targets = np.asarray(found["test_targets"].iloc[0], dtype=np.float64)
    same = len(sizes) == 1 and all(np.array_equal(y, targets) for y in found["test_targets"].tolist())
    if not same:
        raise UserError(
            f"`rows` come from different test sets (output sizes {sorted(sizes)}): expected one "
            "for all members; split by data set first"
        )
    return np.stack([np.asarray(row, dtype=np.float64) for row in found["test_outputs"]]), targets


def variance(members: Members) -> float:
    r"""Spread of the function over ``m`` members, summed over outputs:

    .. math:: \mathrm{Var} F = \frac{1}{m - 1} \sum_i \operatorname{mean}_x \big(F_i(x) - \bar F(x)\big)^2

    >>> variance([np.array([1.0, 1.0]), np.array([3.0, 1.0])])
    1.0
    """
    stack = np.stack(list(members))
    return float(np.var(stack, axis=0, ddof=1).mean()) if len(stack) > 1 else float("nan")


def _wrong(values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(..., n) whether the decision is wrong: by the sign for targets +-1, else by the largest output."""
    if values.shape[-1] == len(targets):
        return values * targets <= 0
    classes = values.reshape(*values.shape[:-1], len(targets), -1)
    return classes.argmax(-1) != targets.astype(int)


def single_error(members: Members, targets: np.ndarray) -> float:
    """The mean over members of their test error."""
    return float(_wrong(np.stack(list(members)), targets).mean())


def ensemble_error(members: Members, targets: np.ndarray) -> float:
    """The test error of the members' average, ``sign(mean_i F_i)``."""
    return float(_wrong(np.stack(list(members)).mean(0), targets).mean())


def ensemble(frame: pd.DataFrame, by: Sequence[str] | str, level: float = 0.95) -> pd.DataFrame:
    """Variance, single error and ensemble error within each group, with jackknife intervals over the members.

    The variance has its interval on the logarithmic scale; it needs three members for one. Errors stay in [0,
    1].

    Arguments:
        frame: tidy rows with ``test_outputs`` and ``test_targets``.
        by: column or columns that make a group; the rows of a group are its members.
        level: coverage of the intervals.

    Returns:
        columns ``by``, ``members``, and for each of ``variance``, ``single``, ``ensemble`` the value and,
        with the suffixes ``_low`` and ``_high``, its interval. Groups of one member are left out.

    Raises:
        UserError: if no group has two members.
    """
    keys = [by] if isinstance(by, str) else list(by)
    lines = []
    for values, part in need(frame, [*keys, "test_outputs", "test_targets"]).groupby(keys, sort=True):
        if len(part) < 2:
            continue
        members, targets = outputs(part)
        found = {
            "variance": _spread(members, level),
            "single": _error(members, targets, single_error, level),
            "ensemble": _error(members, targets, ensemble_error, level),
        }
        line = named(keys, values) | {"members": len(members)}
        for name, one in found.items():
            line |= {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
        lines.append(line)
    if not lines:
        raise UserError(
            f"`frame` has no two members with equal {', '.join(keys)}: run more seeds (`--seeds`)"
        )
    return pd.DataFrame(lines)


def _spread(members: np.ndarray, level: float) -> Estimate:
    """The variance with its interval, nan below three members."""
    if len(members) < 3:
        return Estimate(variance(members), float("nan"), float("nan"), len(members), "too few members")
    return jackknife([members], variance, log=True, level=level)


def _error(
    members: np.ndarray, targets: np.ndarray, statistic: Callable[[Members, np.ndarray], float], level: float
) -> Estimate:
    """An error rate with its interval cut to [0, 1]."""
    one = jackknife([members], lambda some: statistic(some, targets), level=level)
    return Estimate(
        one.value, float(np.clip(one.low, 0, 1)), float(np.clip(one.high, 0, 1)), one.n, one.method
    )
