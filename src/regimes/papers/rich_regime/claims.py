"""What Li and Banerjee 2021 claim (R20, R21), each with the range and the truth set before any run.

The abstract alone was at hand. It has words and no numbers, so that ranges and truths are those of this library: a
range starts at the least effect that would bear out the words, and the truth, which serves the power alone, is about
twice that. Differences of accuracy and error are in percentage points.

=====================================================================  ==============================
what the paper says                                                    claims
=====================================================================  ==============================
most parameters are lazy, few active: changes have a heavy tail        R20: share, tail, median
resetting the active ones makes generalisation worse                   R20: reset, controls
most of them are in the bottom layers, the more so the wider           R20: bottom, rising
top and bottom layers generalise well, the top alone is only fast      R21: ends, top, least
mostly the top, now and then all: matches SGD, 2 to 5 times cheaper    R21: sampled, cost
=====================================================================  ==============================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from regimes.core.estimate import Estimate, array, mean
from regimes.papers.rich_regime import CARD
from regimes.papers.rich_regime.tables import ACTIVITY, SAMPLED, SPARSE, networks
from regimes.report.claim import Claim, Scope
from regimes.report.table import by_seed, ended

__all__ = ["claims"]

# The share of sum z^2 that the 1 % of a normal sample with the largest |z| carries: 2 (a phi(a) + Q(a)), Q(a) = 0.005.
NORMAL = 0.0845
# Less than one image of any test set here, in percentage points: no drop at all is not twice no drop. And less than
# the least correlation of a few ranks: no trend at all is not a rising one.
LEAST = 0.01
# The truth of the reset test. On digits fully connected networks lost 5 points; in convolutional ones each weight is
# used at every position, and a few of them are looked for that cost as much.
DROP = {"mlp": 1.0, "cnn": 4.0}
WIDTHS = Scope({}, "a trend with the width takes four of them", {"width": 4})
FEW = Scope(
    {"n": 5000},
    "trained on few images, the top layer alone scatters by 3 points of accuracy between starts of narrow networks, so "
    "that 8 of them have a power of 0.25",
)
_one = partial(Claim, paper=CARD.name, origin="abstract; definition and range are this library's")


def claims(frame: pd.DataFrame) -> list[Claim]:
    """The claims that the rows can speak of: one set for each data set and network."""
    if not len(frame):
        return []
    found: list[Claim] = []
    for dataset, network, own in networks(frame, ACTIVITY):
        name = _name(dataset, network)
        rows = {"run": ACTIVITY[network].__name__, "dataset": dataset}
        if "standard" in set(own["law"]):
            standard = {**rows, "law": "standard"}
            found += _changes(name, standard) + _resets(name, standard, DROP[network])
        for law in sorted(set(own["law"]), reverse=True):
            found += _bottom(name, {**rows, "law": law}, 0.0 if network == "mlp" else LEAST)
    for dataset, network, _ in networks(frame, SPARSE):
        name, rows = _name(dataset, network), {"run": SPARSE[network].__name__, "dataset": dataset}
        found += _static(name, rows) + _sampled(name, rows)
    return found


def _name(dataset: str, network: str) -> str:
    """Of the data set alone where the network is the fully connected one."""
    return dataset if network == "mlp" else f"{dataset}-{network}"


def _changes(name: str, rows: Mapping[str, Any]) -> list[Claim]:
    """Few parameters move far; of each seed the mean over its widths."""
    return [
        _one(
            id=f"R20/share/{name}",
            claim=f"the most active 1 % of the parameters carry a share of the squared movement ({name})",
            reference="a small set changes a lot",
            range=(0.05, None),
            truth=0.1,
            statistic=_over_widths(lambda rows: array(rows["top_moved"]), "top_moved"),
            rows=rows,
            unit="starts",
        ),
        _one(
            id=f"R20/tail/{name}",
            claim=f"and a larger one than if the changes were normal, {NORMAL} ({name})",
            reference="a small set changes a lot",
            range=(NORMAL, None),
            truth=2 * NORMAL,
            statistic=_over_widths(lambda rows: array(rows["top_moved"]), "top_moved"),
            rows=rows,
            unit="starts",
        ),
        _one(
            id=f"R20/median/{name}",
            claim=f"the median parameter moves far less than the scale of its layer at the start: ratio ({name})",
            reference="most are lazy",
            range=(None, 0.2),
            truth=0.1,
            statistic=_over_widths(lambda rows: array(rows["median_change"]), "median_change"),
            rows=rows,
            unit="starts",
        ),
    ]


def _resets(name: str, rows: Mapping[str, Any], truth: float) -> list[Claim]:
    """The active parameters are what was learnt; of each seed the mean over its widths."""
    return [
        _one(
            id=f"R20/reset/{name}",
            claim="resetting the active 1 % costs more than twice as much test accuracy as resetting as many others of "
            f"the same layers: what it costs beyond, in percentage points ({name})",
            reference="makes generalisation worse",
            range=(LEAST, None),
            truth=truth,
            statistic=_over_widths(_beyond_layered, "reset_active", "reset_layered", "reset_none"),
            rows=rows,
            unit="starts",
        ),
        _one(
            id=f"R20/controls/{name}",
            claim="and more than each of three controls: what it costs beyond the worst of them, in percentage points "
            f"({name})",
            reference="makes generalisation worse",
            range=(LEAST, None),
            truth=truth,
            statistic=_over_widths(_beyond_all, "reset_active", *CONTROLS),
            rows=rows,
            unit="starts",
        ),
    ]


CONTROLS = ("reset_layered", "reset_random", "reset_least")


def _beyond_layered(rows: pd.DataFrame) -> np.ndarray:
    """What the active set costs, less twice what random ones of the same layers cost."""
    none = array(rows["reset_none"])
    active, layered = (array(rows[f"reset_{kind}"]) - none for kind in ("active", "layered"))
    return 100 * (active - 2 * layered)


def _beyond_all(rows: pd.DataFrame) -> np.ndarray:
    """What the active set costs, less what that control costs that costs most on average."""
    worst = max(CONTROLS, key=lambda name: float(array(rows[name]).mean()))
    return 100 * (array(rows["reset_active"]) - array(rows[worst]))


def _bottom(name: str, rows: Mapping[str, Any], trend: float) -> list[Claim]:
    """Most active parameters sit at the bottom, the more so the wider the network; ``trend``: its least value."""
    law = rows["law"]
    unit = "starts" if law == "standard" else "mup_starts"
    return [
        _one(
            id=f"R20/bottom/{name}-{law}",
            claim="the bottom layer of the widest networks has more of the active parameters than its size says: share "
            f"of them over its share of all ({name}, {law} law)",
            reference="most are in the bottom layers",
            range=(1.0, None),
            truth=1.5,
            statistic=_at_bottom,
            rows=rows,
            unit=unit,
        ),
        _one(
            id=f"R20/rising/{name}-{law}",
            claim=f"and the more so the wider they are: rank correlation with the width ({name}, {law} law)",
            reference="the more so the wider",
            range=(trend, None),
            truth=0.6,
            statistic=_rising,
            rows=rows,
            unit=unit,
            scope=WIDTHS,
        ),
    ]


def _at_bottom(rows: pd.DataFrame) -> Estimate:
    """Enrichment of the bottom layer at the largest width.

    The geometric mean over seeds; the arithmetic one where a seed has none of the active parameters there.
    """
    found = _enriched(rows)
    values = array(found.loc[found["width"] == found["width"].max(), "enrichment"])
    return mean(values, log=bool((values > 0).all()))


def _rising(rows: pd.DataFrame) -> Estimate:
    """Spearman's correlation of enrichment and width of each seed, averaged over seeds; 0 where it is the same."""
    return mean(
        [_rank_correlation(own["width"], own["enrichment"]) for _, own in _enriched(rows).groupby("seed")]
    )


