"""What Chizat, Oyallon, Bach 2019 claim (R1 to R5), each with the range set before any run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from regimes.core.error import UserError
from regimes.core.estimate import Estimate, array, jackknife, mean
from regimes.papers.lazy_training import CARD
from regimes.papers.lazy_training.runs import ImageRun, RateRun, StudentRun
from regimes.report.claim import Claim, Scope, Statistic
from regimes.report.fit import power_law
from regimes.report.power import Range
from regimes.report.table import by_seed, ended, need, rows_of, select

__all__ = ["claims"]

# The last five octaves of 1 to 1024.
WINDOW = (32.0, 1024.0)
# The starts that stand for the two regimes and for the plateau; the width at which the scalings are compared.
RICH, PLATEAU, LARGEST, WIDE = 0.01, 3.0, 10.0, 512
# Accuracy that must be lost from alpha = 1 to 100: 0.15 on CIFAR-10; 0.05 on Fashion-MNIST, and on the other grey
# images with it.
DROPS = {"cifar-10": 0.15}
# How many times as wide as usual the networks of figure 3(b) are.
WIDENED = {"vgg": 8.0, "resnet": 7.0}
_one = partial(Claim, paper=CARD.name, origin="paper text")


def claims(frame: pd.DataFrame) -> list[Claim]:
    """The claims that the rows can speak of: one set of R4 for each data set, R5 where wide networks were trained."""
    if not len(frame):
        return []
    found = _rates() if len(rows_of(frame, RateRun)) else []
    students = rows_of(frame, StudentRun)
    for symmetric, made in ((True, _taus), (False, _widths)) if len(students) else ():
        about = {"run": StudentRun.__name__, "traced": False, "symmetric": symmetric}
        found += made(about) if len(select(students, about)) else []
    images = rows_of(frame, ImageRun)
    if len(images):
        narrow, wide = images.loc[images["width_factor"] == 1], images.loc[images["width_factor"] != 1]
        for name in sorted(set(narrow["dataset"])):
            found += _images({"run": ImageRun.__name__, "dataset": name, "width_factor": 1})
        for model in sorted(set(wide["model"])):
            factors = sorted(set(wide["width_factor"]))
            found += _wide({"run": ImageRun.__name__, "model": model, "width_factor": factors})
    return found


def _rates() -> list[Claim]:
    """R1: the three exponents of theorem 2.2, which holds for every smooth network: controls."""
    told = {
        "moved": ("weights", "||w - w0||", -1.0),
        "apart": ("distance", "||w - w_lin||", -2.0),
        "missed": ("outputs", "|F - F_lin|", -1.0),
    }
    return [
        _one(
            id=f"R1/{short}",
            claim=f"over a fixed time sup {quantity} ~ alpha^{power:g}",
            reference=power,
            range=(power - 0.1, power + 0.1),
            statistic=partial(_rate, column),
            rows={"run": RateRun.__name__},
            kind="control",
        )
        for column, (short, quantity, power) in told.items()
    ]


def _rate(column: str, rows: pd.DataFrame) -> Estimate:
    """Exponent of a supremum against alpha; the error is over seeds."""
    done = ended(rows, ["alpha", column])
    return power_law(done["alpha"], done[column], WINDOW, groups=done["seed"]).estimate()


def _taus(rows: Mapping[str, Any]) -> list[Claim]:
    """R2: what a large start costs on a teacher of few neurons. That it is the linearised model is a control."""
    return [
        _one(
            id="R2/ratio",
            claim=f"students that start large have more test loss: tau = {PLATEAU:g} over tau = {RICH:g}",
            reference="3.1 over 0.05",
            range=(10.0, None),
            statistic=partial(_tau_ratio, PLATEAU, RICH),
            truth=3.1 / 0.05,
            rows=rows,
        ),
        _one(
            id="R2/plateau",
            claim=f"for large tau the test loss does not depend on it: tau = {PLATEAU:g} over tau = {LARGEST:g}",
            reference=1.0,
            range=(0.9, 1.1),
            statistic=partial(_tau_ratio, PLATEAU, LARGEST),
            rows=rows,
        ),
        _one(
            id="R2/linear",
            claim=f"the plateau is the linearised model: test loss at tau = {LARGEST:g} over that of its linearisation",
            reference=1.0,
            range=(0.95, 1.05),
            statistic=_linear_ratio,
            rows=rows,
            kind="control",
        ),
    ]


def _widths(rows: Mapping[str, Any]) -> list[Claim]:
    """R3: what the scaling 1/sqrt(m) costs."""
    claim = _one(
        id="R3",
        claim=f"at m = {WIDE} students under 1/sqrt(m) have more test loss than under 1/m",
        reference="0.90 over 0.18",
        range=(3.0, None),
        statistic=_width_ratio,
        truth=0.90 / 0.18,
        rows=rows,
    )
    return [claim]


def _tau_ratio(above: float, below: float, rows: pd.DataFrame) -> Estimate:
    """Test loss at one tau over that at another, each seed with its own task."""
    done = ended(rows, ["test_loss"])
    return _ratio(by_seed(done, "test_loss", {"tau": above}), by_seed(done, "test_loss", {"tau": below}))


def _linear_ratio(rows: pd.DataFrame) -> Estimate:
    """Test loss at the largest start over that of its linearised model."""
    done = ended(rows, ["test_loss"])
    network = by_seed(done, "test_loss", {"tau": LARGEST})
    return _ratio(network, by_seed(done, "linear_loss", {"tau": LARGEST}))


def _width_ratio(rows: pd.DataFrame) -> Estimate:
    """Test loss of the wide student under 1/sqrt(m) over that under 1/m."""
    done = ended(rows, ["test_loss"])
    parts = [
        by_seed(done, "test_loss", {"scaling": scaling, "width": WIDE}) for scaling in ("1/sqrt(m)", "1/m")
    ]
    return _ratio(*parts)


def _images(rows: Mapping[str, Any]) -> list[Claim]:
    """R4 of one data set."""
    name = rows["dataset"]

    def one(id: str, claim: str, reference: str, truth: float, allowed: Range, statistic: Statistic) -> Claim:
        words = {
            "id": f"R4/{id}/{name}",
            "claim": f"{claim} ({name})",
            "reference": reference,
            "truth": truth,
        }
        return _one(**words, range=allowed, statistic=statistic, rows=rows)

    return [
        one("drop", "test accuracy lost from alpha = 1 to 100", "88 % to 55 % (VGG-11)", 0.33,
            (DROPS.get(name, 0.05), None), _falls("test_accuracy", 1.0, 100.0)),
        one("train", "training accuracy lost from alpha = 1 to 100", "99 % to 53 % (VGG-11)", 0.46,
            (0.0, None), _falls("train_accuracy", 1.0, 100.0)),
        one("monotone", "test accuracy rises by less than a point from one alpha to the next: least loss",
            "falls to a plateau", 0.0, (-0.01, None), _least_fall),
        one("moving", "stability of the activations at alpha = 1", "55 % (VGG-11)", 0.55,
            (None, 0.9), _stability(1.0, 1.0)),
        one("frozen", "least stability of the activations at alpha >= 100", "at least 99 % (VGG-11)", 0.99,
            (0.98, None), _stability(100.0, np.inf)),
    ]  # fmt: skip


def _falls(column: str, first: float, second: float) -> Statistic:
    """What a column loses between two alphas, seed by seed."""

    def statistic(rows: pd.DataFrame) -> Estimate:
        done = ended(rows, [column])
        before, after = (by_seed(done, column, {"alpha": alpha}) for alpha in (first, second))
        return mean((before - after).dropna())

    return statistic


def _least_fall(rows: pd.DataFrame) -> Estimate:
    """The least loss of mean test accuracy from one alpha to the next, by the jackknife over seeds."""
    done = ended(rows, ["test_accuracy"])
    table = done.pivot_table(index="seed", columns="alpha", values="test_accuracy")
    whole = table.dropna().to_numpy()
    if not len(whole) or whole.shape[1] < 2:
        raise UserError(f"`frame` has {whole.shape[1]} alphas with common seeds: expected at least 2")

    def least(seeds: list[np.ndarray]) -> float:
        means = np.mean(seeds, axis=0)
        return min(float(a - b) for a, b in itertools.pairwise(means))

    return jackknife([list(whole)], least)


def _stability(low: float, high: float) -> Statistic:
    """The least stability of each seed among these alphas, averaged over seeds."""

    def statistic(rows: pd.DataFrame) -> Estimate:
        done = ended(rows, ["stability"])
        chosen = need(done.loc[done["alpha"].between(low, high)], ["stability"])
        return mean([float(array(own["stability"]).min()) for _, own in chosen.groupby("seed")])

    return statistic


def _wide(rows: Mapping[str, Any]) -> list[Claim]:
    """R5: a wide network is better than its linearisation; one claim each on training and test images."""
    model = rows["model"]
    published = {
        "vgg": {"train": (99.9, 61.0), "test": (89.7, 61.7)},
        "resnet": {"train": (99.4, 55.0), "test": (91.0, 56.7)},
    }
    return [
        _one(
            id=f"R5/{kind}/{model}",
            claim=f"{kind} accuracy of the wide {model} over that of its linearisation, difference",
            reference=f"{network} % and {linear} %",
            range=(0.0, None),
            statistic=_falls(f"{kind}_accuracy", 1.0, 1e7),
            truth=(network - linear) / 100,
            rows=rows,
            scope=Scope({"width_factor": WIDENED[model]}, "the claim is of the widest networks of the paper"),
        )
        for kind, (network, linear) in published[model].items()
    ]


def _ratio(above: pd.Series, below: pd.Series) -> Estimate:
    """The geometric mean over seeds of the ratio."""
    return mean((above / below).dropna(), log=True)
