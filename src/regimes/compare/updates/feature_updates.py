"""What a ladder says: a table with intervals, the least number of feature updates that is enough, and for what."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from regimes.compare.task.criterion import COLUMNS, Criterion, ends, number, ranges
from regimes.compare.task.score import Model, Trial, apart, models_of, needed, single, unlearnt
from regimes.compare.updates.rungs import BEST, Blocks, Rung, beside
from regimes.compare.updates.verdict import LeastUpdates, Verdict, decided
from regimes.core.estimate import Estimate

__all__ = ["FeatureUpdates", "Ladder", "concluded"]

BASELINES = ("constant", "start")


@dataclass(frozen=True)
class Ladder:
    """What was trained.

    Attributes:
        rungs: from the fewest updates up, plain training last, and then that at its best rate.
        lr: the learning rate of the first step, before factors.
        bound: the stability bound: the least one along plain training where the rate was found, else that at the start.
        found: whether the rate was found.
        criterion: margin and level.
        tuned: whether each rung had its own rate, the best of those tried.
        factors: of the rate, those tried.
        varies: what differs between seeds.
        seconds: of the whole call.
        late: whether the time was over before all seeds were trained.
    """

    rungs: tuple[Rung, ...]
    lr: float
    bound: float
    found: bool
    criterion: Criterion
    tuned: bool
    factors: tuple[float, ...]
    varies: tuple[str, ...]
    seconds: float
    late: bool

    @property
    def steps(self) -> int:
        """T."""
        return self.rungs[0].steps

    @property
    def where(self) -> str:
        """Where the bound was found."""
        return "wherever plain training came by" if self.found else "at the start"

    @property
    def references(self) -> list[str]:
        """The names of plain training: at the rate of the others, and at its best."""
        return [rung.name for rung in self.rungs if rung.plain]


@dataclass(frozen=True, eq=False)
class FeatureUpdates:
    """How many feature updates are enough; from :func:`how_many_feature_updates`. ``print`` shows it.

    Attributes:
        answer: the least number U of those tried that is enough, against plain training at the same rate, with all
            larger ones; "no" if not even the largest is, "open" if nobody can tell.
        against_best: the same against plain training at its own best rate.
        table: one row for each rung, from the fewest updates to plain training. Columns: ``updates`` (U), ``block``
            (steps of the longest block), ``lr``; ``error`` on the held-out data, of the linear model of the last block,
            with ``_low`` and ``_high``; ``difference`` and ``best_difference``, the error less that of plain training
            at the same rate and at its best, paired; ``network_error``, of the network at the same weights;
            ``train_error``; ``spent`` (feature updates taken, mean over seeds), ``bound`` (the least stable rate at an
            anchor), ``mended`` (blocks lowered or shortened to stay below it, of all seeds); ``seconds``, ``status``.
        sentences: the answers in words, with their condition.
        steps: T, of each training.
        margin, level: of the criterion.
        samples: held-out samples.
        seeds: how many were trained.
        lr: the learning rate of the first step.
        bound: the largest stable rate of the linearisation at the start, or where ``lr`` was left out the least one
            along plain training at that rate.
        covers: what the intervals hold for, and what was spent, in words.
    """

    answer: LeastUpdates
    against_best: LeastUpdates
    table: pd.DataFrame
    sentences: tuple[str, ...]
    steps: int
    margin: float
    level: float
    samples: int
    seeds: int
    lr: float
    bound: float
    covers: str

    def __str__(self) -> str:
        table = self.table
        shown = pd.DataFrame(
            {
                "block": table["block"],
                "lr": table["lr"].map("{:.3g}".format),
                "held-out error": ranges(table, "error"),
                "less plain training": ranges(table, "difference"),
                "less plain, best rate": ranges(table, "best_difference"),
                "network": table["network_error"].map(number),
                "train": table["train_error"].map(number),
                "status": table["status"],
            }
        )
        if BEST not in table.index:
            shown = shown.drop(columns="less plain, best rate")
        shown.index.name = None
        said = [textwrap.fill(each, COLUMNS) for each in (self.covers, *self.sentences)]
        return "\n\n".join([shown.to_string(), *said])


def concluded(
    trials: Sequence[Trial], blocks: Mapping[str, Sequence[Blocks]], ladder: Ladder
) -> FeatureUpdates:
    """Score the rungs on the held-out samples, and decide; ``blocks`` are those of each seed, by rung."""
    models = models_of(trials)
    answers, sentences = zip(
        *(_against(name, models, ladder) for name in (ladder.references * 2)[:2]), strict=True
    )
    rows = [_row(rung, models, blocks.get(rung.name, ()), ladder) for rung in ladder.rungs]
    criterion, samples = ladder.criterion, len(trials[0].problem.test)
    return FeatureUpdates(
        answers[0],
        answers[1],
        pd.DataFrame(rows).set_index("rung"),
        (*dict.fromkeys(sentences), _stability(rows, ladder)),
        ladder.steps,
        criterion.margin,
        criterion.level,
        samples,
        len(trials),
        ladder.lr,
        ladder.bound,
        _covers(len(trials), samples, ladder),
    )


def _row(
    rung: Rung, models: Mapping[str, Model], blocks: Sequence[Blocks], ladder: Ladder
) -> dict[str, object]:
    """One row of the table."""
    model, level = models[rung.name], ladder.criterion.level
    network = models.get(beside(rung.name), model)
    here = None if model.error is None else single(network, "error", level)

    def less(name: str) -> Estimate | None:
        return None if rung.name == name else apart(model, models[name], "error", level)

    same, best = (ladder.references * 2)[:2]
    return {
        "rung": rung.name,
        "updates": rung.updates,
        "block": rung.block,
        "lr": ladder.lr * rung.factor,
        **ends("error", single(model, "error", level)),
        **ends("difference", less(same)),
        **ends("best_difference", less(best)),
        "network_error": math.nan if here is None else here.value,
        "train_error": model.train_error,
        "spent": sum(each.spent for each in blocks) / len(blocks) if blocks else float(rung.updates),
        "bound": min((each.bound for each in blocks), default=math.nan),
        "mended": sum(each.mended for each in blocks),
        "seconds": model.seconds,
        "status": model.status,
    }


def _against(name: str, models: Mapping[str, Model], ladder: Ladder) -> tuple[LeastUpdates, str]:
    """The answer against one way of plain training, in words."""
    plain, criterion = models[name], ladder.criterion
    if plain.error is None:
        return "open", f"Cannot tell: {name} has no result ({plain.status}). Give a smaller `lr`."
    if stop := unlearnt(plain, [models[each] for each in BASELINES], criterion):
        return "open", stop
    linear = [rung for rung in ladder.rungs if not rung.plain]
    differences = {rung.updates: apart(models[rung.name], plain, "error", criterion.level) for rung in linear}
    verdict = decided(differences, criterion)
    rate = f"{ladder.lr * next(rung.factor for rung in ladder.rungs if rung.name == name):.3g}"
    which = "the same" if name == ladder.references[0] and not ladder.tuned else "its best"
    said = f"Against plain training at {which} rate ({rate}), {_said(verdict, differences, models, ladder)}"
    if plain.late > criterion.margin:
        said += (
            f" Mind that {name} was still learning: its training error fell by {number(plain.late)} in the last "
            "quarter of the epochs; train longer."
        )
    return verdict.answer, said


def _said(
    verdict: Verdict, differences: Mapping[int, Estimate | None], models: Mapping[str, Model], ladder: Ladder
) -> str:
    """A verdict in words."""
    criterion, names = ladder.criterion, {each.updates: each.name for each in ladder.rungs if not each.plain}
    level, margin = f"{100 * criterion.level:g} %", f"the margin of {criterion.margin:g}"
    lost = [f"{names[each]} ({models[names[each]].status})" for each in verdict.lost]
    aside = f" Without a result, and left out: {', '.join(lost)}." if lost else ""
    if len(lost) == len(names):
        return f"cannot tell: no linear block has a result. Give a smaller `lr`.{aside}"

    def errs(updates: int) -> str:
        here = differences[updates]
        if here is None:
            return "has no result"
        how = f"{number(abs(here.value))} {'more' if here.value >= 0 else 'less'}"
        return f"errs by {how} ({level}: {number(here.low)} to {number(here.high)})"

    parts = []
    if verdict.answer == 1:
        parts.append(
            f"1 feature update is enough: the features of the start need never be renewed. It {errs(1)}, all below "
            f"{margin}."
        )
    elif isinstance(verdict.answer, int):
        block = -(-ladder.steps // verdict.answer)
        parts.append(
            f"{verdict.answer} feature updates are enough, one every {block} of {ladder.steps} steps: that "
            f"{errs(verdict.answer)}, all below {margin}."
        )
    if (stop := verdict.stopped) is not None and (here := differences[stop]) is not None:
        if criterion.answer(here) == "no":
            lead = "features must be learnt more often than was tried"
            if verdict.answer == "open":
                lead = "cannot tell, with the rungs of most updates missing, but few are not enough"
            lead = "Fewer are not" if parts else lead
            parts.append(f"{lead}: with {names[stop]} it {errs(stop)}, all above {margin}.")
        else:
            lead = "Whether fewer are, nobody can tell" if parts else "cannot tell"
            plain = models[ladder.references[0]]
            more = needed(models[names[stop]], plain, here, criterion.margin, criterion.level)
            parts.append(f"{lead}: with {names[stop]} it {errs(stop)}, and {margin} lies within; {more}.")
    return " ".join(parts) + aside


def _stability(rows: Sequence[Mapping[str, object]], ladder: Ladder) -> str:
    """What the answer depends on: the rate, and what it did to linear blocks."""
    rate = ladder.lr * ladder.rungs[0].factor
    at = ", each rung at its best rate" if ladder.tuned else f" at a rate of {rate:.3g}"
    said = f"This holds for {ladder.steps} steps{at}. "
    if math.isfinite(ladder.bound):
        said += (
            f"A linear block bears {ladder.bound:.3g} {ladder.where}, of which {ladder.lr:.3g} is "
            f"{ladder.lr / ladder.bound:.2g}. "
        )
    said += "A larger rate favours plain training, which turns to where it is flatter while a linear block diverges."
    if len(ladder.factors) > 1:
        best = next(rung.factor for rung in reversed(ladder.rungs) if rung.plain)
        tries = ", ".join(f"{ladder.lr * factor:.3g}" for factor in ladder.factors)
        said += f" Of {tries}, plain training did best at {ladder.lr * best:.3g}."
    mended = [f"{row['rung']} ({row['mended']})" for row in rows if row["mended"]]
    if mended:
        said += f" Blocks of a lower rate, or shortened, since they would have diverged: {', '.join(mended)}."
    return said


def _covers(seeds: int, samples: int, ladder: Ladder) -> str:
    """What the intervals hold for, and what was spent."""
    if seeds > 1:
        said = f"Intervals are for new held-out samples ({samples}) and new seeds ({seeds}: {', '.join(ladder.varies)})"
    else:
        why = "one seed" if ladder.varies else "nothing depends on the seed"
        said = f"Intervals are for new held-out samples ({samples}) alone: {why}"
    over = " The time was over before all seeds were trained." if ladder.late else ""
    return f"{said}, each by itself. {ladder.seconds:.1f} s in all.{over}"
