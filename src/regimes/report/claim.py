"""A sentence of a paper against the table: measured value, interval, allowed range, verdict."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.estimate import Estimate, array
from regimes.report.power import ENOUGH, Range, ends_of, power, units
from regimes.report.table import select
from regimes.study.fault import Heard, StudyFault, blame, unheard
from regimes.study.run import canonical, shorten

__all__ = [
    "OUTSIDE",
    "VERDICTS",
    "Claim",
    "Claims",
    "Estimate",
    "Scope",
    "Statistic",
    "dumps",
    "holds",
    "judge",
    "said",
    "verdict",
    "verdicts",
]

OUTSIDE = "outside this scale"
"""The verdict on a claim that the design cannot decide, whatever comes out."""
VERDICTS = ("reproduced", "not reproduced", "inconclusive", OUTSIDE)

Statistic = Callable[[pd.DataFrame], Estimate]
"""What a claim is judged by: from the rows it is about to a number with its interval."""


@checked
@dataclass(frozen=True)
class Scope:
    """The least design that can decide a claim: judged by what was run, never by what came out.

    Arguments:
        least: column -> the least value that its largest one must reach, among the rows that the claim is about:
            {"n": 1000} for at least 1000 training points. Columns are fields of the runs, not results.
        reason: why less shows nothing, as a clause.
        several: column -> the least number of different values: {"width": 4} for four widths.
    """

    least: Mapping[str, float]
    reason: str
    several: Mapping[str, int] = field(default_factory=dict)

    def missed(self, rows: pd.DataFrame) -> str:
        """What these rows do not reach, in words; empty if they reach it, or if there are none.

        >>> Scope({"n": 1000}, "few images teach no features").missed(pd.DataFrame({"n": [192, 192]}))
        'n = 192, and it takes 1000: few images teach no features'
        """
        short = []
        for name, least in self.least.items():
            if len(rows) and name in rows.columns and (most := float(np.max(array(rows[name])))) < least:
                short.append(f"{name} = {most:g}, and it takes {least:g}")
        for name, least in self.several.items():
            if len(rows) and name in rows.columns and (count := len(set(rows[name].tolist()))) < least:
                short.append(f"{count} values of {name}, and it takes {least}")
        return f"{'; '.join(short)}: {self.reason}" if short else ""


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
        statistic: from the rows that the claim is about to an :class:`Estimate`; raises UserError if rows are missing.
        unit: the option of the study that sets how many independent things the statistic rests on; empty if more of
            them would not narrow the interval.
        rows: the rows it is about, column -> value, or a collection of values; None stands for a missing one. All
            rows if it is empty.
        truth: the value if the paper is exactly right, for the power; the reference if that is a number. None where
            the paper has words only.
        kind: "claim", or "control" for an identity: what cannot fail unless the code is wrong.
        scope: the least design that can decide it; None if any can.
    """

    id: str
    paper: str
    claim: str
    reference: float | str
    origin: str
    range: Range
    statistic: Statistic
    unit: str = "seeds"
    rows: Mapping[str, Any] = field(default_factory=dict)
    truth: float | None = None
    kind: Literal["claim", "control"] = "claim"
    scope: Scope | None = None

    def __post_init__(self) -> None:
        low, high = ends_of(self.range)
        if not low < high:
            raise UserError(
                f"`range` of claim {self.id!r} is {self.range}: expected (low, high) with low below high, "
                "None where a side is open"
            )
        if self.truth is not None and not low <= self.truth <= high:
            raise UserError(
                f"`truth` of claim {self.id!r} is {self.truth}: expected a number in its range {self.range}, where it "
                "would count as reproduced"
            )

    @property
    def expected(self) -> float | None:
        """The value if the paper is exactly right; None if that is no number."""
        if self.truth is None and not isinstance(self.reference, str) and math.isfinite(self.reference):
            return float(self.reference)
        return self.truth


Claims = Iterable[Claim] | Callable[[pd.DataFrame], Iterable[Claim]]
"""The claims of a study, or a function from its rows to them: one set for each data set that was run, say."""


@checked
def verdict(estimate: Estimate, allowed: Range) -> str:
    """One of the first three :data:`VERDICTS`: the whole interval against the allowed range, whose ends belong to it.

    Wholly inside: reproduced. Wholly outside: not reproduced. Across an end, or no interval: inconclusive.

    >>> verdict(Estimate(-0.5, -0.55, -0.45, 3), (-0.6, -0.4))
    'reproduced'
    >>> verdict(Estimate(-0.5, -0.65, -0.35, 3), (-0.6, -0.4))
    'inconclusive'
    >>> verdict(Estimate(0.5, 0.4, 0.6, 3), (None, 0.3))
    'not reproduced'
    """
    low, high = ends_of(allowed)
    if not all(map(math.isfinite, (estimate.value, estimate.low, estimate.high))):
        return "inconclusive"
    if low <= estimate.low and estimate.high <= high:
        return "reproduced"
    return "not reproduced" if estimate.high < low or estimate.low > high else "inconclusive"


