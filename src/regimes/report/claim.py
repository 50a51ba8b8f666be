"""A sentence of a paper against the table: measured value, interval, allowed range, verdict."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.estimate import Estimate
from regimes.study.fault import Heard, StudyFault, blame, unheard
from regimes.study.run import shorten

__all__ = ["VERDICTS", "Claim", "Claims", "Estimate", "dumps", "judge", "verdict", "verdicts"]

VERDICTS = ("reproduced", "not reproduced", "inconclusive")


@checked
@dataclass(frozen=True)
class Claim:
    """What a paper says, and how this project would know.

    Arguments:
        id: short name, such as "R6".
        paper: the paper's name as the studies use it.
        claim: the sentence.
        reference: the published value, a number or words.
        origin: how well the reference is known (certainty mark), such as "paper text".
        range: (low, high) in which the value must fall, set before any run; None where a side is open.
        statistic: from the rows of the store to an :class:`Estimate`; raises UserError if rows are missing.
        unit: the option of the study that sets how many independent things the statistic rests on; empty if more of
            them would not narrow the interval.
    """

    id: str
    paper: str
    claim: str
    reference: float | str
    origin: str
    range: tuple[float | None, float | None]
    statistic: Callable[[pd.DataFrame], Estimate]
    unit: str = "seeds"

    def __post_init__(self) -> None:
        low, high = _ends(self.range)
        if not low < high:
            raise UserError(
                f"`range` of claim {self.id!r} is {self.range}: expected (low, high) with low below high, "
                "None where a side is open"
            )


Claims = Iterable[Claim] | Callable[[pd.DataFrame], Iterable[Claim]]
"""The claims of a study, or a function from its rows to them: one set for each data set that was run, say."""


def _ends(sides: tuple[float | None, float | None]) -> tuple[float, float]:
    """The range as two floats, infinite where it is open."""
    low, high = sides
    return (-math.inf if low is None else float(low)), (math.inf if high is None else float(high))


@checked
def verdict(estimate: Estimate, allowed: tuple[float | None, float | None]) -> str:
    """One of :data:`VERDICTS`: the whole interval against the allowed range, whose ends belong to it.

    Wholly inside: reproduced. Wholly outside: not reproduced. Across an end, or no interval: inconclusive.

    >>> verdict(Estimate(-0.5, -0.55, -0.45, 3), (-0.6, -0.4))
    'reproduced'
    >>> verdict(Estimate(-0.5, -0.65, -0.35, 3), (-0.6, -0.4))
    'inconclusive'
    >>> verdict(Estimate(0.5, 0.4, 0.6, 3), (None, 0.3))
    'not reproduced'
    """
    low, high = _ends(allowed)
    if not all(map(math.isfinite, (estimate.value, estimate.low, estimate.high))):
        return "inconclusive"
    if low <= estimate.low and estimate.high <= high:
        return "reproduced"
    return "not reproduced" if estimate.high < low or estimate.low > high else "inconclusive"


@checked
def judge(claim: Claim, frame: pd.DataFrame, heard: Heard = unheard) -> dict[str, Any]:
    """The verdict on one claim, as plain values that JSON can hold (what is not a finite number is None).

    A statistic that cannot be computed, because rows or columns are missing or because it raises, makes the claim
    inconclusive; the reason is the ``note``.

    Arguments:
        claim: what is claimed.
        frame: the rows.
        heard: is told of an exception in the statistic that is no ``UserError``.

    Returns:
        the keys "id", "paper", "claim", "value", "low", "high", "reference", "range" (a pair), "verdict",
        then "method", "n", "unit", "origin", "note".
    """
    note = ""
    try:
        with blame(f"`statistic` of claim {claim.id}"):
            found = _estimate(claim, frame)
    except UserError as error:
        found, note = Estimate(math.nan, math.nan, math.nan, 0), str(error)
        if isinstance(error, StudyFault):
            heard(error)
    outcome = verdict(found, claim.range)
    if outcome == "inconclusive" and not note:
        whole = math.isfinite(found.low) and math.isfinite(found.high)
        note = "the interval reaches across an end of the range" if whole else "no interval: too few seeds"
    return {
        "id": claim.id,
        "paper": claim.paper,
        "claim": claim.claim,
        "value": _finite(found.value),
        "low": _finite(found.low),
        "high": _finite(found.high),
        "reference": claim.reference if isinstance(claim.reference, str) else _finite(claim.reference),
        "range": [_finite(end) for end in _ends(claim.range)],
        "verdict": outcome,
        "method": found.method,
        "n": int(found.n),
        "unit": claim.unit,
        "origin": claim.origin,
        "note": note,
    }


def _finite(value: float) -> float | None:
    """The number, or None where JSON has no word for it."""
    return float(value) if math.isfinite(value) else None


def _estimate(claim: Claim, frame: pd.DataFrame) -> Estimate:
    """What the statistic gives, as plain numbers."""
    try:
        found = claim.statistic(frame)
    except KeyError as error:
        raise UserError(f"the rows have no column {error}") from None
    if not isinstance(found, Estimate):
        raise UserError(f"`statistic` of claim {claim.id} gave {shorten(found)}: expected an Estimate")
    return Estimate(float(found.value), float(found.low), float(found.high), int(found.n), str(found.method))


def verdicts(claims: Claims, frame: pd.DataFrame, heard: Heard = unheard) -> list[dict[str, Any]]:
    """:func:`judge` for each claim, in the same order; ``claims`` may be a function of the rows.

    Raises:
        UserError: the claims cannot be had (a ``StudyFault`` where their function raises), or are none.
    """
    with blame("`claims`"):
        wanted = list(claims(frame) if callable(claims) else claims)
    for claim in wanted:
        if not isinstance(claim, Claim):
            raise UserError(f"`claims` holds {shorten(claim)}: expected regimes.report.claim.Claim")
    return [judge(claim, frame, heard) for claim in wanted]


@checked
def dumps(rows: list[dict[str, Any]]) -> str:
    """The verdicts as strict JSON: no nan, no infinity.

    >>> dumps([{"id": "R1", "value": None}])
    '[\\n  {\\n    "id": "R1",\\n    "value": null\\n  }\\n]\\n'
    """
    return json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
