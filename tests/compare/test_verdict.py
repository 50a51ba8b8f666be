"""How few feature updates are enough: the chain of tests, and how often it is wrong on made-up scores."""

from __future__ import annotations

import numpy as np
import pytest

from regimes.compare.task.criterion import Criterion
from regimes.compare.updates.verdict import LeastUpdates, decided
from regimes.core.estimate import Estimate, two_way

CRITERION = Criterion(0.02, 0.95)
ENOUGH, WORSE, UNSURE = (Estimate(v, v - 0.01, v + 0.01, 100) for v in (0.0, 0.05, 0.02))


@pytest.mark.parametrize(
    ("found", "answer", "stopped"),
    [
        ({1: ENOUGH, 3: ENOUGH, 10: ENOUGH}, 1, None),
        ({1: WORSE, 3: ENOUGH, 10: ENOUGH}, 3, 1),
        ({1: WORSE, 3: WORSE, 10: ENOUGH}, 10, 3),
        ({1: UNSURE, 3: UNSURE, 10: ENOUGH}, 10, 3),
        ({1: WORSE, 3: WORSE, 10: WORSE}, "no", 10),
        ({1: WORSE, 3: WORSE, 10: UNSURE}, "open", 10),
        # What lies below a rung that fails is not looked at: it would be a second chance.
        ({1: ENOUGH, 3: ENOUGH, 10: UNSURE}, "open", 10),
        ({1: ENOUGH, 3: ENOUGH, 10: WORSE}, "no", 10),
        ({1: ENOUGH, 3: WORSE, 10: ENOUGH}, 10, 3),
        # What has no result is no test.
        ({1: ENOUGH, 3: ENOUGH, 10: None}, 1, None),
        ({1: ENOUGH, 3: None, 10: ENOUGH}, 1, None),
        ({1: None, 3: ENOUGH, 10: ENOUGH}, 3, None),
        ({1: WORSE, 3: None, 10: None}, "open", 1),
        ({1: None, 3: None, 10: None}, "open", None),
    ],
)
def test_the_chain_ends_where_a_rung_is_not_confirmed(
    found: dict[int, Estimate | None], answer: LeastUpdates, stopped: int | None
) -> None:
    for order in (found, dict(reversed(found.items()))):
        verdict = decided(order, CRITERION)
        assert (verdict.answer, verdict.stopped) == (answer, stopped)
        assert verdict.lost == tuple(sorted(updates for updates, each in found.items() if each is None))


def answers(
    lost: dict[int, float], repetitions: int, seeds: int = 5, samples: int = 300
) -> list[LeastUpdates]:
    """Verdicts on made-up errors: plain training errs on a fifth of the samples, a rung by so much more.

    Samples are hard or easy for all models of a seed alike, and seeds differ by 2 % on average.
    """
    source = np.random.default_rng(0)
    found = []
    for _ in range(repetitions):
        hard = source.random(samples)
        luck = 0.2 + 0.02 * source.standard_normal((len(lost) + 1, seeds, 1))
        noise = 0.3 * (source.random((len(lost) + 1, seeds, samples)) - 0.5)
        more = np.array([0.0, *lost.values()])[:, None, None]
        wrong = ((hard + noise) % 1.0 < luck + more).astype(float)
        differences: dict[int, Estimate | None] = {
            updates: two_way(each - wrong[0], (-1.0, 1.0), level=0.95)
            for updates, each in zip(lost, wrong[1:], strict=True)
        }
        found.append(decided(differences, Criterion(0.05, 0.95)).answer)
    return found


@pytest.mark.parametrize(
    "lost",
    [
        {1: 0.05, 3: 0.05, 10: 0.05, 30: 0.05},
        {1: 0.05, 3: 0.05, 10: 0.0, 30: -0.05},
        {1: 0.3, 3: 0.05, 10: 0.05, 30: -0.1},
        {1: -0.1, 3: 0.05, 10: -0.1, 30: -0.1},
    ],
    ids=["all lose the margin", "half of them", "some lose more", "the fewest are better"],
)
def test_a_number_that_is_not_enough_is_seldom_taken_for_one(lost: dict[int, float]) -> None:
    """At most (1 - level) / 2 of the answers hold a rung that loses the margin itself, however long the ladder is."""
    found = answers(lost, 400)
    bad = max(updates for updates, each in lost.items() if each >= 0.05)
    wrong = sum(isinstance(each, int) and each <= bad for each in found) / len(found)
    assert wrong < 0.025 + 3 * (0.025 * 0.975 / len(found)) ** 0.5


def test_what_is_enough_is_found_and_what_is_worse_is_said() -> None:
    assert answers({1: -0.05, 3: -0.05, 10: -0.05}, 60).count(1) > 50
    assert answers({1: 0.4, 3: 0.3, 10: 0.2}, 60).count("no") > 50
    assert set(answers({1: 0.4, 3: -0.05, 10: -0.05}, 60)) <= {3, 10, "open"}


def test_few_seeds_leave_it_open() -> None:
    assert answers({1: 0.0, 3: 0.0}, 60, seeds=2, samples=40).count("open") > 50
