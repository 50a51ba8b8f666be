"""What a ladder says: answers and sentences for made-up errors of known sizes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from regimes.compare.task.criterion import Criterion
from regimes.compare.task.problem import Fit, Problem, Samples
from regimes.compare.task.score import Trial
from regimes.compare.updates.feature_updates import FeatureUpdates, Ladder, concluded
from regimes.compare.updates.rungs import BEST, PLAIN, Blocks, Rung, rung_of
from regimes.core.loss import cross_entropy

N, SEEDS, STEPS = 2000, 5, 1000


def answered(
    wrong: dict[int, float | None], plain: float | None = 0.2, best: float | None = None, late: float = 0.0
) -> FeatureUpdates:
    """Rungs of which about this share of the samples is wrong, mostly the same ones for all; None diverged."""
    y = torch.ones(N, dtype=torch.float64)
    samples = Samples(y[:4, None], y[:4])
    problem = Problem(nn.Linear(1, 1), samples, Samples(y[:, None], y), None, cross_entropy, None, outputs=1)
    shares = {"constant": 0.5, "start": 0.5, PLAIN: plain}
    shares |= {} if best is None else {BEST: best}
    shares |= {rung_of(updates, STEPS).name: each for updates, each in wrong.items()}
    trials = []
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    for seed in range(SEEDS):
        noise = torch.randn(N, generator=torch.Generator().manual_seed(seed + 1))
        rank = (order + 10 * noise).argsort().argsort()
        fits = []
        for name, share in shares.items():
            if share is None:
                fits.append(Fit(name, "diverged", 0.0))
                continue
            outputs = torch.where(rank < round(share * N), -1.0, 1.0).double()[:, None]
            fits.append(Fit(name, "finished", 0.0, train=torch.ones(4, 1).double(), test=outputs, late=late))
        trials.append(Trial(problem, tuple(fits)))
    rungs = [rung_of(updates, STEPS) for updates in wrong] + [Rung(PLAIN, STEPS, STEPS)]
    rungs += [] if best is None else [Rung(BEST, STEPS, STEPS, 3.0)]
    blocks = {"1 update": [Blocks(2, 0.05, 1)] * SEEDS}
    criterion = Criterion(0.02, 0.95)
    ladder = Ladder(tuple(rungs), 0.1, 0.3, True, criterion, False, (1.0, 3.0), ("batches",), 1.0, late=False)
    return concluded(trials, blocks, ladder)


@pytest.mark.parametrize(
    ("wrong", "answer", "words"),
    [
        ({1: 0.2, 10: 0.2}, 1, "1 feature update is enough: the features of the start need never be renewed"),
        ({1: 0.3, 10: 0.205}, 10, "10 feature updates are enough, one every 100 of 1000 steps"),
        ({1: 0.3, 10: 0.205}, 10, "Fewer are not: with 1 update it errs by 0.1000 more"),
        ({1: 0.22, 10: 0.2}, 10, "Whether fewer are, nobody can tell: with 1 update it errs by 0.0200 more"),
        (
            {1: 0.4, 10: 0.3},
            "no",
            "features must be learnt more often than was tried: with 10 updates it errs by 0.1000",
        ),
        ({1: 0.2, 10: 0.22}, "open", "cannot tell: with 10 updates it errs by 0.0200 more"),
        ({1: 0.2, 10: None}, 1, "Without a result, and left out: 10 updates (diverged in 5 of 5 seeds)."),
        ({1: 0.4, 10: None}, "open", "with the rungs of most updates missing, but few are not enough"),
        ({1: None, 10: None}, "open", "no linear block has a result. Give a smaller `lr`"),
        ({1: 0.1, 10: 0.1}, 1, "errs by 0.1000 less"),
    ],
)
def test_answers_in_words(wrong: dict[int, float | None], answer: int | str, words: str) -> None:
    found = answered(wrong)
    assert found.answer == found.against_best == answer
    assert words in found.sentences[0] and found.sentences[0].startswith(
        "Against plain training at the same rate (0.1), "
    )
    assert len(found.sentences) == 2 and "best rate" not in str(found).split("\n")[0]


def test_two_ways_of_plain_training_are_two_answers() -> None:
    found = answered({1: 0.25, 10: 0.2, 100: 0.12}, best=0.12)
    assert (found.answer, found.against_best) == (10, 100)
    assert "at the same rate (0.1), 10 feature updates are enough" in found.sentences[0]
    assert "at its best rate (0.3), 100 feature updates are enough" in found.sentences[1]
    assert "plain training did best at 0.3" in found.sentences[-1]
    table = found.table.to_dict("index")
    assert table["10 updates"]["difference"] == pytest.approx(0.0)
    assert table["10 updates"]["best_difference"] == pytest.approx(0.08)
    assert table[PLAIN]["best_difference"] == pytest.approx(0.08) == pytest.approx(-table[BEST]["difference"])
    assert math.isnan(table[PLAIN]["difference"]) and math.isnan(table[BEST]["best_difference"])
    assert [table[name]["lr"] for name in (PLAIN, BEST)] == pytest.approx([0.1, 0.3])


def test_without_a_yardstick_it_is_open() -> None:
    assert "plain training has no result (diverged" in answered({1: 0.2}, plain=None).sentences[0]
    unlearnt = answered({1: 0.5}, plain=0.49)
    assert unlearnt.answer == "open" and "the network did not learn" in unlearnt.sentences[0]
    assert "still learning" in answered({1: 0.2}, late=0.03).sentences[0]
    assert "still learning" not in answered({1: 0.2}, late=0.01).sentences[0]


def test_what_became_of_blocks_is_said() -> None:
    found = answered({1: 0.2, 10: 0.2})
    row = found.table.to_dict("index")["1 update"]
    assert (row["spent"], row["bound"], row["mended"]) == (2, 0.05, 5)
    assert "since they would have diverged: 1 update (5)." in found.sentences[-1]
    assert (
        "A linear block bears 0.3 wherever plain training came by, of which 0.1 is 0.33."
        in found.sentences[-1]
    )


def test_a_rung_keeps_its_share_of_a_shorter_run() -> None:
    rung = replace(rung_of(30, 1000), factor=3.0)
    assert rung.over(100) == replace(rung, steps=100) and rung.over(20).updates == 19
    assert Rung(PLAIN, 1000, 1000).over(100).plain
