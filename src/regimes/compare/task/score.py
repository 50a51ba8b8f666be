"""What came out of all seeds, model by model: scores on the held-out samples, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from regimes.compare.task.criterion import Criterion, number
from regimes.compare.task.problem import Fit, Problem
from regimes.core.estimate import Estimate, mean, paired_share, share, two_way, two_way_variances

__all__ = ["Model", "Trial", "apart", "models_of", "needed", "single", "unlearnt"]


@dataclass(frozen=True, eq=False)
class Trial:
    """All models of one seed."""

    problem: Problem
    fits: tuple[Fit, ...]


@dataclass(frozen=True, eq=False)
class Model:
    """One model over all seeds.

    Attributes:
        name: of the model.
        status: "finished", or of the seeds that gave no outputs.
        seconds: of all seeds together.
        time: t of the gradient flow that goes as far, the mean.
        late: by how much the training error fell in the last quarter of the epochs, the mean.
        error, loss: on the held-out samples, (seeds, n); None unless every seed finished.
        train_error, train_loss: the means.
        counts: whether errors are right or wrong, or numbers.
    """

    name: str
    status: str
    seconds: float
    time: float
    late: float
    error: np.ndarray | None
    loss: np.ndarray | None
    train_error: float
    train_loss: float
    counts: bool


def models_of(trials: Sequence[Trial]) -> dict[str, Model]:
    """The models by name, in the order of the first seed."""
    names = list(dict.fromkeys(fit.name for trial in trials for fit in trial.fits))
    return {name: _model(name, trials) for name in names}


def _model(name: str, trials: Sequence[Trial]) -> Model:
    """One model; a seed in which it is missing leaves it without scores."""
    found = [(trial.problem, fit) for trial in trials for fit in trial.fits if fit.name == name]
    failed = [fit.status for _, fit in found if fit.status != "finished"]
    status = "finished" if len(found) == len(trials) and not failed else failed[0] if failed else "missing"
    if failed and len(trials) > 1:
        status += f" in {len(failed)} of {len(trials)} seeds"
    known = [
        (problem, fit.train, fit.test)
        for problem, fit in found
        if fit.train is not None and fit.test is not None
    ]
    held = [problem.score(test, problem.test.y) for problem, _, test in known]
    own = [problem.score(outputs, problem.train.y) for problem, outputs, _ in known]
    done = status == "finished"
    return Model(
        name,
        status,
        sum(fit.seconds for _, fit in found),
        _average([fit.time for _, fit in found]),
        _average([fit.late for _, fit in found]),
        np.stack([each.error.cpu().numpy() for each in held]) if done else None,
        np.stack([each.loss.cpu().numpy() for each in held]) if done else None,
        _average([float(each.error.mean()) for each in own] if done else []),
        _average([float(each.loss.mean()) for each in own] if done else []),
        trials[0].problem.unit is None,
    )


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def single(model: Model, quantity: str, level: float) -> Estimate | None:
    """The mean error or loss of a model, None without scores."""
    values = model.error if quantity == "error" else model.loss
    if values is None:
        return None
    counts = quantity == "error" and model.counts
    if len(values) > 1:
        return two_way(values, (0.0, 1.0) if counts else None, level=level)
    if counts:
        return share(int(values.sum()), values.shape[1], level=level)
    return mean(values[0], level=level)


def apart(model: Model, network: Model, quantity: str, level: float) -> Estimate | None:
    """Error or loss of a model less those of the network, seed by seed and sample by sample."""
    values, counts = _differences(model, network, quantity)
    if values is None:
        return None
    if len(values) > 1:
        return two_way(values, (-1.0, 1.0) if counts else None, level=level)
    if counts:
        return paired_share(int((values > 0).sum()), int((values < 0).sum()), values.shape[1], level=level)
    return mean(values[0], level=level)


def _differences(model: Model, network: Model, quantity: str) -> tuple[np.ndarray | None, bool]:
    """The differences (seeds, n), and whether they are of right and wrong."""
    one, other = (each.error if quantity == "error" else each.loss for each in (model, network))
    if one is None or other is None:
        return None, False
    return one - other, quantity == "error" and model.counts


def needed(model: Model, network: Model, here: Estimate, margin: float, level: float) -> str:
    """What would decide, if the difference stays what it is: the wider part of the interval falls like n^-1/2."""
    distance, half = abs(margin - here.value), (here.high - here.low) / 2
    factor = (half / distance) ** 2 if distance > 0 else math.inf
    values, counts = _differences(model, network, "error")
    seeds = 1 if values is None else len(values)
    what, now, unit = "held-out samples", here.n, 100
    if values is not None and seeds > 1:
        _, by_seed, by_sample = two_way_variances(values, (-1.0, 1.0) if counts else None, level=level)
        if by_seed > by_sample:
            what, now, unit = "seeds", seeds, 1
    if not factor < 1e3:
        return f"give more {what}, or another margin"
    return f"give more {what}: about {math.ceil(factor * now / unit) * unit}, now {now}"


def unlearnt(network: Model, baselines: Sequence[Model], criterion: Criterion) -> str:
    """Why a network is no yardstick: it gained too little over its start, or over a constant answer; else ""."""
    for each in baselines:
        gain = apart(each, network, "error", criterion.level)
        if gain is None or not gain.low > criterion.margin:
            said = (
                "nothing to compare"
                if gain is None
                else (
                    f"{each.name} - network is {number(gain.value)} ({100 * criterion.level:g} %: {number(gain.low)} "
                    f"to {number(gain.high)}), not clearly above the margin of {criterion.margin:g}"
                )
            )
            what = "its start" if each.name == "start" else "a constant answer"
            return (
                f"Cannot tell: the network did not learn. Against {what} it gained too little: {said}. Train it "
                "longer, at another learning rate, or with more data."
            )
    return ""
