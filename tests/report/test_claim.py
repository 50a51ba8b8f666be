"""The verdict follows the rule, whatever the numbers; what is written is strict JSON."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regimes.core.error import UserError
from regimes.core.estimate import array
from regimes.report.claim import (
    VERDICTS,
    Claim,
    Estimate,
    Scope,
    dumps,
    holds,
    judge,
    said,
    verdict,
    verdicts,
)
from regimes.report.power import power, units
from regimes.study.fault import StudyFault

KEYS = ["id", "paper", "claim", "value", "low", "high", "reference", "range", "verdict"]
FRAME = pd.DataFrame({"key": ["a"]})
numbers = st.floats(-1e6, 1e6)


def claim(found: Estimate | BaseException, allowed: tuple[float | None, float | None] = (0.0, 1.0)) -> Claim:
    def statistic(frame: pd.DataFrame) -> Estimate:
        if isinstance(found, BaseException):
            raise found
        return found

    return Claim("R0", "paper", "Something holds.", 0.5, "paper text", allowed, statistic)


@given(
    st.lists(numbers, min_size=3, max_size=3).map(sorted),
    st.lists(numbers, min_size=2, max_size=2, unique=True),
)
def test_rule(three: list[float], two: list[float]) -> None:
    low, value, high = three
    first, last = sorted(two)
    inside = first <= low and high <= last
    outside = high < first or low > last
    expected = "reproduced" if inside else "not reproduced" if outside else "inconclusive"
    assert verdict(Estimate(value, low, high, 3), (first, last)) == expected


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        ((None, 0.7), "reproduced"),
        ((0.3, None), "reproduced"),
        ((0.7, None), "not reproduced"),
        ((None, 0.5), "inconclusive"),
    ],
)
def test_open_ranges(allowed: tuple[float | None, float | None], expected: str) -> None:
    row = judge(claim(Estimate(0.5, 0.4, 0.6, 3), allowed), FRAME)
    assert row["verdict"] == expected
    assert row["range"] == list(allowed)


def test_infinite_ends_are_open() -> None:
    assert judge(claim(Estimate(0.5, 0.4, 0.6, 3), (-math.inf, 1.0)), FRAME)["range"] == [None, 1.0]


def test_keys_and_order() -> None:
    row = judge(claim(Estimate(0.5, 0.4, 0.6, 3, "by eye")), FRAME)
    assert list(row)[: len(KEYS)] == KEYS
    assert (row["method"], row["n"], row["origin"], row["note"]) == ("by eye", 3, "paper text", "")


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (UserError("no rows at width 64"), "no rows at width 64"),
        (KeyError("dK"), "no column 'dK'"),
        (Estimate(0.5, math.nan, math.nan, 1), "no interval"),
        (Estimate(0.5, 0.4, 1.6, 3), "across an end"),
    ],
)
def test_what_cannot_be_judged_is_inconclusive_with_a_reason(found: Estimate | Exception, word: str) -> None:
    row = judge(claim(found), FRAME)
    assert row["verdict"] == "inconclusive"
    assert word in row["note"]
    if isinstance(found, Exception):
        assert row["value"] is None


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("by zero"), SystemExit(0), RecursionError(), TypeError()]
)
def test_a_defect_is_told_with_its_place_and_its_traceback(error: BaseException) -> None:
    heard: list[StudyFault] = []
    row = judge(claim(error), FRAME, heard.append)
    assert row["verdict"] == "inconclusive"
    assert row["note"].startswith(f"`statistic` of claim R0 raised {type(error).__name__}")
    assert "(test_claim.py, line " in row["note"]
    assert [str(fault) for fault in heard] == [row["note"]]
    assert "Traceback" in heard[0].trace


VALUES: list[Any] = ["x", None, [1.0, 2.0], 1j]
COUNTS: list[Any] = ["x", None, math.nan, math.inf]
WRONG: list[Any] = [None, 3, "x", (1, 2), [], Estimate]
WRONG += [Estimate(value, 0.1, 0.2, 3) for value in VALUES] + [Estimate(0.1, 0, 0.2, n) for n in COUNTS]


@pytest.mark.parametrize("found", WRONG)
def test_a_statistic_of_another_form_is_named(found: Any) -> None:
    row = judge(claim(found), FRAME)
    assert row["verdict"] == "inconclusive"
    assert row["note"].startswith("`statistic` of claim R0")
    dumps([row])


@pytest.mark.parametrize("claims", [3, None, [3], [None], lambda frame: 3, lambda frame: 1 / 0, list])
def test_claims_of_another_form_are_named(claims: Any) -> None:
    with pytest.raises(UserError, match=r"^`claims` (raised|holds)"):
        verdicts(claims, FRAME)


@pytest.mark.parametrize(("name", "value"), [("id", 3), ("claim", None), ("origin", []), ("reference", None)])
def test_the_words_of_a_claim_are_words(name: str, value: Any) -> None:
    words = {"id": "R0", "paper": "p", "claim": "c", "reference": 1.0, "origin": "o"} | {name: value}
    with pytest.raises(UserError, match=f"^`{name}`: got"):
        Claim(**words, range=(0, 1), statistic=lambda frame: Estimate(0, 0, 0, 1))


ROWS = pd.DataFrame({
    "run": ["A", "A", "B", "B"], "width": [8, 16, 8, 16], "pca": [10.0, None, None, 10.0], "value": [1.0, 2.0, 3.0, 4.0]
})  # fmt: skip


def total(rows: pd.DataFrame) -> Estimate:
    value = float(np.sum(array(rows["value"])))
    return Estimate(value, value - 0.5, value + 0.5, max(len(rows), 2))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ({}, 10.0),
        ({"run": "A"}, 3.0),
        ({"width": (8,)}, 4.0),
        ({"run": ["A", "B"], "width": {8, 16}}, 10.0),
        ({"pca": None}, 5.0),
        ({"pca": [None, 10]}, 10.0),
        ({"run": "B", "pca": 10.0}, 4.0),
        ({"run": "C"}, 0.0),
    ],
)
def test_the_statistic_gets_the_rows_that_the_claim_is_about(rows: dict[str, Any], expected: float) -> None:
    """Whatever else is in the frame, in whatever order."""
    more = pd.concat([ROWS, ROWS.assign(run="D")]) if "run" in rows else ROWS
    for frame in (ROWS, ROWS.iloc[::-1], more):
        found = judge(replace(claim(UserError("")), statistic=total, rows=rows), frame)
        assert found["value"] == expected
        assert json.loads(dumps([found]))[0]["rows"] == found["rows"]


def test_rows_without_the_column_are_named() -> None:
    found = judge(replace(claim(UserError("")), statistic=total, rows={"depth": 2}), ROWS)
    assert found["verdict"] == "inconclusive" and "no column 'depth'" in found["note"]


WIDE = Scope({"width": 32}, "narrow ones do not tell")


@pytest.mark.parametrize("value", [-1.0, 0.5, 7.0])
def test_what_is_outside_this_scale_hangs_on_the_design_alone(value: float) -> None:
    """Whatever came out: the same verdict, with the value; and with a design that reaches it, the usual one."""
    one = replace(claim(Estimate(value, value - 0.1, value + 0.1, 3)), scope=WIDE)
    found = [judge(one, ROWS.assign(width=width)) for width in (16, 32, 64)]
    usual = "reproduced" if value == 0.5 else "not reproduced"
    assert [row["verdict"] for row in found] == ["outside this scale", usual, usual]
    assert {row["value"] for row in found} == {value}
    assert found[0]["note"] == "width = 16, and it takes 32: narrow ones do not tell"


def test_a_scope_may_count_values() -> None:
    several = replace(
        claim(Estimate(0.5, 0.4, 0.6, 3)), scope=Scope({}, "a line needs three", several={"width": 3})
    )
    found = judge(several, ROWS)
    assert (found["verdict"], found["note"]) == (
        "outside this scale",
        "2 values of width, and it takes 3: a line needs three",
    )
    more = pd.concat([ROWS, ROWS.assign(width=32)])
    assert judge(several, more)["verdict"] == "reproduced"


def test_without_rows_nothing_is_outside() -> None:
    failing = replace(claim(UserError("no rows")), scope=WIDE)
    assert judge(failing, pd.DataFrame())["verdict"] == "inconclusive"
    short = judge(failing, ROWS)
    assert short["verdict"] == "outside this scale" and short["value"] is None and "no rows" in short["note"]


def test_the_power_of_a_claim() -> None:
    """The number of the paper is the truth; words have a truth only where one is given; a control has none."""
    wide, narrow = Estimate(0.9, 0.5, 1.3, 4), Estimate(0.9, 0.85, 0.95, 4)
    for found in (wide, narrow):
        row = judge(claim(found), FRAME)
        assert row["truth"] == 0.5 and row["power"] == power(found, 0.5, (0.0, 1.0))
    assert judge(claim(narrow), FRAME)["enough"] is None
    row = judge(claim(wide), FRAME)
    assert row["power"] < 0.8 and row["enough"] == units(wide, 0.5, (0.0, 1.0))
    words = replace(claim(narrow), reference="somewhere")
    assert (judge(words, FRAME)["power"], judge(words, FRAME)["unpowered"]) == (
        None,
        "the paper gives no number",
    )
    assert judge(replace(words, truth=0.2), FRAME)["power"] == power(narrow, 0.2, (0.0, 1.0))
    control = judge(replace(claim(narrow), kind="control"), FRAME)
    assert control["power"] is None and control["kind"] == "control" and said(control) == "holds"
    assert judge(claim(Estimate(0.5, math.nan, math.nan, 1)), FRAME)["unpowered"] == "no interval"


def test_a_truth_that_would_not_count_is_refused() -> None:
    with pytest.raises(UserError, match="`truth` of claim 'R0'"):
        replace(claim(Estimate(0, 0, 0, 1)), truth=2.0)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([], False),
        ([("claim", "reproduced"), ("control", "reproduced")], True),
        ([("claim", "reproduced"), ("claim", "outside this scale")], True),
        ([("claim", "not reproduced"), ("control", "reproduced")], False),
        ([("claim", "inconclusive")], False),
        ([("claim", "reproduced"), ("control", "not reproduced")], False),
        ([("claim", "reproduced"), ("control", "inconclusive")], False),
    ],
)
def test_what_counts_against_a_study(found: list[tuple[str, str]], expected: bool) -> None:
    assert holds([{"kind": kind, "verdict": word} for kind, word in found]) == expected


def test_json_is_strict() -> None:
    rows = verdicts(
        [claim(Estimate(math.nan, math.nan, math.inf, 0)), claim(Estimate(0.5, 0.5, 0.5, 1))], FRAME
    )
    text = dumps(rows)

    def refuse(word: str) -> None:
        raise AssertionError(word)

    assert json.loads(text, parse_constant=refuse) == rows
    assert {row["verdict"] for row in rows} <= set(VERDICTS)


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(UserError, match="`range` of claim 'R0'"):
        claim(Estimate(0.5, 0.4, 0.6, 3), (1.0, 1.0))
