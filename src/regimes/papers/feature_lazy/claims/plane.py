"""What Geiger et al. 2020 claim of the plane of width and scale (R6 to R12); ranges set before any run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from regimes.control.width import LAWS
from regimes.core.error import UserError
from regimes.core.estimate import Estimate, jackknife
from regimes.papers.feature_lazy import CARD
from regimes.papers.feature_lazy.runs import FlowRun
from regimes.papers.feature_lazy.tables.plane import (
    EARLY_WINDOW,
    FEATURE_WINDOW,
    LATE_WINDOW,
    LAZY_WINDOW,
    PANEL,
    curve_law,
    ends,
    ensembles,
    panels,
    star_law,
    tidy,
    transition,
    variance_law,
)
from regimes.report.claim import Claim, Scope, Statistic
from regimes.report.ensemble import ensemble_error, outputs
from regimes.report.table import need, rows_of, select, shared

__all__ = ["plane_claims"]

# What an exponent and a spread over widths take.
SCOPE = Scope({}, "of three widths the interval is as wide as the range, or wider", several={"width": 4})
Rows = Mapping[str, Any]
Window = tuple[float, float]


def plane_claims(frame: pd.DataFrame) -> list[Claim]:
    """R6 to R12: one set for each data set and depth, the crossover for each law; none without such rows."""
    found: list[Claim] = []
    flows = rows_of(frame, FlowRun)
    for name, part in panels(flows) if len(flows) else []:
        label = name.replace(", ", " ").replace(" = ", "=").replace(" ", "-")
        rows = {"run": FlowRun.__name__, **shared(part, PANEL)}
        for law in dict.fromkeys(part["law"]):
            found.append(_crossover(label, name, {**rows, "law": law}))
        curves = {**rows, "law": "ntk"}
        found += _curves(label, name, curves, int(part["depth"].iloc[0]))
        if widths := _ensemble_widths(select(part, curves)):
            found += _ensembles(label, name, {**curves, "width": widths})
    return found


def _crossover(label: str, name: str, rows: Rows) -> Claim:
    """R6 under a law of width."""
    law = rows["law"]
    power = LAWS[law].alpha_star
    sentence = f"alpha* falls like h^{power:g}" if power else "alpha* does not depend on h"
    return Claim(
        f"R6{'' if law == 'ntk' else f'/{law}'}/{label}",
        CARD.name,
        f"{sentence} ({law} law; {name})",
        power,
        "paper text" if law == "ntk" else "derived from the paper",
        (power - 0.1, power + 0.1),
        _star,
        unit="members",  # the search takes its seeds from the ensembles, more of them for narrow networks
        rows=rows,
    )


def _curves(label: str, name: str, rows: Rows, depth: int) -> list[Claim]:
    """R7 to R10 of one data set and depth.

    In the lazy limit the weights follow a straight line that alpha rescales, so that dW and, as the first term of
    Taylor's series, dK fall like 1 / alpha, and t1 does not see alpha, for every smooth network: R8 and R10/lazy are
    controls.
    """
    kernel = 1.3 if depth == 2 else 2 / (1 + 1 / depth)
    weight = 0.34 if depth == 2 else 1 / (depth + 1)
    x = "sqrt(h) alpha"

    def one(id: str, sentence: str, exponent: float, margin: float, column: str, window: Window) -> Claim:
        allowed = exponent - margin, exponent + margin
        statistic = _slope(column, window)
        return Claim(
            f"{id}/{label}",
            CARD.name,
            f"{sentence} ({name})",
            exponent,
            "paper text",
            allowed,
            statistic,
            rows=rows,
        )

    def control(*words: Any) -> Claim:
        return replace(one(*words), kind="control")

    return [
        one("R7", f"dK ~ ({x})^-{kernel:.3g} in the feature regime", -kernel, 0.2, "dK", FEATURE_WINDOW),
        control("R8/dK", f"dK ~ ({x})^-1 in the lazy regime", -1.0, 0.1, "dK", LAZY_WINDOW),
        control("R8/dW", f"sqrt(h) dW ~ ({x})^-1 in the lazy regime", -1.0, 0.1, "sqrt_h_dW", LAZY_WINDOW),
        one("R9", f"sqrt(h) dW ~ ({x})^-{weight:.3g} in the feature regime", -weight, 0.1, "sqrt_h_dW",
            FEATURE_WINDOW),
        one("R10/feature", f"t1 ~ {x} in the feature regime", 1.0, 0.1, "t1", EARLY_WINDOW),
        control("R10/lazy", f"t1 does not depend on {x} in the lazy regime", 0.0, 0.1, "t1", LATE_WINDOW),
    ]  # fmt: skip


def _ensembles(label: str, name: str, rows: Rows) -> list[Claim]:
    """R11 and R12 of one data set and depth."""
    errors = "2.4 % lazy, 2.9 % feature, at every h" if "fashion" in label else "equal at every h"
    one = partial(Claim, paper=CARD.name, origin="authors' notebook", unit="members", rows=rows, scope=SCOPE)
    found = []
    for regime in ("feature", "lazy"):
        found += [
            one(
                id=f"R11/{regime}/{label}",
                claim=f"Var F ~ 1/h in the {regime} regime ({name})",
                reference=-1.0,
                range=(-1.2, -0.8),
                statistic=partial(_fluctuation, regime),
            ),
            one(
                id=f"R12/{regime}/{label}",
                claim=f"the error of an ensemble does not depend on h in the {regime} regime: relative spread ({name})",
                reference=errors,
                range=(None, 0.15),
                statistic=partial(_spread, regime),
                truth=0.0,
            ),
        ]
    return found


def _ensemble_widths(rows: pd.DataFrame) -> list[int]:
    """The widths of ensembles, more seeds than curves have; none if there are fewer than three."""
    try:
        parts = [ensembles(part) for part in ends(tidy(rows)).values()]
    except UserError:
        return []
    whole = [part for part in parts if len(part) >= 3 and len(set(next(iter(part.values()))["seed"])) > 3]
    return sorted({width for part in whole for width in part})


def _star(rows: pd.DataFrame) -> Estimate:
    """Exponent of alpha* against h: one alpha* a network."""
    return star_law(transition(tidy(rows))).estimate()


def _slope(column: str, window: Window) -> Statistic:
    """Exponent of a column against x in a window; the error is over networks (one width and seed)."""

    def statistic(rows: pd.DataFrame) -> Estimate:
        return curve_law(need(tidy(rows), [column, "x"]), column, window).estimate()

    return statistic


def _members(regime: str, rows: pd.DataFrame) -> tuple[list[int], list[np.ndarray], np.ndarray]:
    """Widths with an ensemble in a regime, the outputs (m, n) of each, and the test targets."""
    table = ends(tidy(rows))
    if regime not in table:
        raise UserError(f"`frame` has no ensemble in the {regime} regime: let the study finish")
    parts = ensembles(table[regime])
    if len(parts) < 3:
        raise UserError(
            f"`frame` has ensembles at {len(parts)} widths in the {regime} regime: expected at least 3"
        )
    found = [outputs(part) for part in parts.values()]
    return list(parts), [members for members, _ in found], found[0][1]


def _fluctuation(regime: str, rows: pd.DataFrame) -> Estimate:
    """Exponent of Var F against h, the interval by the jackknife over members."""
    widths, samples, _ = _members(regime, rows)
    return variance_law(widths, samples)


def _spread(regime: str, rows: pd.DataFrame) -> Estimate:
    """(largest - smallest) / mean over widths of the error of the ensemble, by the jackknife over members."""
    _, samples, targets = _members(regime, rows)

    def spread(*members: np.ndarray) -> float:
        errors = [ensemble_error(each, targets) for each in members]
        largest = max(errors)
        return (largest - min(errors)) / float(np.mean(errors)) if largest else 0.0

    return jackknife(samples, spread)
