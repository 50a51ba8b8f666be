"""The verdict follows the rule, whatever the numbers; what is written is strict JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regimes.core.error import UserError
from regimes.report.claim import VERDICTS, Claim, Estimate, dumps, judge, verdict, verdicts
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
