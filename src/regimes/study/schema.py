"""The types of the stored columns, declared by the Run classes: every file of a study has the same ones.

Types are never guessed from values: a column that is null in one run and a list in another would then have
two types, and the files of a study could not be read as one table.
"""

from __future__ import annotations

import json
import operator
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import pyarrow as pa

from regimes.core.error import UserError, nearest
from regimes.study.run import Run, canonical, shorten

__all__ = ["conform", "covers", "schema_of", "table_of", "widened"]

SCALARS = {float: pa.float64(), int: pa.int64(), bool: pa.bool_(), str: pa.string()}
FIXED = {"key": pa.string(), "run": pa.string()}


def schema_of(classes: Sequence[type[Run]]) -> pa.Schema:
    """Columns of a study: ``key``, ``run`` (class name), the fields of its Run classes, what they measure.

    ``float`` is float64, ``int`` is int64, ``list[float]`` is list<double>, ``int | None`` is float64 (pandas
    has no missing integer), a choice of words is a string, anything else is a string of JSON. An integer that
    one class of several does not have is float64 for the same reason.

    Raises:
        UserError: two classes give one column different types.
    """
    merged: dict[str, pa.DataType] = dict(FIXED)
    parts = [_columns(cls) for cls in classes]
    for cls, columns in zip(classes, parts, strict=True):
        for name, kind in columns.items():
            if merged.setdefault(name, kind) != kind:
                raise UserError(
                    f"column `{name}` of {cls.__name__} is {kind}, in another run class of the study "
                    f"{merged[name]}: give it one type or two names"
                )
    for name, kind in merged.items():
        if name not in FIXED and pa.types.is_integer(kind) and any(name not in columns for columns in parts):
            merged[name] = pa.float64()
    return pa.schema(list(merged.items()))


def table_of(run: Run, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """The rows of one run with its parameters, in the types of the study.

    Raises:
        UserError: a row has a column that is not declared, lacks an integer, or a value does not fit its
            type.
    """
    declared = type(run).columns
    for row in rows:
        for name in row:
            if name not in declared:
                raise UserError(
                    f"column `{name}` is not among the `columns` of {type(run).__name__}"
                    f"{nearest(name, declared)}; declare it with its type"
                )
    own = {"key": run.key, "run": type(run).__name__, **dict(run)}
    arrays = []
    for name, kind in zip(schema.names, schema.types, strict=True):
        values = [row.get(name) for row in rows] if name in declared else [own.get(name)] * len(rows)
        arrays.append(pa.array([_fit(name, value, kind, type(run)) for value in values], type=kind))
    return pa.Table.from_arrays(arrays, schema=schema)


def conform(table: pa.Table, schema: pa.Schema, cls: type[Run]) -> pa.Table | None:
    """The rows of a run as a study with these columns has them; None if they are those of another form of the run.

    A study that was given another run class, or whose runs measure more than they did, has columns more: they are
    null here. Integers may have become floats.
    """
    if table.schema.equals(schema):
        return table
    if not {*FIXED, *cls.model_fields} <= set(table.column_names):
        return None
    columns = []
    for name, kind in zip(schema.names, schema.types, strict=True):
        if name not in table.column_names:
            columns.append(pa.nulls(len(table), kind))
            continue
        column = table.column(name)
        widened = pa.types.is_integer(column.type) and pa.types.is_floating(kind)
        if column.type != kind and not widened:
            return None
        columns.append(column.cast(kind))
    return pa.Table.from_arrays(columns, schema=schema.with_metadata(table.schema.metadata))


def covers(table: pa.Table, schema: pa.Schema) -> bool:
    """Whether a table has every column of a study, in its type: files that do can be read as one table."""
    return table.schema.equals(schema) or all(
        column.name in table.column_names and table.schema.field(column.name).type == column.type
        for column in schema
    )


def widened(table: pa.Table, conformed: pa.Table) -> pa.Table:
    """What ``conform`` gave, and after it the columns that the study no longer has."""
    for name in table.column_names:
        if name not in conformed.column_names:
            conformed = conformed.append_column(name, table.column(name))
    return conformed


def _columns(cls: type[Run]) -> dict[str, pa.DataType]:
    fields = {name: _arrow(field.annotation) for name, field in cls.model_fields.items()}
    return fields | {name: _arrow(kind) for name, kind in cls.columns.items()}


def _arrow(kind: Any) -> pa.DataType:
    """The Arrow type of a Python annotation."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in SCALARS:
        return SCALARS[kind]
    if origin is typing.Annotated:
        return _arrow(arguments[0])
    if origin is typing.Literal:
        return _common([_arrow(type(value)) for value in arguments if value is not None])
    if origin in (typing.Union, types.UnionType):
        inner = _common([_arrow(part) for part in arguments if part is not type(None)])
        return pa.float64() if pa.types.is_integer(inner) and type(None) in arguments else inner
    if origin in (list, tuple, Sequence, typing.Sequence):
        return pa.list_(_common([_arrow(part) for part in arguments if part is not Ellipsis]))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _common([_arrow(type(member.value)) for member in kind])
    return pa.string()


def _common(kinds: Sequence[pa.DataType]) -> pa.DataType:
    distinct = set(kinds)
    if len(distinct) == 1:
        return distinct.pop()
    return pa.float64() if distinct == {pa.int64(), pa.float64()} else pa.string()


def _fit(name: str, value: Any, kind: pa.DataType, cls: type[Run]) -> Any:
    """``value`` (also of numpy or torch) as the plain Python value of an Arrow type."""
    if value is None:
        if pa.types.is_integer(kind):
            raise UserError(
                f"column `{name}` of {cls.__name__} is missing in a row: an int column is never null; "
                "give it, or declare the column float"
            )
        return None
    try:
        if pa.types.is_list(kind):
            return [_plain(item, kind.value_type) for item in value]
        return _plain(value, kind)
    except (TypeError, ValueError):
        raise UserError(f"column `{name}` of {cls.__name__} is {shorten(value)}: expected {kind}") from None


def _plain(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_floating(kind):
        return float(value)
    if pa.types.is_integer(kind):
        return operator.index(value)
    if pa.types.is_boolean(kind):
        return bool(value)
    plain = canonical(value)
    return plain if isinstance(plain, str) else json.dumps(plain, sort_keys=True)
