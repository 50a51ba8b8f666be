"""The protocol log of a study: dated, and about named claims."""

from __future__ import annotations

from typing import Any

import pytest

from regimes.core.error import UserError
from regimes.study import Amendment

GOOD: dict[str, Any] = {"date": "2025-01-31", "claims": ("R1",), "what": "a", "why": "b", "effect": "none"}


def test_it_holds_what_it_is_given() -> None:
    assert Amendment(**GOOD).claims == ("R1",) and Amendment(**GOOD) == Amendment(**GOOD)


@pytest.mark.parametrize("date", ["", "yesterday", "2025-02-30", "31.1.2025", "20250131", "2025-01-31T00:00"])
def test_a_day_that_is_none_is_refused(date: str) -> None:
    with pytest.raises(UserError, match="`date` of an amendment is"):
        Amendment(**{**GOOD, "date": date})


def test_it_concerns_something() -> None:
    with pytest.raises(UserError, match="`claims` of an amendment is empty"):
        Amendment(**{**GOOD, "claims": ()})
