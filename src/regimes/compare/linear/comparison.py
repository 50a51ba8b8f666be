"""What a comparison says: a table with intervals, paired differences, and the answer by a criterion."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from regimes.compare.task.criterion import COLUMNS, Answer, Criterion, ends, number, ranges
from regimes.compare.task.score import Model, Trial, apart, models_of, needed, single, unlearnt
from regimes.core.estimate import Estimate
from regimes.core.loss import LOSSES

__all__ = ["Comparison", "conclude"]

NETWORK, LINEAR = "network", "linearisation"
BASELINES = ("constant", "start")


@dataclass(frozen=True, eq=False)
class Comparison:
    """Whether a linear model would do; from :func:`would_linear_do`. ``print`` shows it.

    Attributes:
        table: one row per model: "constant" (the best answer that knows no inputs), "start" (the network untrained),
            "network", "linearisation", and the kernel. Columns: ``error`` and ``loss`` on the held-out data with
            ``_low`` and ``_high``, ``train_error``, ``train_loss``, ``time`` (of gradient flow), ``seconds`` (of all
            seeds), ``status``.
        difference: one row per other model: its held-out error and loss less those of the network, paired, with
            ``_low`` and ``_high``; for linear models their ``answer``.
        answer: "yes", "no" or "open".
        sentence: the answer in words.
        margin, level: of the criterion.
        samples: held-out samples.
        seeds: how many were trained.
        lr: the learning rate of the first step.
        covers: what the intervals hold for, and how the kernel was solved, in words.
    """

    table: pd.DataFrame
    difference: pd.DataFrame
    answer: Answer
    sentence: str
    margin: float
    level: float
    samples: int
    seeds: int
    lr: float
    covers: str

    def __str__(self) -> str:
        shown = pd.DataFrame(
            {
                "held-out error": ranges(self.table, "error"),
                "held-out loss": ranges(self.table, "loss"),
                "train error": self.table["train_error"].map(number),
                "train loss": self.table["train_loss"].map(number),
                "seconds": self.table["seconds"].map("{:.1f}".format),
                "status": self.table["status"],
            }
        )
        lost = pd.DataFrame(
            {
                "error": ranges(self.difference, "error"),
                "loss": ranges(self.difference, "loss"),
                "answer": self.difference["answer"],
            }
        )
        lost.index = pd.Index([f"{name} - network" for name in self.difference.index])
        covers, said = (textwrap.fill(text, COLUMNS) for text in (self.covers, self.sentence))
        return f"{shown.to_string()}\n\n{lost.to_string()}\n\n{covers}\n\n{said}"


def conclude(trials: Sequence[Trial], criterion: Criterion, lr: float, varies: Sequence[str]) -> Comparison:
    """Score the models on the held-out samples, and decide; ``varies`` is what differs between seeds."""
    models = models_of(trials)
    network = models[NETWORK]
    linear = [name for name in models if name not in (NETWORK, *BASELINES)]
    # All intervals of linear models hold together at this level (Bonferroni), so the best may be picked.
    joint = 1 - (1 - criterion.level) / max(len(linear), 1)
    errors: dict[str, Estimate | None] = {}
    rows = []
    for name, model in models.items():
        if name == NETWORK:
            continue
        level = joint if name in linear else criterion.level
        errors[name] = apart(model, network, "error", level)
        loss = apart(model, network, "loss", level)
        rows.append({"model": name, **ends("error", errors[name]), **ends("loss", loss)})
    stop = _no_yardstick(criterion, models)
    answers: dict[str, Answer] = {
        name: "open" if stop or found is None else criterion.answer(found)
        for name, found in errors.items()
        if name in linear
    }
    answer, sentence = ("open", stop) if stop else _decide(criterion, models, errors, answers, joint)
    if network.late > criterion.margin:
        sentence += (
            f" Mind that the network was still learning: its training error fell by {number(network.late)} in the "
            "last quarter of the epochs; train longer."
        )
    table = pd.DataFrame([_row(model, criterion.level) for model in models.values()])
    difference = pd.DataFrame(rows).assign(answer=[answers.get(str(row["model"]), "") for row in rows])
    samples = len(trials[0].problem.test)
    return Comparison(
        table.set_index("model"),
        difference.set_index("model"),
        answer,
        sentence,
        criterion.margin,
        criterion.level,
        samples,
        len(trials),
        lr,
        _covers(trials, models, varies, samples),
    )


def _row(model: Model, level: float) -> dict[str, object]:
    """One row of the table."""
    return {
        "model": model.name,
        **ends("error", single(model, "error", level)),
        **ends("loss", single(model, "loss", level)),
        "train_error": model.train_error,
        "train_loss": model.train_loss,
        "time": model.time,
        "seconds": model.seconds,
        "status": model.status,
    }


def _no_yardstick(criterion: Criterion, models: Mapping[str, Model]) -> str:
    """Why nothing can be said: no network or linearisation to compare, or a network that did not learn; else ""."""
    for name in (NETWORK, LINEAR):
        if models[name].error is None:
            return (
                f"Cannot tell: the {name} has no result ({models[name].status}). Give a smaller `lr`, or an "
                "`optimizer` of smaller steps."
            )
    return unlearnt(models[NETWORK], [models[name] for name in BASELINES], criterion)


def _decide(
    criterion: Criterion,
    models: Mapping[str, Model],
    errors: Mapping[str, Estimate | None],
    answers: Mapping[str, Answer],
    joint: float,
) -> tuple[Answer, str]:
    """The answer of all linear models together, in words."""
    known = {name: found for name in answers if (found := errors[name]) is not None}
    left = [f"{name} ({models[name].status})" for name in answers if name not in known]
    aside = f" Without a result: {', '.join(left)}." if left else ""
    level = f"{100 * criterion.level:g} %"

    def said(name: str, here: Estimate) -> str:
        return (
            f"{name} errs by {number(abs(here.value))} {'more' if here.value >= 0 else 'less'} than the network "
            f"(model - network, {level}: {number(here.low)} to {number(here.high)})"
        )

    best = min(known, key=lambda name: known[name].high)
    if answers[best] == "yes":
        does = f"A linear model would do: {said(best, known[best])}; all below the margin of {criterion.margin:g}."
        return "yes", does + aside
    unsure = [name for name in known if answers[name] == "open"]
    if not unsure:
        over = f"at best, {said(best, known[best])}; all above the margin of {criterion.margin:g}."
        if left:
            return "open", f"Cannot tell: {over} But a linear model is missing.{aside}"
        return "no", f"A linear model would not do: {over}"
    near = min(unsure, key=lambda name: known[name].high)
    more = needed(models[near], models[NETWORK], known[near], criterion.margin, joint)
    within = (
        f"Cannot tell: {said(near, known[near])}, and the margin of {criterion.margin:g} lies within; {more}."
    )
    return "open", within + aside


def _covers(trials: Sequence[Trial], models: Mapping[str, Model], varies: Sequence[str], samples: int) -> str:
    """What the intervals hold for, what it cost, and what the rows of the kernel are."""
    seconds = sum(model.seconds for model in models.values())
    if len(trials) > 1:
        said = f"Intervals are for new held-out samples ({samples}) and new seeds ({len(trials)}: {', '.join(varies)})"
    else:
        why = "one seed" if varies else "nothing depends on the seed"
        said = f"Intervals are for new held-out samples ({samples}) alone: {why}"
    kind = type(trials[0].problem.loss)
    loss = next((name for name, known in LOSSES.items() if type(known) is kind), kind.__name__)
    rows = {
        "kernel, same time": f"gradient flow of the {loss} loss for the time of the steps",
        "kernel, best time": f"gradient flow of the {loss} loss",
        "kernel, to the end": "kernel regression",
        "kernel, squared loss": f"kernel regression, which minimises the squared loss, not {loss}",
    }
    notes = "; ".join(f'"{name}" is {what}' for name, what in rows.items() if name in models)
    return f"{said}. {seconds:.1f} s in all." + (f" Here {notes}." if notes else "")
