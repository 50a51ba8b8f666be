"""What a comparison says: a table with intervals, paired differences, and the answer by a rule."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from regimes.study.compare.task import Fit, Scores, Task
from regimes.study.estimate import Estimate, mean, paired_share, share

__all__ = ["Answer", "Comparison", "Rule", "judge"]

Answer = Literal["yes", "no", "open"]

NETWORK, START = "network", "start"
# The width of the sentence, about that of the table.
_COLUMNS = 110


@dataclass(frozen=True)
class Rule:
    """How it is decided.

    Attributes:
        margin: the error that may be lost.
        level: of the intervals.
    """

    margin: float
    level: float

    def answer(self, difference: Estimate) -> Answer:
        """ "yes" if the whole interval is below the margin, "no" if it is above, else "open"."""
        if difference.high < self.margin:
            return "yes"
        return "no" if difference.low > self.margin else "open"


@dataclass(frozen=True, eq=False)
class Comparison:
    """Whether a linear model would do; from :func:`would_linear_do`. ``print`` shows it.

    Attributes:
        table: one row per model: "start" (the network untrained), "network", "linearisation", and the kernel.
            Columns: ``error`` and ``loss`` on the held-out data with ``_low`` and ``_high``, ``train_error``,
            ``train_loss``, ``time`` (of gradient flow), ``seconds``, ``status``.
        difference: one row per other model: its held-out error and loss less those of the network, sample by sample,
            with ``_low`` and ``_high``; for linear models their ``answer``.
        answer: "yes", "no" or "open".
        sentence: the answer in words.
        margin, level: of the rule.
        samples: held-out samples.
        lr: the learning rate of the first step.
    """

    table: pd.DataFrame
    difference: pd.DataFrame
    answer: Answer
    sentence: str
    margin: float
    level: float
    samples: int
    lr: float

    def __str__(self) -> str:
        shown = pd.DataFrame(
            {
                "held-out error": _ranges(self.table, "error"),
                "held-out loss": _ranges(self.table, "loss"),
                "train error": self.table["train_error"].map(_number),
                "train loss": self.table["train_loss"].map(_number),
                "seconds": self.table["seconds"].map("{:.1f}".format),
                "status": self.table["status"],
            }
        )
        lost = pd.DataFrame(
            {
                "error": _ranges(self.difference, "error"),
                "loss": _ranges(self.difference, "loss"),
                "answer": self.difference["answer"],
            }
        )
        lost.index = pd.Index([f"{name} - network" for name in self.difference.index])
        said = textwrap.fill(self.sentence, _COLUMNS)
        return f"{shown.to_string()}\n\n{lost.to_string()}\n\n{said}"


def judge(task: Task, fits: Sequence[Fit], rule: Rule, lr: float) -> Comparison:
    """Score the models on the held-out samples, and decide."""
    scores = {fit.name: task.score(fit.test, task.test.y) for fit in fits if fit.test is not None}
    table = pd.DataFrame([_row(task, fit, scores.get(fit.name), rule.level) for fit in fits])
    linear = [fit.name for fit in fits if fit.name not in (NETWORK, START)]
    seen = [name for name in linear if name in scores] if NETWORK in scores else []
    # All intervals of linear models hold together at this level (Bonferroni), so the best may be picked.
    joint = 1 - (1 - rule.level) / max(len(seen), 1)
    errors: dict[str, Estimate] = {}
    rows = []
    for fit in fits:
        if fit.name == NETWORK:
            continue
        row: dict[str, object] = {
            "model": fit.name,
            **_ends("error", None),
            **_ends("loss", None),
            "answer": "",
        }
        if NETWORK in scores and fit.name in scores:
            level = joint if fit.name in seen else rule.level
            errors[fit.name], loss = _differences(task, scores[fit.name], scores[NETWORK], level)
            row |= _ends("error", errors[fit.name]) | _ends("loss", loss)
            row["answer"] = rule.answer(errors[fit.name]) if fit.name in seen else ""
        rows.append(row)
    answer, sentence = _decide(rule, {name: errors[name] for name in seen}, fits)
    if NETWORK in scores:
        late = next(fit.late for fit in fits if fit.name == NETWORK)
        sentence += _warned(rule, errors[START], late)
    return Comparison(
        table.set_index("model"),
        pd.DataFrame(rows).set_index("model"),
        answer,
        sentence,
        rule.margin,
        rule.level,
        len(task.test),
        lr,
    )


def _row(task: Task, fit: Fit, scores: Scores | None, level: float) -> dict[str, object]:
    """One row of the table."""
    row: dict[str, object] = {"model": fit.name}
    if scores is None or fit.train is None:
        row |= _ends("error", None) | _ends("loss", None) | {"train_error": math.nan, "train_loss": math.nan}
    else:
        row |= _ends("error", _single(task, scores, level))
        row |= _ends("loss", mean(scores.loss.tolist(), level=level))
        own = task.score(fit.train, task.train.y)
        row |= {"train_error": float(own.error.mean()), "train_loss": float(own.loss.mean())}
    return row | {"time": fit.time, "seconds": fit.seconds, "status": fit.status}


def _single(task: Task, scores: Scores, level: float) -> Estimate:
    """The mean error: a share of wrong answers, or a mean of squares."""
    if task.unit is None:
        return share(int(scores.error.sum()), len(scores.error), level=level)
    return mean(scores.error.tolist(), level=level)


def _differences(task: Task, model: Scores, network: Scores, level: float) -> tuple[Estimate, Estimate]:
    """Error and loss of a model less those of the network, sample by sample."""
    apart = model.error - network.error
    loss = mean((model.loss - network.loss).tolist(), level=level)
    if task.unit is not None:
        return mean(apart.tolist(), level=level), loss
    return paired_share(int((apart > 0).sum()), int((apart < 0).sum()), len(apart), level=level), loss


def _ends(name: str, found: Estimate | None) -> dict[str, object]:
    value, low, high = (math.nan,) * 3 if found is None else (found.value, found.low, found.high)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _decide(rule: Rule, linear: dict[str, Estimate], fits: Sequence[Fit]) -> tuple[Answer, str]:
    """The answer of all linear models together, in words."""
    left = [f"{fit.name} ({fit.status})" for fit in fits if fit.status != "finished"]
    aside = f" Without a result: {', '.join(left)}." if left else ""
    if not linear:
        return "open", f"Cannot tell: there is nothing to compare.{aside} Give a smaller `lr`."
    best = min(linear, key=lambda name: linear[name].high)
    answers = {name: rule.answer(each) for name, each in linear.items()}
    here = linear[best]
    side = "more" if here.value >= 0 else "less"
    said = (
        f"{best} errs by {_number(abs(here.value))} {side} than the network (model - network, "
        f"{100 * rule.level:g} %: {_number(here.low)} to {_number(here.high)})"
    )
    if answers[best] == "yes":
        return "yes", f"A linear model would do: {said}; all below the margin of {rule.margin:g}.{aside}"
    if all(each == "no" for each in answers.values()):
        return (
            "no",
            f"A linear model would not do: at best, {said}; all above the margin of {rule.margin:g}.{aside}",
        )
    return (
        "open",
        f"Cannot tell: {said}, and the margin of {rule.margin:g} lies within; {_more(rule, here)}.{aside}",
    )


def _more(rule: Rule, here: Estimate) -> str:
    """How many samples would decide, if the difference stays what it is: the width falls like n^-1/2."""
    apart = abs(rule.margin - here.value)
    half = (here.high - here.low) / 2
    factor = (half / apart) ** 2 if apart > 0 else math.inf
    if not factor < 1e3:
        return "give more held-out samples, or another margin"
    return f"give more held-out samples: about {math.ceil(factor * here.n / 100) * 100}, now {here.n}"


def _warned(rule: Rule, start: Estimate, late: float) -> str:
    """What to say where the network is no good yardstick: it gained little, or was still learning."""
    said = ""
    if rule.answer(start) != "no":
        said += (
            f" Mind that training gained the network little: start - network is {_number(start.value)} "
            f"({100 * rule.level:g} %: {_number(start.low)} to {_number(start.high)})."
        )
    if late > rule.margin:
        said += (
            f" Mind that the network was still learning: its training error fell by {_number(late)} in the last "
            "quarter of the epochs; train longer."
        )
    return said


def _ranges(frame: pd.DataFrame, name: str) -> list[str]:
    """Values with their intervals."""
    columns = (frame[name], frame[f"{name}_low"], frame[f"{name}_high"])
    return [
        "-" if math.isnan(value) else f"{_number(value)} ({_number(low)} to {_number(high)})"
        for value, low, high in zip(*columns, strict=True)
    ]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}" if abs(value) < 1e-3 and value else f"{value:.4f}"
