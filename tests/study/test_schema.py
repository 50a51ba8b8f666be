"""Columns have the declared types, whatever the values are."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pytest

from regimes.core.error import UserError
from regimes.study.run import Run
from regimes.study.schema import schema_of, table_of
from tests.study.toy import Toy


class Wide(Run):
    columns: ClassVar[dict[str, Any]] = {
        "loss": float,
        "count": int,
        "good": bool,
        "word": str,
        "curve": list[float],
        "parts": list[int],
    }

    law: Literal["ntk", "mup"] = "ntk"
    size: int | None = None
    classes: tuple[int, int] | str = "all"
    pair: tuple[int, int] = (3, 8)

    @classmethod
    def perform(cls, runs: Any, data: Any, tick: Any) -> Any:
        return iter(())


FULL = {"loss": 1.0, "count": 2, "good": True, "word": "a", "curve": [1.0], "parts": [1]}


def test_types_follow_the_declaration() -> None:
    kinds = {field.name: str(field.type) for field in schema_of([Wide])}
    assert list(kinds)[:2] == ["key", "run"]
    assert {name: kinds[name] for name in ("law", "size", "classes")} == {
        "law": "string",
        "size": "double",
        "classes": "string",
    }
    assert {name: kinds[name] for name in ("loss", "count", "good", "word")} == {
        "loss": "double",
        "count": "int64",
        "good": "bool",
        "word": "string",
    }
    inner = {name: str(schema_of([Wide]).field(name).type.value_type) for name in ("pair", "curve", "parts")}
    assert inner == {"pair": "int64", "curve": "double", "parts": "int64"}


def test_numbers_of_numpy_and_missing_values_fit() -> None:
    rows = [{**FULL, "loss": np.float32(0.5), "count": np.int64(3), "curve": np.ones(2)}, {"count": 4}]
    found = table_of(Wide(), rows, schema_of([Wide])).to_pylist()
    assert found[0]["loss"] == 0.5
    assert found[0]["curve"] == [1.0, 1.0]
    assert (found[1]["loss"], found[1]["curve"], found[1]["word"]) == (None, None, None)
    assert (found[0]["pair"], found[0]["classes"]) == ([3, 8], "all")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**FULL, "los": 1.0}, "`los` is not among the `columns` of Wide; did you mean 'loss'"),
        ({**FULL, "count": 1.5}, "`count` of Wide is 1.5: expected int64"),
        ({**FULL, "count": None}, "`count` of Wide is missing in a row"),
        ({**FULL, "loss": "low"}, "`loss` of Wide is 'low': expected double"),
        ({**FULL, "curve": 3.0}, "`curve` of Wide is 3.0: expected list"),
    ],
)
def test_a_row_that_does_not_fit_is_refused(row: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        table_of(Wide(), [row], schema_of([Wide]))
    assert words in str(caught.value)


def test_two_classes_share_one_schema() -> None:
    schema = schema_of([Toy, Wide])
    assert schema.field("count").type == pa.float64()  # Toy has none, and pandas no missing integer
    rows = [
        pa.Table.to_pylist(table_of(run, [row], schema))[0]
        for run, row in ((Toy(width=1), {"step": 0}), (Wide(), FULL))
    ]
    assert [row["run"] for row in rows] == ["Toy", "Wide"]
    assert (rows[0]["count"], rows[1]["count"], rows[1]["width"]) == (None, 2.0, None)


def test_two_types_for_one_column_fail_at_declaration() -> None:
    other = type("Other", (Wide,), {"columns": {"value": str}, "__module__": __name__})
    with pytest.raises(UserError, match="`value` of Other is string"):
        schema_of([Toy, other])