def _rank_correlation(first: Any, second: Any) -> float:
    """Spearman's; 0 where the second is the same everywhere."""
    return first.corr(second, method="spearman") if len(set(second)) > 1 else 0.0


def _enriched(rows: pd.DataFrame) -> pd.DataFrame:
    """Enrichment of the bottom layer by width and seed."""
    done = ended(rows, "layer_enrichment")
    return done.assign(enrichment=[float(each[0]) for each in done["layer_enrichment"]])


def _static(name: str, rows: Mapping[str, Any]) -> list[Claim]:
    """What training of the same few layers costs and gives."""
    points = "in percentage points"
    return [
        _one(
            id=f"R21/ends/{name}",
            claim="top and bottom layers alone generalise well: test accuracy below that of all layers, "
            f"{points} ({name})",
            reference="generalises well",
            range=(None, 1.5),
            truth=0.0,
            statistic=partial(_lost, {"policy": "all"}, {"policy": "ends"}),
            rows=rows,
        ),
        _one(
            id=f"R21/top/{name}",
            claim=f"the top layer alone does not: test accuracy below that of top and bottom, {points} ({name})",
            reference="only fast",
            range=(1.5, None),
            truth=3.0,
            statistic=partial(_lost, {"policy": "ends"}, {"policy": "top"}),
            rows=rows,
            scope=FEW,
        ),
        _one(
            id=f"R21/least/{name}",
            claim="but it costs least: products of its backward passes over those of the cheapest other policy "
            f"({name})",
            reference="only fast",
            range=(None, 0.99),
            truth=0.5,
            statistic=_least,
            rows=rows,
            kind="control",
        ),
    ]


