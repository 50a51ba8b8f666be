"""Members that differ by their seed alone: variance of the function, error of one, error of the average."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from regimes import measure
from regimes.core.batch import check_finite
from regimes.core.check import checked
from regimes.core.decision import wrong
from regimes.core.error import UserError
from regimes.core.estimate import Estimate, jackknife
from regimes.report.table import keys_of, named, need

__all__ = ["ensemble", "ensemble_error", "outputs", "single_error", "variance"]

Members = Sequence[np.ndarray] | np.ndarray
"""(m, n) or (m, n * c): the outputs of each member on the test points."""


@checked
def outputs(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The members' outputs (m, n * c) and the targets (n,) of rows that share a test set.

    Raises:
        UserError: if no row has outputs, or the rows come from different test sets.
    """
    found = need(rows, ["test_outputs", "test_targets"], "rows")
    sizes = set(found["test_outputs"].map(len))
    targets = np.asarray(found["test_targets"].iloc[0], dtype=np.float64)
    same = len(sizes) == 1 and all(np.array_equal(y, targets) for y in found["test_targets"].tolist())
    if not same:
        raise UserError(
            f"`rows` come from different test sets (output sizes {sorted(sizes)}): expected one "
            "for all members; split by data set first"
        )
    return np.stack([np.asarray(row, dtype=np.float64) for row in found["test_outputs"]]), targets


@checked
def variance(members: Members, samples: int | None = None) -> float:
    r"""Spread of the function over ``m`` members, summed over outputs and averaged over samples:

    .. math:: \mathrm{Var} F = \frac{1}{m - 1} \sum_i \operatorname{mean}_x \big\|F_i(x) - \bar F(x)\big\|^2

    as :func:`regimes.measure.fluctuation` has it; nan of one member.

    Arguments:
        members: their outputs.
        samples: n, the test points (default: one for each number, of a network with one output).

    Raises:
        UserError: if the numbers are not finite, or not as many for each sample.

    >>> variance([np.array([1.0, 1.0]), np.array([3.0, 1.0])])
    1.0
    >>> variance([np.array([1.0, 1.0]), np.array([3.0, 1.0])], samples=1)
    2.0
    """
    stack = _by_sample(members, samples)
    check_finite(stack, "`members`", "leave out members that diverged")
    return measure.fluctuation(stack).variance if len(stack) > 1 else float("nan")


def _by_sample(members: Members, samples: int | None) -> Tensor:
    """(m, n, c): the numbers of each member, sample by sample."""
    if isinstance(members, np.ndarray) and not members.ndim:
        raise UserError("`members`: got a single number, expected the outputs of at least one member")
    if not len(members):
        raise UserError("`members`: there are none, expected the outputs of at least one")
    stack = torch.from_numpy(np.stack([_numbers(row, "members") for row in members]))
    numbers = stack.shape[1]
    n = numbers if samples is None else samples
    if n < 1 or numbers % n:
        raise UserError(
            f"`members`: got {numbers} outputs for {n} samples, expected as many outputs for each sample"
        )
    return stack.reshape(len(stack), n, numbers // n)


def _numbers(values: Sequence[Any] | np.ndarray, name: str) -> np.ndarray:
    """The numbers as float64."""
    try:
        found = np.asarray(values)
        if found.dtype.kind == "c":
            raise TypeError("complex ones")
        return found.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"`{name}`: holds something other than real numbers ({error})") from error


def _decided(members: Members, targets: np.ndarray) -> tuple[Tensor, Tensor]:
    """Outputs (m, n, c), and targets of the kind that goes with them: a stored row holds all as floats."""
    if targets.ndim != 1:
        raise UserError(f"`targets`: got shape {targets.shape}, expected (n,), one for each sample")
    outputs, y = _by_sample(members, len(targets)), torch.from_numpy(_numbers(targets, "targets"))
    if outputs.shape[-1] == 1:
        return outputs, y
    if not bool((y == y.round()).all()):
        raise UserError("`targets`: got fractions, expected class indices, one for each sample")
    return outputs, y.long()


@checked
def single_error(members: Members, targets: np.ndarray) -> float:
    """The mean over members of their test error: the share of what is wrong by :func:`regimes.core.decision.wrong`."""
    return float(wrong(*_decided(members, targets)).double().mean())


@checked
def ensemble_error(members: Members, targets: np.ndarray) -> float:
    """The test error of the members' average, ``mean_i F_i``."""
    outputs, y = _decided(members, targets)
    return float(wrong(outputs.mean(0), y).double().mean())


@checked
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
    keys = keys_of(by)
    lines = []
    for values, part in need(frame, [*keys, "test_outputs", "test_targets"]).groupby(keys, sort=True):
        if len(part) < 2:
            continue
        members, targets = outputs(part)
        found = {
            "variance": _spread(members, len(targets), level),
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


def _spread(members: np.ndarray, samples: int, level: float) -> Estimate:
    """The variance with its interval, nan below three members."""
    if len(members) < 3:
        value = variance(members, samples)
        return Estimate(value, float("nan"), float("nan"), len(members), "too few members")
    return jackknife([members], lambda some: variance(some, samples), log=True, level=level)


def _error(
    members: np.ndarray, targets: np.ndarray, statistic: Callable[[Members, np.ndarray], float], level: float
) -> Estimate:
    """An error rate with its interval cut to [0, 1]."""
    one = jackknife([members], lambda some: statistic(some, targets), level=level)
    return Estimate(
        one.value, float(np.clip(one.low, 0, 1)), float(np.clip(one.high, 0, 1)), one.n, one.method
    )
