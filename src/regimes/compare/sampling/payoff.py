"""What a trial of sampled layers says: a table with intervals, and an answer for time and one for memory."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from regimes.compare.task.criterion import COLUMNS, Answer, ends, ranges
from regimes.compare.task.score import Model, Trial, apart, models_of, single
from regimes.core.estimate import Estimate
from regimes.measure.layer_cost import LayerCosts

__all__ = ["FULL", "Payoff", "Stakes", "Tried", "settled"]

FULL = "all layers"


@dataclass(frozen=True)
class Tried:
    """How a choice of layers was trained.

    Attributes:
        name: of the choice.
        sampled: whether layers are drawn or take turns, and each of them moves at some steps.
        ratio: what a step costs, over one of all layers.
        memory: the bytes of activations and gradients at the largest step, over those of all layers.
        steps: in the time of the trial.
        factor: of the learning rate.
    """

    name: str
    sampled: bool
    ratio: float
    memory: float
    steps: int
    factor: float


@dataclass(frozen=True)
class Stakes:
    """What counts as paying.

    Attributes:
        margin: the error that has to be gained, or may be lost.
        saving: the share of the memory that has to be saved.
        level: of all intervals.
    """

    margin: float
    saving: float
    level: float


@dataclass(frozen=True, eq=False)
class Payoff:
    """Whether sampling layers would pay; from :func:`would_sampling_pay`. ``print`` shows it.

    Attributes:
        time: "yes", "no" or "open": whether a sampled choice errs less after the same time.
        memory: likewise, whether one needs less memory and errs no more after the same time.
        table: one row for each choice of layers: ``sampled``, ``ratio`` (of the seconds of a step), ``memory`` (at the
            largest step), ``steps``, ``factor`` (of the learning rate), ``error`` and ``difference`` (of the error,
            less that of all layers) with ``_low`` and ``_high``, ``train_error``, ``status``.
        sentences: the answers in words.
        costs: what each layer costs.
        covers: what the intervals hold for, and what was spent, in words.
    """

    time: Answer
    memory: Answer
    table: pd.DataFrame
    sentences: tuple[str, str, str]
    costs: LayerCosts
    covers: str

    @property
    def answer(self) -> Answer:
        """ "yes" if it pays in time or in memory, "no" if in neither, else "open"."""
        both = (self.time, self.memory)
        return "yes" if "yes" in both else "open" if "open" in both else "no"

    def __str__(self) -> str:
        shown = pd.DataFrame(
            {
                "step": self.table["ratio"].map("{:.2f}".format),
                "memory": self.table["memory"].map("{:.2f}".format),
                "steps": self.table["steps"],
                "held-out error": ranges(self.table, "error"),
                "less that of all layers": ranges(self.table, "difference"),
                "train error": self.table["train_error"].map("{:.4f}".format),
                "status": self.table["status"],
            }
        )
        shown.index.name = None
        said = [textwrap.fill(each, COLUMNS) for each in (self.covers, *self.sentences) if each]
        return "\n\n".join([shown.to_string(), *said])


def settled(
    trials: Sequence[Trial], runs: Sequence[Tried], costs: LayerCosts, stakes: Stakes, covers: str
) -> Payoff:
    """Score all choices on the held-out samples, and answer."""
    models = models_of(trials)
    full = models[FULL]
    sampled = [run for run in runs if run.sampled]
    # One choice that is picked must hold together with the others (Bonferroni); what is said of each of them need not.
    joint = 1 - (1 - stakes.level) / max(len(sampled), 1)
    others = [run for run in runs if run.name != FULL]
    found = {run.name: apart(models[run.name], full, "error", stakes.level) for run in others}
    wide = {run.name: apart(models[run.name], full, "error", joint) for run in sampled}
    rows = [_row(run, models[run.name], found.get(run.name), stakes.level) for run in runs]
    time, said_time = _unless_learning(_in_time(sampled, found, wide, full, stakes), full, stakes)
    memory, said_memory = _unless_learning(_in_memory(sampled, found, wide, full, stakes), full, stakes)
    hint = _hint([run for run in others if not run.sampled], found)
    return Payoff(
        time, memory, pd.DataFrame(rows).set_index("choice"), (said_time, said_memory, hint), costs, covers
    )


def _row(run: Tried, model: Model, difference: Estimate | None, level: float) -> dict[str, object]:
    return {
        "choice": run.name,
        "sampled": run.sampled,
        "ratio": run.ratio,
        "memory": run.memory,
        "steps": run.steps,
        "factor": run.factor,
        **ends("error", single(model, "error", level)),
        **ends("difference", difference),
        "train_error": model.train_error,
        "status": model.status,
    }


Found = Mapping[str, Estimate | None]


def _known(runs: Sequence[Tried], found: Found) -> dict[str, Estimate]:
    """The differences of the choices that could be trained."""
    return {run.name: each for run in runs if (each := found[run.name]) is not None}


def _in_time(
    sampled: Sequence[Tried], found: Found, wide: Found, full: Model, stakes: Stakes
) -> tuple[Answer, str]:
    """Yes if one surely errs less, no if none can err less by the margin."""
    if full.error is None:
        return "open", f"In time, cannot tell: all layers have no result ({full.status})."
    known, joint = _known(sampled, found), _known(sampled, wide)
    if not known:
        return "no", "In time, sampling would not pay: no sampled choice could be trained."
    sure = min(joint, key=lambda name: joint[name].high)
    if joint[sure].high < 0:
        return "yes", f"In time, sampling would pay: {_said(sure, joint[sure])}."
    best = min(known, key=lambda name: known[name].low)
    if known[best].low > -stakes.margin:
        return "no", (
            f"In time, sampling would not pay: none can gain the margin of {stakes.margin:g}; at best, "
            f"{_said(best, known[best])}."
        )
    return "open", (
        f"In time, cannot tell: {_said(best, known[best])}. It takes more seeds, or more held-out samples."
    )


def _in_memory(
    sampled: Sequence[Tried], found: Found, wide: Found, full: Model, stakes: Stakes
) -> tuple[Answer, str]:
    """Yes if one saves enough and surely loses less than the margin, no if none does either."""
    small = {run.name: run for run in sampled if run.memory <= 1 - stakes.saving}
    if not small:
        least = min((run.memory for run in sampled), default=1.0)
        return "no", (
            "In memory, sampling would not pay: the largest step decides, and of no sampled choice it needs at most "
            f"{1 - stakes.saving:g} of what all layers need (the least is {least:.2f})."
        )
    if full.error is None:
        return "open", f"In memory, cannot tell: all layers have no result ({full.status})."
    known, joint = _known([*small.values()], found), _known([*small.values()], wide)
    if not known:
        return "no", "In memory, sampling would not pay: no choice that saves enough could be trained."

    def said(name: str, here: Estimate) -> str:
        return f"{_said(name, here)}, with {small[name].memory:.2f} of the memory"

    sure = min(joint, key=lambda name: joint[name].high)
    if joint[sure].high < stakes.margin:
        return "yes", f"In memory, sampling would pay: {said(sure, joint[sure])}."
    best = min(known, key=lambda name: known[name].low)
    if known[best].low > stakes.margin:
        return "no", (
            f"In memory, sampling would not pay: at best, {said(best, known[best])}; the margin is {stakes.margin:g}."
        )
    return "open", (
        f"In memory, cannot tell: {said(best, known[best])}; the margin of {stakes.margin:g} lies within."
    )


def _unless_learning(answer: tuple[Answer, str], full: Model, stakes: Stakes) -> tuple[Answer, str]:
    """A "yes" is open as long as all layers are still learning."""
    if answer[0] != "yes" or not full.late > stakes.margin:
        return answer
    return "open", (
        f"{answer[1]} But all layers were still learning: their training error fell by {full.late:.4f} in the last "
        "quarter of the time, so that it may turn. Cannot tell; give more `epochs`."
    )


def _hint(fixed: Sequence[Tried], found: Found) -> str:
    """Where the same layers at every step do better than all layers."""
    better = [run.name for run in fixed if (each := found[run.name]) is not None and each.high < 0]
    if not better:
        return ""
    names = ", ".join(f'"{name}"' for name in better)
    return f"{names}, the same layers at every step, err less than all layers: choose among such sets first."


def _said(name: str, here: Estimate) -> str:
    more = "more" if here.value >= 0 else "less"
    return (
        f'"{name}" errs by {abs(here.value):.4f} {more} than all layers after the same time '
        f"({here.low:.4f} to {here.high:.4f})"
    )