def _sampled(name: str, rows: Mapping[str, Any]) -> list[Claim]:
    """What training of mostly the top costs and gives."""
    p = SAMPLED
    return [
        _one(
            id=f"R21/sampled/{name}",
            claim=f"top layer always and all with p = {p:g}: test accuracy below that of all layers after equal steps, "
            f"in percentage points ({name})",
            reference="matches SGD",
            range=(-1.0, 1.0),
            truth=0.0,
            statistic=partial(_lost, {"policy": "all"}, {"policy": "sampled", "p": p}),
            rows=rows,
        ),
        _one(
            id=f"R21/cost/{name}",
            claim=f"and its backward passes cost at most half: products counted, over those of all layers ({name})",
            reference="2 to 5 times cheaper",
            range=(None, 0.5),
            truth=1 / 3.6,
            statistic=_cost,
            rows=rows,
            kind="control",
        ),
    ]


def _lost(before: Mapping[str, Any], after: Mapping[str, Any], rows: pd.DataFrame) -> Estimate:
    """What test accuracy loses from one policy to another, seed by seed, in percentage points."""
    done = ended(rows, "test_accuracy")
    first, second = (by_seed(done, "test_accuracy", where) for where in (before, after))
    return mean(100 * (first - second).dropna())


def _cost(rows: pd.DataFrame) -> Estimate:
    """The counted cost of the sampled policy over that of all layers at the same steps."""
    done = ended(rows, ["products", "full_products"])
    share = done.assign(share=array(done["products"]) / array(done["full_products"]))
    return mean(by_seed(share, "share", {"policy": "sampled", "p": SAMPLED}))


def _least(rows: pd.DataFrame) -> Estimate:
    """The counted cost of the top alone over that of the cheapest other policy, seed by seed."""
    done = ended(rows, "products")
    others = done.loc[done["policy"] != "top"].groupby("seed")["products"].min()
    return mean((by_seed(done, "products", {"policy": "top"}) / others).dropna())


def _over_widths(
    value: Callable[[pd.DataFrame], np.ndarray], *columns: str
) -> Callable[[pd.DataFrame], Estimate]:
    """The mean over widths of a value of each network, seed by seed."""

    def statistic(rows: pd.DataFrame) -> Estimate:
        done = ended(rows, columns)
        found = done.assign(value=value(done))
        return mean([float(array(own["value"]).mean()) for _, own in found.groupby("seed")])

    return statistic
