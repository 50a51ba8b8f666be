"""The protocol log: what was changed of a study after somebody had looked at its results."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date as day

from regimes.core.check import checked
from regimes.core.error import UserError

__all__ = ["Amendment"]


@checked
@dataclass(frozen=True)
class Amendment:
    """One change of a range, a statistic or a protocol after a look at results, as it was made.

    Attributes:
        date: of the change, as in "2025-01-31".
        claims: the claims that it concerns, by the beginning of their names: "R4" for all of R4.
        what: what was changed, from what to what.
        why: what was seen, and why that is a reason.
        effect: what it did to the verdicts; "none" where it did nothing.

    Raises:
        UserError: if the date is none, or there are no claims.
    """

    date: str
    claims: Sequence[str]
    what: str
    why: str
    effect: str

    def __post_init__(self) -> None:
        try:
            known = bool(re.fullmatch(r"\d{4}-\d\d-\d\d", self.date) and day.fromisoformat(self.date))
        except ValueError:
            known = False
        if not known:
            raise UserError(f"`date` of an amendment is {self.date!r}: expected a day such as '2025-01-31'")
        if not self.claims:
            raise UserError("`claims` of an amendment is empty: expected the names of those that it concerns")