@checked
def judge(claim: Claim, frame: pd.DataFrame, heard: Heard = unheard) -> dict[str, Any]:
    """The verdict on one claim, as plain values that JSON can hold (what is not a finite number is None).

    A statistic that cannot be computed, because rows or columns are missing or because it raises, makes the claim
    inconclusive; the reason is the ``note``. What the rows cannot decide by design is outside this scale, with the
    value where there is one.

    Arguments:
        claim: what is claimed.
        frame: the rows.
        heard: is told of an exception in the statistic that is no ``UserError``.

    Returns:
        the keys "id", "paper", "claim", "value", "low", "high", "reference", "range" (a pair), "verdict",
        then "kind", "method", "n", "scale", "freedom", "unit", "origin", "rows", "truth", "power", "enough" (the n of
        power 0.8, where this one has less), "unpowered" (why there is no power), "note".
    """
    note = outside = ""
    try:
        with blame(f"`statistic` of claim {claim.id}"):
            about = select(frame, claim.rows)
            outside = claim.scope.missed(about) if claim.scope is not None else ""
            found = _estimate(claim, about)
    except UserError as error:
        found, note = Estimate(math.nan, math.nan, math.nan, 0), str(error)
        if isinstance(error, StudyFault):
            heard(error)
    outcome = verdict(found, claim.range)
    if outside:
        outcome, note = OUTSIDE, "; ".join(filter(None, (outside, note)))
    elif outcome == "inconclusive" and not note:
        whole = math.isfinite(found.low) and math.isfinite(found.high)
        note = "the interval reaches across an end of the range" if whole else "no interval: too few seeds"
    freedom = found.n - 1 if found.freedom is None else found.freedom
    return {
        "id": claim.id,
        "paper": claim.paper,
        "claim": claim.claim,
        "value": _finite(found.value),
        "low": _finite(found.low),
        "high": _finite(found.high),
        "reference": claim.reference if isinstance(claim.reference, str) else _finite(claim.reference),
        "range": [_finite(end) for end in ends_of(claim.range)],
        "verdict": outcome,
        "kind": claim.kind,
        "method": found.method,
        "n": int(found.n),
        "scale": found.scale,
        "freedom": _finite(freedom),
        "unit": claim.unit,
        "origin": claim.origin,
        "rows": canonical(dict(claim.rows)),
        "truth": claim.expected,
        **_power(claim, found),
        "note": note,
    }


def _power(claim: Claim, found: Estimate) -> dict[str, Any]:
    """The probability of "reproduced" if the paper is exactly right; or why there is none."""
    told: dict[str, Any] = {"power": None, "enough": None, "unpowered": ""}
    if claim.kind == "control":
        return {**told, "unpowered": "an identity has no power to show"}
    if claim.expected is None:
        return {**told, "unpowered": "the paper gives no number"}
    try:
        chance = power(found, claim.expected, claim.range)
    except UserError as error:
        return {**told, "unpowered": str(error)}
    if math.isnan(chance):
        return {**told, "unpowered": "no interval"}
    if chance >= ENOUGH or found.n < 2:
        return {**told, "power": chance}
    return {**told, "power": chance, "enough": units(found, claim.expected, claim.range)}


def _finite(value: float) -> float | None:
    """The number, or None where JSON has no word for it."""
    return float(value) if math.isfinite(value) else None


def _estimate(claim: Claim, rows: pd.DataFrame) -> Estimate:
    """What the statistic gives, as plain numbers."""
    try:
        found = claim.statistic(rows)
    except KeyError as error:
        raise UserError(f"the rows have no column {error}") from None
    if not isinstance(found, Estimate):
        raise UserError(f"`statistic` of claim {claim.id} gave {shorten(found)}: expected an Estimate")
    return Estimate(
        float(found.value),
        float(found.low),
        float(found.high),
        int(found.n),
        str(found.method),
        found.scale,
        None if found.freedom is None else float(found.freedom),
    )


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
def said(one: Mapping[str, Any]) -> str:
    """The verdict in the word for its kind: of a control, that it holds or fails.

    >>> said({"verdict": "reproduced", "kind": "control"}), said({"verdict": "reproduced", "kind": "claim"})
    ('holds', 'reproduced')
    """
    words = {"reproduced": "holds", "not reproduced": "fails"} if one.get("kind") == "control" else {}
    verdict = str(one["verdict"])
    return words.get(verdict, verdict)


@checked
def holds(found: Sequence[Mapping[str, Any]]) -> bool:
    """Whether there are claims, and each that this scale can decide is reproduced, each control with them."""
    return bool(found) and all(one["verdict"] in ("reproduced", OUTSIDE) for one in found)


@checked
def dumps(rows: list[dict[str, Any]]) -> str:
    """The verdicts as strict JSON: no nan, no infinity.

    >>> dumps([{"id": "R1", "value": None}])
    '[\\n  {\\n    "id": "R1",\\n    "value": null\\n  }\\n]\\n'
    """
    return json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
