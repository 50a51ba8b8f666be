"""The score of a race: what it is, and what it does not see."""

from __future__ import annotations

import math

import pytest
import torch

from regimes.compare.layers.calibrate import TEMPERATURES, brier

Y = torch.tensor([0, 2, 1, 1, 0])


def outputs(seed: int = 0, columns: int = 3) -> torch.Tensor:
    return torch.randn(5, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_brier_score_at_the_likeliest_temperature(seed: int) -> None:
    rows = outputs(seed).tolist()
    likely, scores = -math.inf, []
    for temperature in TEMPERATURES:
        chances = []
        for row in rows:
            powers = [math.exp(value / temperature) for value in row]
            chances.append([power / sum(powers) for power in powers])
        found = sum(math.log(each[y]) for each, y in zip(chances, Y.tolist(), strict=True))
        if found > likely:
            likely = found
            scores = [
                sum((chance - (k == y)) ** 2 for k, chance in enumerate(each))
                for each, y in zip(chances, Y.tolist(), strict=True)
            ]
    assert brier(outputs(seed), Y).tolist() == pytest.approx(scores, abs=1e-12)


def test_how_sure_the_answers_are_does_not_matter() -> None:
    """So long as the temperature is one of those that are tried."""
    known = outputs(3) + 2 * torch.nn.functional.one_hot(Y, 3)
    known[0] = known[0].flip(0)
    torch.testing.assert_close(brier(4 * known, Y), brier(known, Y))


def test_a_sign_is_two_classes() -> None:
    one, y = outputs(columns=1), torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0], dtype=torch.float64)
    two = torch.cat([-one / 2, one / 2], dim=1)
    torch.testing.assert_close(brier(one, y), brier(two, (y > 0).long()))
    assert bool((brier(1e300 * one, y) <= 2).all())
