"""What Geiger et al. 2020 claim of the plane of width and scale (R6 to R12); ranges set before any run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd

from regimes.control.width import LAWS
from regimes.core.error import UserError
from regimes.core.estimate import Estimate, jackknife
from regimes.papers.feature_lazy import CARD
from regimes.papers.feature_lazy.tables.plane import (
    EARLY_WINDOW,
    FEATURE_WINDOW,
    LATE_WINDOW,
    LAZY_WINDOW,
    curve_law,
    ends,
    ensembles,
    panels,
    star_law,
    tidy,
    transition,
    variance_law,
)
from regimes.report.claim import Claim
from regimes.report.ensemble import ensemble_error, outputs
from regimes.report.table import need

__all__ = ["plane_claims"]

Statistic = Callable[[pd.DataFrame], Estimate]


def plane_claims(frame: pd.DataFrame) -> list[Claim]:
    """R6 to R12: one set for each data set and depth, the crossover for each law; none without such rows."""
    found: list[Claim] = []
    flows = frame.loc[frame["run"] == "FlowRun"]
    for name, part in panels(flows) if len(flows) else []:
        label = name.replace(", ", " ").replace(" = ", "=").replace(" ", "-")
        depth = int(part["depth"].iloc[0])
        for law in dict.fromkeys(part["law"]):
            found.append(_crossover(label, name, part.loc[part["law"] == law], law))
        found += _of_panel(label, name, part.loc[part["law"] == "ntk"], depth)
    return found


def _claim(
    id: str,
    sentence: str,
    reference: float | str,
    origin: str,
    low: float | None,
    high: float | None,
    statistic: Statistic,
    rows: pd.DataFrame,
    unit: str = "seeds",
) -> Claim:
    return Claim(
        id, CARD.name, sentence, reference, origin, (low, high), lambda _frame: statistic(rows), unit
    )


def _crossover(label: str, name: str, rows: pd.DataFrame, law: str) -> Claim:
    power = LAWS[law].alpha_star
    origin = "paper text" if law == "ntk" else "derived from the paper"
    suffix = "" if law == "ntk" else f"/{law}"
    sentence = f"alpha* falls like h^{power:g}" if power else "alpha* does not depend on h"
    return _claim(
        f"R6{suffix}/{label}",
        f"{sentence} ({law} law; {name})",
        power,
        origin,
        power - 0.1,
        power + 0.1,
        _star,
        rows,
        unit="members",  # the search takes its seeds from the ensembles, more of them for narrow networks
    )


def _of_panel(label: str, name: str, rows: pd.DataFrame, depth: int) -> list[Claim]:
    """R7 to R12 of one data set and depth; ensembles only where there are some."""
    kernel = 1.3 if depth == 2 else 2 / (1 + 1 / depth)
    weight = 0.34 if depth == 2 else 1 / (depth + 1)
    text, code = "paper text", "authors' notebook"
    x = "sqrt(h) alpha"
    one = partial(_claim, rows=rows)
    found = [
        one(f"R7/{label}", f"dK ~ ({x})^-{kernel:.3g} in the feature regime ({name})", -kernel, text,
            -kernel - 0.2, -kernel + 0.2, statistic=_slope("dK", FEATURE_WINDOW)),
        one(f"R8/dK/{label}", f"dK ~ ({x})^-1 in the lazy regime ({name})", -1.0, text, -1.1, -0.9,
            statistic=_slope("dK", LAZY_WINDOW)),
        one(f"R8/dW/{label}", f"sqrt(h) dW ~ ({x})^-1 in the lazy regime ({name})", -1.0, text, -1.1, -0.9,
            statistic=_slope("sqrt_h_dW", LAZY_WINDOW)),
        one(f"R9/{label}", f"sqrt(h) dW ~ ({x})^-{weight:.3g} in the feature regime ({name})", -weight, text,
            -weight - 0.1, -weight + 0.1, statistic=_slope("sqrt_h_dW", FEATURE_WINDOW)),
        one(f"R10/feature/{label}", f"t1 ~ {x} in the feature regime ({name})", 1.0, text, 0.9, 1.1,
            statistic=_slope("t1", EARLY_WINDOW)),
        one(f"R10/lazy/{label}", f"t1 does not depend on {x} in the lazy regime ({name})", 0.0, text, -0.1, 0.1,
            statistic=_slope("t1", LATE_WINDOW)),
    ]  # fmt: skip
    if not _has_ensembles(rows):
        return found
    for regime in ("feature", "lazy"):
        found.append(one(f"R11/{regime}/{label}", f"Var F ~ 1/h in the {regime} regime ({name})", -1.0, code,
                         -1.2, -0.8, statistic=partial(_fluctuation, regime), unit="members"))  # fmt: skip
        found.append(one(f"R12/{regime}/{label}",
                         "the error of an ensemble does not depend on h in the "
                         f"{regime} regime: relative spread ({name})",
                         "2.4 % lazy, 2.9 % feature, at every h" if "fashion" in label else "equal at every h", code,
                         None, 0.15, statistic=partial(_spread, regime), unit="members"))  # fmt: skip
    return found


def _has_ensembles(rows: pd.DataFrame) -> bool:
    """Whether ensembles, more seeds than curves have, were trained at three widths or more."""
    try:
        parts = [ensembles(part) for part in ends(tidy(rows)).values()]
    except UserError:
        return False
    return any(len(part) >= 3 and len(set(next(iter(part.values()))["seed"])) > 3 for part in parts)


def _star(rows: pd.DataFrame) -> Estimate:
    """Exponent of alpha* against h: one alpha* a network."""
    return star_law(transition(tidy(rows))).estimate()


def _slope(column: str, window: tuple[float, float]) -> Statistic:
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
