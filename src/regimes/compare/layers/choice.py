"""What a race of sets of layers says: a table with intervals, the set to train, what it saves, and the answer."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from regimes import control
from regimes.compare.layers.candidates import ALL
from regimes.compare.layers.race import Rungs, Standing
from regimes.compare.layers.saving import Cost
from regimes.compare.task.criterion import COLUMNS, Criterion, ends, number, ranges
from regimes.core.estimate import Estimate, quantile

__all__ = ["LayerChoice", "Setting", "concluded", "over_splits"]


@dataclass(frozen=True)
class Setting:
    """What was raced.

    Attributes:
        layers: from the bottom to the top.
        criterion: margin and level.
        most: the largest error and score that there can be.
        held: samples held out in a split over those trained on.
        plan: of the race.
        run: steps of one training with all samples.
        start: the error of the network as it came on the samples held out in each split, (splits,).
    """

    layers: tuple[str, ...]
    criterion: Criterion
    most: tuple[float, float]
    held: float
    plan: Rungs
    run: int
    start: np.ndarray


@dataclass(frozen=True, eq=False)
class LayerChoice:
    """Which layers to train; from :func:`which_layers`. ``print`` shows it.

    Attributes:
        table: one row for each pair of a set of layers and a learning rate, the best first. Columns: ``candidate``,
            ``lr``, ``epochs`` (that it was trained for), ``error`` and ``score`` on the samples held out, and
            ``difference``, the score of the best pair of a set less that of the best of all layers, each with ``_low``
            and ``_high``; ``status`` ("finished", "left behind", "diverged").
        costs: one row for each set, in the same order: what a step costs as a share of one of all layers, ``backward``
            (operations of the backward pass), ``kept`` (bytes that the forward pass keeps for it) and ``moving``
            (parameters, and with them what an optimiser keeps); ``layers``.
        answer: the name of a set that is better than all layers beyond the noise, "all", or "open".
        sentence: the answer in words.
        candidate: the set with the best score, whatever the answer.
        moves: the same for :func:`regimes.control.layer_plan` and :class:`regimes.control.LayerwiseSparse`.
        lr: its learning rate.
        layers: the names of its layers, from the bottom to the top.
        start: the error of the network as it came.
        steps: of the optimiser that were taken; fewer where trainings diverged.
        runs: the same in trainings of all samples.
    """

    table: pd.DataFrame
    costs: pd.DataFrame
    answer: str
    sentence: str
    candidate: str
    moves: control.Moves
    lr: float
    layers: tuple[str, ...]
    start: float
    steps: int
    runs: float

    def __str__(self) -> str:
        finished = self.table.loc[self.table["status"] == "finished"]
        shown = pd.DataFrame(
            {
                "lr": [f"{lr:g}" for lr in finished["lr"]],
                "held-out error": ranges(finished, "error"),
                "score": ranges(finished, "score"),
                "score - all layers": ranges(finished, "difference"),
            }
        )
        shown.index = pd.Index(finished["candidate"], name="candidate")
        shares = self.costs.drop(columns="layers").map("{:.2f}".format)
        said = textwrap.fill(self.sentence, COLUMNS)
        return (
            f"{shown.to_string()}\n\nA step, as a share of one of all layers:\n{shares.to_string()}\n\n{said}"
        )


def over_splits(
    values: np.ndarray, held: float, level: float, ends: tuple[float, float] = (-math.inf, math.inf)
) -> Estimate:
    r"""The mean over J splits with an interval for new training sets: :math:`\bar v \pm t_{J-1} s \sqrt{1/J + \rho}`.

    The training sets of the splits overlap, so that 1/J alone would be too short; :math:`\rho` is the number of
    samples held out over that trained on. What cannot lie beyond ``ends`` does not.

    Source: Nadeau and Bengio, Inference for the generalization error, 2003, section 3 (the corrected resampled t).

    >>> found = over_splits(np.array([0.1, 0.1, 0.1]), 0.5, 0.95)
    >>> abs(found.low - 0.1) < 1e-12, abs(found.high - 0.1) < 1e-12
    (True, True)
    """
    n, centre = len(values), float(values.mean())
    with np.errstate(over="ignore", invalid="ignore"):  # of a training that goes astray
        half = quantile(n - 1, level) * float(values.std(ddof=1)) * math.sqrt(1 / n + held)
    method = f"mean over {n} splits; corrected resampled t, {100 * level:g} %"
    return Estimate(centre, max(centre - half, ends[0]), min(centre + half, ends[1]), n, method)


def concluded(results: Sequence[Standing], costs: Mapping[str, Cost], setting: Setting) -> LayerChoice:
    """The choice with the best score, and whether it is clear.

    Args:
        results: the best first.
        costs: of a step, by the name of the set.
        setting: what was raced.
    """
    full = next(
        (each for each in results if each.entry.candidate.name == ALL and each.errors is not None), None
    )
    rivals: list[Standing] = []  # of each set the best pair
    for each in results:
        name = each.entry.candidate.name
        if _finished(each, setting) and name not in (ALL, *(rival.entry.candidate.name for rival in rivals)):
            rivals.append(each)
    # All of these intervals hold together (Bonferroni), so that the best may be picked.
    joint, most = 1 - (1 - setting.criterion.level) / max(len(rivals), 1), setting.most[1]
    apart = {
        id(each): over_splits(each.scores - full.scores, setting.held, joint, (-most, most))
        for each in rivals
        if full is not None and full.scores is not None and each.scores is not None
    }
    best = results[0]
    answer, sentence = _decided(best, full, apart, rivals, setting)
    if best.scores is not None:
        sentence += _saved(best, costs) + _gained(best, setting)
    rows = [_row(each, apart.get(id(each)), setting) for each in results]
    sets = {each.entry.candidate.name: each.entry.candidate for each in results}
    shares = pd.DataFrame(
        [
            {
                "candidate": name,
                **_shares(costs[name], costs[ALL]),
                "layers": ", ".join(setting.layers[place] for place in sorted(one.places)),
            }
            for name, one in sets.items()
        ]
    )
    chosen = best.entry.candidate
    return LayerChoice(
        pd.DataFrame(rows),
        shares.set_index("candidate"),
        answer,
        sentence,
        chosen.name,
        chosen.moves,
        best.entry.rate,
        tuple(setting.layers[place] for place in sorted(chosen.places)),
        float(setting.start.mean()),
        setting.plan.steps,
        setting.plan.steps / setting.run,
    )


def _finished(result: Standing, setting: Setting) -> bool:
    """Whether it was trained to the end."""
    return result.scores is not None and result.epochs == setting.plan.epochs[-1]


def _row(result: Standing, apart: Estimate | None, setting: Setting) -> dict[str, object]:
    """One row of the table."""
    level = setting.criterion.level
    error, score = (
        None if values is None else over_splits(values, setting.held, level, (0.0, most))
        for values, most in zip((result.errors, result.scores), setting.most, strict=True)
    )
    return {
        "candidate": result.entry.candidate.name,
        "lr": result.entry.rate,
        "epochs": result.epochs,
        **ends("error", error),
        **ends("score", score),
        **ends("difference", apart),
        "status": "finished"
        if _finished(result, setting)
        else "diverged"
        if score is None
        else "left behind",
    }


def _shares(cost: Cost, full: Cost) -> dict[str, float]:
    """What a step of a set costs, as a share of one of all layers."""
    pairs = {key: (getattr(cost, key), getattr(full, key)) for key in ("backward", "kept", "moving")}
    return {key: one / whole if whole else math.nan for key, (one, whole) in pairs.items()}


def _decided(
    best: Standing,
    full: Standing | None,
    apart: Mapping[int, Estimate],
    rivals: Sequence[Standing],
    setting: Setting,
) -> tuple[str, str]:
    """The answer, and its sentence."""
    if best.scores is None:
        return "open", "Cannot tell: every training diverged. Give smaller `rates`."
    name, level = best.entry.candidate.name, f"{100 * setting.criterion.level:g} % over splits"
    at = f"at a learning rate of {best.entry.rate:g}"
    if full is None:
        return "open", f"Cannot tell: all layers diverged at every rate. Best score: {name} {at}."
    if name == ALL:
        margin = setting.criterion.margin
        maybe = [each for each in rivals if not apart[id(each)].low > -margin]
        if not maybe:
            return ALL, f"Train all layers {at}: no other set scores better by {margin:g} ({level})."
        said = _said(
            apart[id(maybe[0])],
            f"{maybe[0].entry.candidate.name} at {maybe[0].entry.rate:g}",
            "all layers",
            level,
        )
        return "open", f"Cannot tell. Best score: all layers {at}; {said}."
    here = apart[id(best)]
    said = _said(here, name, f"all layers at {full.entry.rate:g}", level)
    if here.high < 0:
        return name, f"Train {name} {at}: {said}."
    return "open", f"Cannot tell. Best score: {name} {at}; {said}, which may be noise."


def _said(found: Estimate, one: str, other: str, level: str) -> str:
    """A difference in words."""
    how = "above" if found.value > 0 else "below"
    return (
        f"the score of {one} is {number(abs(found.value))} {how} that of {other} (difference, {level}: "
        f"{number(found.low)} to {number(found.high)})"
    )


def _saved(best: Standing, costs: Mapping[str, Cost]) -> str:
    """What a step of the chosen set costs, in words."""
    name = best.entry.candidate.name
    if name == ALL:
        return ""
    share = _shares(costs[name], costs[ALL])
    return (
        f" A backward pass then takes {share['backward']:.0%} of the operations of one of all layers and keeps "
        f"{share['kept']:.0%} of the memory; {share['moving']:.0%} of the parameters move."
    )


def _gained(best: Standing, setting: Setting) -> str:
    """A warning where training may have gained nothing."""
    assert best.errors is not None
    most = setting.most[0]
    gain = over_splits(setting.start - best.errors, setting.held, setting.criterion.level, (-most, most))
    if gain.low > 0:
        return ""
    return (
        f" Mind that the network as it came errs by {number(float(setting.start.mean()))}: training gained "
        f"{number(gain.value)} ({number(gain.low)} to {number(gain.high)})."
    )
