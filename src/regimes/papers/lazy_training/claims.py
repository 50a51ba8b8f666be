"""What Chizat, Oyallon, Bach 2019 claim (R1 to R5), each with the range set before any run."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from regimes.core.error import UserError
from regimes.core.estimate import Estimate, array, jackknife, mean
from regimes.papers.lazy_training import CARD
from regimes.report.claim import Claim
from regimes.report.fit import power_law
from regimes.report.table import last, need

__all__ = ["claims"]

# The last five octaves of 1 to 1024.
WINDOW = (32.0, 1024.0)
# The starts that stand for the two regimes and for the plateau; the width at which the scalings are compared.
RICH, PLATEAU, LARGEST, WIDE = 0.01, 3.0, 10.0, 512
# Accuracy that must be lost from alpha = 1 to 100: 0.15 on CIFAR-10; 0.05 on Fashion-MNIST, and on the other grey
# images with it.
DROPS = {"cifar-10": 0.15}
Statistic = Callable[[pd.DataFrame], Estimate]
Range = tuple[float | None, float | None]


def claims(frame: pd.DataFrame) -> list[Claim]:
    """The claims that the rows can speak of: one set of R4 for each data set, R5 where wide networks were trained."""
    if not len(frame):
        return []
    there = frame["run"]
    found = _rates() if "RateRun" in set(there) else []
    found += _students(frame.loc[there == "StudentRun"])
    images = frame.loc[there == "ImageRun"]
    if len(images):
        narrow, wide = images.loc[images["width_factor"] == 1], images.loc[images["width_factor"] != 1]
        for name in sorted(set(narrow["dataset"])):
            found += _images(name, narrow.loc[narrow["dataset"] == name])
        for model in sorted(set(wide["model"])):
            found += _wide(model, wide.loc[wide["model"] == model])
    return found


def _claim(id: str, sentence: str, reference: float | str, allowed: Range, statistic: Statistic) -> Claim:
    return Claim(id, CARD.name, sentence, reference, "paper text", allowed, statistic)


def _rates() -> list[Claim]:
    """R1: the three exponents of theorem 2.2."""
    told = {
        "moved": ("weights", "||w - w0||", -1.0),
        "apart": ("distance", "||w - w_lin||", -2.0),
        "missed": ("outputs", "|F - F_lin|", -1.0),
    }
    return [
        _claim(
            f"R1/{short}",
            f"over a fixed time sup {quantity} ~ alpha^{power:g}",
            power,
            (power - 0.1, power + 0.1),
            partial(_rate, column),
        )
        for column, (short, quantity, power) in told.items()
    ]


def _rate(column: str, frame: pd.DataFrame) -> Estimate:
    """Exponent of a supremum against alpha; the error is over seeds."""
    rows = _ended(frame, "RateRun", ["alpha", column])
    return power_law(rows["alpha"], rows[column], WINDOW, groups=rows["seed"]).estimate()


def _students(rows: pd.DataFrame) -> list[Claim]:
    """R2 and R3: what a large start, and the scaling 1/sqrt(m), cost on a teacher of few neurons."""
    found: list[Claim] = []
    plane = rows["traced"].astype(bool)
    symmetric = rows["symmetric"].astype(bool)
    if np.any(symmetric & ~plane):
        found += [
            _claim(
                "R2/ratio",
                f"students that start large have more test loss: tau = {PLATEAU:g} over tau = {RICH:g}",
                "3.1 over 0.05",
                (10.0, None),
                partial(_tau_ratio, PLATEAU, RICH),
            ),
            _claim(
                "R2/plateau",
                f"for large tau the test loss does not depend on it: tau = {PLATEAU:g} over tau = {LARGEST:g}",
                1.0,
                (0.9, 1.1),
                partial(_tau_ratio, PLATEAU, LARGEST),
            ),
            _claim(
                "R2/linear",
                f"the plateau is the linearised model: test loss at tau = {LARGEST:g} over that of its linearisation",
                1.0,
                (0.95, 1.05),
                _linear_ratio,
            ),
        ]
    if np.any(~symmetric & ~plane):
        sentence = f"at m = {WIDE} students under 1/sqrt(m) have more test loss than under 1/m"
        found.append(_claim("R3", sentence, "0.90 over 0.18", (3.0, None), _width_ratio))
    return found


def _tau_ratio(above: float, below: float, frame: pd.DataFrame) -> Estimate:
    """Test loss at one tau over that at another, each seed with its own task."""
    rows = _symmetric(frame)
    return _ratio(_by_seed(rows, "test_loss", tau=above), _by_seed(rows, "test_loss", tau=below))


def _linear_ratio(frame: pd.DataFrame) -> Estimate:
    """Test loss at the largest start over that of its linearised model."""
    rows = _symmetric(frame)
    network = _by_seed(rows, "test_loss", tau=LARGEST)
    return _ratio(network, _by_seed(rows, "linear_loss", tau=LARGEST))


def _width_ratio(frame: pd.DataFrame) -> Estimate:
    """Test loss of the wide student under 1/sqrt(m) over that under 1/m."""
    rows = _ended(frame, "StudentRun", ["test_loss"])
    parts = [_by_seed(rows, "test_loss", scaling=scaling, width=WIDE) for scaling in ("1/sqrt(m)", "1/m")]
    return _ratio(*parts)


def _symmetric(frame: pd.DataFrame) -> pd.DataFrame:
    """The students whose tau varies."""
    rows = _ended(frame, "StudentRun", ["test_loss"])
    return rows.loc[rows["symmetric"].astype(bool) & ~rows["traced"].astype(bool)]


def _images(name: str, rows: pd.DataFrame) -> list[Claim]:
    """R4 of one data set."""
    drop = DROPS.get(name, 0.05)
    found = [
        _claim(f"R4/drop/{name}", f"test accuracy lost from alpha = 1 to 100 ({name})", "88 % to 55 % (VGG-11)",
             (drop, None), _falls("test_accuracy", 1.0, 100.0)),
        _claim(f"R4/train/{name}", f"training accuracy lost from alpha = 1 to 100 ({name})", "99 % to 53 % (VGG-11)",
             (0.0, None), _falls("train_accuracy", 1.0, 100.0)),
        _claim(f"R4/monotone/{name}", f"least loss of test accuracy from one alpha to the next ({name})",
             "falls to a plateau", (0.0, None), _least_fall),
        _claim(f"R4/moving/{name}", f"stability of the activations at alpha = 1 ({name})", "55 % (VGG-11)",
             (None, 0.9), _stability(1.0, 1.0)),
        _claim(f"R4/frozen/{name}", f"least stability of the activations at alpha >= 100 ({name})",
             "at least 99 % (VGG-11)", (0.98, None), _stability(100.0, np.inf)),
    ]  # fmt: skip
    return [replace(one, statistic=_on(rows, one.statistic)) for one in found]


def _on(rows: pd.DataFrame, statistic: Statistic) -> Statistic:
    """The statistic of these rows, whatever else the store holds."""
    return lambda _frame: statistic(rows)


def _falls(column: str, first: float, second: float) -> Statistic:
    """What a column loses between two alphas, seed by seed."""

    def statistic(rows: pd.DataFrame) -> Estimate:
        ended = _ended(rows, "ImageRun", [column])
        before, after = (_by_seed(ended, column, alpha=alpha) for alpha in (first, second))
        return mean((before - after).dropna())

    return statistic


def _least_fall(rows: pd.DataFrame) -> Estimate:
    """The least loss of mean test accuracy from one alpha to the next, by the jackknife over seeds."""
    table = _ended(rows, "ImageRun", ["test_accuracy"]).pivot_table(
        index="seed", columns="alpha", values="test_accuracy"
    )
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
        ended = _ended(rows, "ImageRun", ["stability"])
        chosen = need(ended.loc[ended["alpha"].between(low, high)], ["stability"])
        return mean([float(array(own["stability"]).min()) for _, own in chosen.groupby("seed")])

    return statistic


def _wide(model: str, rows: pd.DataFrame) -> list[Claim]:
    """R5: a wide network is better than its linearisation; one claim each on training and test images."""
    published = {
        "vgg": ("99.9 % and 61.0 %", "89.7 % and 61.7 %"),
        "resnet": ("99.4 % and 55.0 %", "91.0 % and 56.7 %"),
    }
    found = []
    for kind, reference in zip(("train", "test"), published[model], strict=True):
        sentence = f"{kind} accuracy of the wide {model} over that of its linearisation, difference"
        statistic = _on(rows, _falls(f"{kind}_accuracy", 1.0, 1e7))
        found.append(_claim(f"R5/{kind}/{model}", sentence, reference, (0.0, None), statistic))
    return found


def _ended(frame: pd.DataFrame, run: str, columns: list[str]) -> pd.DataFrame:
    """The last rows of the finished runs of a class."""
    ends = last(frame.loc[frame["run"] == run])
    return need(ends.loc[ends["status"] == "finished"], columns)


def _by_seed(rows: pd.DataFrame, column: str, **where: float | str) -> pd.Series:
    """A column by seed, of the rows that have these values."""
    for name, value in where.items():
        rows = rows.loc[rows[name] == value]
    if rows.empty:
        words = ", ".join(f"{name} = {value}" for name, value in where.items())
        raise UserError(f"`frame` has no finished run at {words}: let the study finish")
    return pd.Series(array(rows[column]), index=array(rows["seed"])).dropna()


def _ratio(above: pd.Series, below: pd.Series) -> Estimate:
    """The geometric mean over seeds of the ratio."""
    return mean((above / below).dropna(), log=True)
