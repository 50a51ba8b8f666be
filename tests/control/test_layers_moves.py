"""Which layers move at a step: probabilities, sets, draws that depend on the seed and the step alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch

from regimes import control
from regimes.core.error import UserError

LAYERS = ("embed", "h.0", "h.1", "h.2", "head")
EVERY = (
    control.Fixed(top=2),
    control.Fixed(bottom=1, top=1),
    control.Fixed(names=["h.1", "head"]),
    control.Fixed(names=("h",)),
    control.Cut(p=0.3),
    control.Cut(p=0.3, top=3, interval=4),
    control.Cut(p=[0.1, 0.1, 0.4, 0.9, 1.0]),
    control.Cut(p=0.0, top=5),
    control.UniformCut(),
    control.UniformCut(interval=3),
    control.RandomLayers(count=2),
    control.RandomLayers(count=1, always=("embed", "head"), interval=2),
    control.RandomLayers(count=5),
    control.CyclicBlocks(),
    control.CyclicBlocks(size=2, order="up", interval=3),
    control.CyclicBlocks(size=2, order="random"),
    control.CyclicBlocks(size=5),
)


@pytest.mark.parametrize("moves", EVERY, ids=repr)
def test_layers_move_as_often_as_their_probability_says(moves: control.Moves) -> None:
    """Within five standard errors of independent draws; something moves at every step; certainty is certain."""
    steps = 1200
    chances = moves.probabilities(LAYERS)
    counts = [0] * len(LAYERS)
    for step in range(steps):
        found = moves.moving(LAYERS, 3, step)
        assert found and found <= set(range(len(LAYERS)))
        for place in found:
            counts[place] += 1
    interval = getattr(moves, "interval", 1)
    for count, p in zip(counts, chances, strict=True):
        error = math.sqrt(p * (1 - p) * interval / steps)
        assert abs(count / steps - p) <= 5 * error + 1e-12


@pytest.mark.parametrize("moves", EVERY, ids=repr)
def test_shares_are_those_of_the_steps(moves: control.Moves) -> None:
    """Each set that moves has its share, within five standard errors, and the shares give the probabilities."""
    steps, interval = 1200, getattr(moves, "interval", 1)
    shares = moves.shares(LAYERS)
    assert math.isclose(sum(shares.values()), 1.0) and all(share > 0 for share in shares.values())
    seen = Counter(moves.moving(LAYERS, 3, step * interval) for step in range(steps))
    assert seen.keys() <= shares.keys()
    for found, share in shares.items():
        assert abs(seen[found] / steps - share) <= 5 * math.sqrt(share * (1 - share) / steps) + 1e-12
    for place, p in enumerate(moves.probabilities(LAYERS)):
        assert math.isclose(sum(share for found, share in shares.items() if place in found), p, abs_tol=1e-12)


def test_shares_of_many_sets_are_drawn() -> None:
    layers = [str(place) for place in range(30)]
    shares = control.RandomLayers(count=5, always=["29"]).shares(layers)
    assert math.isclose(sum(shares.values()), 1.0) and all(len(each) == 6 and 29 in each for each in shares)


@pytest.mark.parametrize("moves", EVERY, ids=repr)
def test_draws_are_functions_of_the_seed_and_the_step(moves: control.Moves) -> None:
    before = torch.get_rng_state()
    first = [moves.moving(LAYERS, 0, step) for step in range(40)]
    again = [moves.moving(LAYERS, 0, step) for step in reversed(range(40))]
    assert first == again[::-1]
    assert torch.equal(torch.get_rng_state(), before)
    interval = getattr(moves, "interval", 1)
    assert all(first[step] == first[step - step % interval] for step in range(40))


@pytest.mark.parametrize("moves", [control.Cut(0.5), control.UniformCut(), control.RandomLayers(2)], ids=repr)
def test_seeds_differ(moves: control.Moves) -> None:
    first, other = ([moves.moving(LAYERS, seed, step) for step in range(60)] for seed in (0, 1))
    assert first != other


@pytest.mark.parametrize(
    "moves", [each for each in EVERY if isinstance(each, control.Cut | control.UniformCut)], ids=repr
)
def test_a_cut_moves_all_above_a_depth(moves: control.Moves) -> None:
    for step in range(100):
        found = moves.moving(LAYERS, 1, step)
        assert found == set(range(min(found), len(LAYERS)))


def test_the_sets_are_those_that_were_asked_for() -> None:
    def sets(moves: control.Moves, steps: int = 6) -> list[list[int]]:
        return [sorted(moves.moving(LAYERS, 0, step)) for step in range(steps)]

    assert sets(control.Fixed(bottom=1, top=1)) == [[0, 4]] * 6
    assert sets(control.Fixed(names=("h",), top=1)) == [[1, 2, 3, 4]] * 6
    assert sets(control.CyclicBlocks()) == [[4], [3], [2], [1], [0], [4]]
    assert sets(control.CyclicBlocks(size=2, order="up", interval=2)) == [
        [0],
        [0],
        [1, 2],
        [1, 2],
        [3, 4],
        [3, 4],
    ]
    assert sets(control.Cut(p=0.0, top=2)) == [[3, 4]] * 6
    assert sets(control.Cut(p=1.0)) == [[0, 1, 2, 3, 4]] * 6


def test_a_random_round_has_every_block_once() -> None:
    moves = control.CyclicBlocks(size=2, order="random", interval=2)
    rounds = []
    for turn in range(30):
        found = [moves.moving(LAYERS, 0, 6 * turn + step) for step in range(6)]
        assert found[0::2] == found[1::2]
        assert sorted(place for each in found[::2] for place in each) == [0, 1, 2, 3, 4]
        rounds.append(found)
    assert len({tuple(each) for each in rounds}) > 3


def test_equal_values_are_equal() -> None:
    assert control.Cut([0.5, 1]) == control.Cut((0.5, 1.0)) and control.Fixed(names=["a"]) == control.Fixed(
        names=("a",)
    )
    assert len({control.Cut([0.5, 1]), control.Cut((0.5, 1.0))}) == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: control.Fixed(), r"`top`: got 0 with no `bottom` and no `names`"),
        (lambda: control.Fixed(top=-1), r"`top`: got -1, expected a whole number of at least 0"),
        (lambda: control.Cut(p=1.5), r"`p`: got 1.5, expected a probability from 0 to 1"),
        (lambda: control.Cut(p=-0.1), r"`p`: got -0.1, expected a probability"),
        (lambda: control.Cut(p=0.2, top=0), r"`top`: got 0, expected a whole number of at least 1"),
        (lambda: control.Cut(p=[0.5, 0.2, 1.0]), r"`p`: got 0.5 below 0.2, .* from the bottom to the top"),
        (lambda: control.Cut(p=[0.5, 0.9]), r"expected 1 for the last layer: something moves at every step"),
        (lambda: control.Cut(p=[]), r"expected 1 for the last layer"),
        (lambda: control.Cut(p=0.2, interval=0), r"`interval`: got 0"),
        (lambda: control.UniformCut(interval=0), r"`interval`: got 0"),
        (lambda: control.RandomLayers(count=0), r"`count`: got 0"),
        (lambda: control.CyclicBlocks(size=0), r"`size`: got 0"),
    ],
)
def test_a_value_that_means_nothing_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()


@pytest.mark.parametrize(
    ("moves", "words"),
    [
        (control.Fixed(top=6), r"`top`: got 6, expected at most 5, as many layers as there are$"),
        (
            control.Fixed(names=("h.O",)),
            r"`names`: got 'h.O', expected names of layers: 'embed', .*; did you mean 'h.2'\?",
        ),
        (control.Cut(p=0.2, top=6), r"`top`: got 6, expected at most 5"),
        (control.Cut(p=[0.5, 1.0]), r"`p`: got 2 probabilities, expected 5, one for each of 'embed'"),
        (
            control.RandomLayers(count=4, always=("embed", "head")),
            r"`count`: got 4, expected at most 3, .* besides",
        ),
        (control.RandomLayers(count=1, always=("haed",)), r"`always`: got 'haed', .* did you mean 'head'"),
        (control.CyclicBlocks(size=6), r"`size`: got 6, expected at most 5"),
    ],
)
def test_what_does_not_go_with_the_layers_is_refused(moves: control.Moves, words: str) -> None:
    with pytest.raises(UserError, match=words):
        moves.probabilities(LAYERS)
