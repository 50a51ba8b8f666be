"""Rows to tables: those that have a value, the last one of each run, means over seeds within groups."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.estimate import Numbers, array, mean
from regimes.study.run import Run

__all__ = ["by_seed", "ended", "filled", "last", "named", "need", "rows_of", "select", "shared", "summary"]


@checked
def need(frame: pd.DataFrame, columns: str | Sequence[str], name: str = "frame") -> pd.DataFrame:
    """The rows that have a value in each of ``columns`` (one name, or several); ``name`` is that of the rows in errors.

    Raises:
        UserError: if a column is missing or no row is left.
    """
    columns = [columns] if isinstance(columns, str) else list(columns)
    if missing := [each for each in columns if each not in frame.columns]:
        raise UserError(
            f"`{name}` ({len(frame)} rows) has no column {', '.join(map(repr, missing))}: "
            "expected the rows of a study that measures it"
        )
    found = frame.dropna(subset=columns)
    if found.empty:
        raise UserError(
            f"`{name}` has {len(frame)} rows, none with {', '.join(columns)}: let the study finish some runs"
        )
    return found


@checked
def rows_of(frame: pd.DataFrame, run: type[Run]) -> pd.DataFrame:
    """The rows of one Run class; none of a frame without rows.

    Raises:
        UserError: if rows do not say of which class they are.
    """
    return need(frame, "run").loc[lambda found: found["run"] == run.__name__] if len(frame) else frame


@checked
def select(frame: pd.DataFrame, rows: Mapping[str, Any]) -> pd.DataFrame:
    """The rows that have these values.

    Arguments:
        frame: all rows.
        rows: column -> value, or a collection of values; None stands for a missing one.

    Raises:
        UserError: if there are rows, but not such a column.

    >>> frame = pd.DataFrame({"width": [8, 16, 32], "pca": [10.0, None, None]})
    >>> select(frame, {"width": (8, 16), "pca": None})["width"].tolist()
    [16]
    """
    for name, wanted in rows.items():
        if name not in frame.columns:
            if frame.empty:
                break
            raise UserError(f"`rows`: the rows have no column {name!r}")
        values = list(wanted) if isinstance(wanted, Collection) and not isinstance(wanted, str) else [wanted]
        there = frame[name].isin([value for value in values if value is not None])
        frame = frame.loc[there | (frame[name].isna() & (None in values))]
    return frame


@checked
def shared(rows: pd.DataFrame, columns: Sequence[str]) -> dict[str, Any]:
    """Column -> the value of all these rows, None where it is missing; columns that are not there are left out.

    Raises:
        UserError: if there are no rows, or they differ.

    >>> shared(pd.DataFrame({"width": [8, 8], "pca": [None, None]}), ["width", "pca", "size"])
    {'width': 8, 'pca': None}
    """
    if rows.empty:
        raise UserError("`rows` has no rows: expected some that share their values")
    found = {}
    for name in columns:
        if name not in rows.columns:
            continue
        values = rows[name].drop_duplicates().tolist()
        if len(values) != 1:
            raise UserError(f"`rows` have {len(values)} values of {name!r}: expected one")
        found[name] = None if pd.isna(values[0]) else values[0]
    return found


@checked
def last(frame: pd.DataFrame) -> pd.DataFrame:
    """The last row of each run that has come to some end: finished, diverged or stopped."""
    frame = need(frame, ["status", "key"]) if len(frame) else frame.assign(status=[], key=[])
    return frame.loc[frame["status"] != "running"].drop_duplicates(subset=["key"], keep="last")


@checked
def ended(frame: pd.DataFrame, columns: str | Sequence[str], run: type[Run] | None = None) -> pd.DataFrame:
    """The last rows of the finished runs that have a value in each of ``columns``; of one class, if ``run`` is given.

    Raises:
        UserError: if a column is missing or no row is left.
    """
    rows = last(frame if run is None else rows_of(need(frame, "run"), run))
    return need(rows.loc[rows["status"] == "finished"], columns)


@checked
def by_seed(rows: pd.DataFrame, column: str, where: Mapping[str, Any]) -> pd.Series:
    """A column by seed, of the rows that have these values; what is missing is left out.

    Raises:
        UserError: if a column is missing, or no row has the values.

    >>> rows = pd.DataFrame({"seed": [0, 1, 0], "alpha": [1.0, 1.0, 2.0], "loss": [0.5, 0.25, 9.0]})
    >>> by_seed(rows, "loss", {"alpha": 1.0}).to_dict()
    {0.0: 0.5, 1.0: 0.25}
    """
    rows = need(rows, ["seed", *where], "rows")
    for name, value in where.items():
        rows = rows.loc[rows[name] == value]
    if rows.empty:
        words = ", ".join(f"{name} = {value}" for name, value in where.items())
        raise UserError(f"`frame` has no finished run at {words}: let the study finish")
    found = need(rows, column, "rows")
    return pd.Series(array(found[column]), index=array(found["seed"]))


def keys_of(by: Sequence[str] | str) -> list[str]:
    """The columns that make a group, at least one."""
    keys = [by] if isinstance(by, str) else list(by)
    if not keys:
        raise UserError("`by`: names no column, expected at least one that makes a group")
    return keys


@checked
def named(keys: Sequence[str], values: Any) -> dict[str, Any]:
    """The label of a group as column -> value."""
    if not isinstance(values, tuple | list) or len(keys) != len(values):
        raise UserError(
            f"`values`: got {values!r}, expected one for each of {', '.join(keys) or 'no columns'}"
        )
    return dict(zip(keys, values, strict=True))


@checked
def filled(frame: pd.DataFrame) -> list[str]:
    """The columns that have a value somewhere."""
    return [name for name in frame.columns if not frame[name].isna().to_numpy().all()]


@checked
def summary(
    frame: pd.DataFrame, by: Sequence[str] | str, column: str, *, log: bool = False, level: float = 0.95
) -> pd.DataFrame:
    """Mean of ``column`` over seeds within each group, with its interval.

    The seed is the unit: several rows of one seed in one group are averaged first. The interval is Student's
    t with ``n - 1`` degrees of freedom (see :func:`regimes.core.estimate.mean`), nan where there is a
    single seed.

    Arguments:
        frame: tidy rows.
        by: column or columns that make a group.
        column: what to average; rows without it are left out.
        log: the geometric mean, for quantities that live on a logarithmic scale.
        level: coverage of the interval.

    Returns:
        columns ``by``, ``mean``, ``low``, ``high``, ``n`` (seeds), sorted by ``by``.

    >>> rows = pd.DataFrame({"width": [8, 8, 8], "seed": [0, 1, 2], "dK": [1.0, 2.0, 3.0]})
    >>> summary(rows, "width", "dK")[["width", "mean", "n"]].values.tolist()
    [[8.0, 2.0, 3.0]]
    """
    keys = keys_of(by)
    found = need(frame, [*keys, column])
    lines = []
    for values, part in found.groupby(keys, sort=True):
        sample: Numbers = part[column]
        if "seed" in part.columns and "seed" not in keys:
            sample = [float(array(own[column]).mean()) for _, own in part.groupby("seed")]
        one = mean(sample, log=log, level=level)
        lines.append({**named(keys, values), "mean": one.value, "low": one.low, "high": one.high, "n": one.n})
    return pd.DataFrame(lines)
