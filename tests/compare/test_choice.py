"""What a race says, where its results are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from regimes.compare.layers.candidates import Candidate
from regimes.compare.layers.choice import LayerChoice, Setting, concluded, over_splits
from regimes.compare.layers.race import Pair, Rungs, Standing
from regimes.compare.layers.saving import Cost
from regimes.compare.task.criterion import Criterion
from regimes.core.estimate import mean, quantile

LAYERS = ("a", "b", "c")
SETS = {"all": [0, 1, 2], "head": [2], "layer 1 of 3": [0]}
NOISE = np.array([0.01, -0.01, 0.02, -0.02, 0.0])


def standing(name: str, level: float, epochs: int = 4, flip: int = 1) -> Standing:
    scores = None if math.isnan(level) else level + flip * NOISE
    return Standing(Pair(Candidate.of(name, SETS[name], LAYERS), 0.1), epochs, scores, scores)


def said(*standings: Standing, start: float = 0.9) -> LayerChoice:
    setting = Setting(
        LAYERS, Criterion(0.01, 0.95), (1.0, 2.0), 0.25, Rungs((2, 4), (3, 2), 40), 10, start + 0 * NOISE
    )
    costs = {name: Cost(10 * len(places), 20 * len(places), 5 * len(places)) for name, places in SETS.items()}
    return concluded(sorted(standings, key=lambda each: each.mean), costs, setting)


def test_an_interval_is_students_with_the_overlap_of_the_splits() -> None:
    plain = mean(NOISE.tolist(), level=0.9)
    assert over_splits(NOISE, 0.0, 0.9).low == pytest.approx(plain.low)
    wide = over_splits(NOISE, 0.25, 0.9)
    assert wide.high == pytest.approx(quantile(4, 0.9) * NOISE.std(ddof=1) * math.sqrt(1 / 5 + 0.25))
    assert over_splits(NOISE, 0.25, 0.9, (0.0, 0.001)).low == 0.0


def test_a_set_that_is_clearly_better_is_the_answer() -> None:
    found = said(standing("all", 0.5), standing("head", 0.2), standing("layer 1 of 3", 0.6, epochs=2))
    assert (found.answer, found.candidate, found.layers, found.runs) == ("head", "head", ("c",), 4.0)
    assert "takes 33% of the operations" in found.sentence and "Mind" not in found.sentence
    assert [row["status"] for row in found.table.to_dict("records")] == [
        "finished",
        "finished",
        "left behind",
    ]


@pytest.mark.parametrize(
    ("head", "answer", "candidate"), [(0.48, "open", "head"), (0.52, "open", "all"), (0.9, "all", "all")]
)
def test_noise_leaves_it_open(head: float, answer: str, candidate: str) -> None:
    found = said(standing("all", 0.5), standing("head", head, flip=-1))
    assert (found.answer, found.candidate) == (answer, candidate)
    assert ("Cannot tell" in found.sentence) == (answer == "open")


def test_without_all_layers_there_is_nothing_to_compare_with() -> None:
    found = said(standing("all", math.nan), standing("head", 0.2))
    assert (found.answer, found.candidate) == ("open", "head") and "all layers diverged" in found.sentence


def test_that_training_gained_nothing_is_said() -> None:
    assert (
        "Mind that the network as it came errs by 0.2100" in said(standing("all", 0.2), start=0.21).sentence
    )
