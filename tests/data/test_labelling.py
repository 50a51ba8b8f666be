"""Targets from classes, and an order of points in which every prefix is balanced."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from regimes.core.error import UserError
from regimes.data.labelling import Labelling, balanced_prefix, interleave, select, targets

CLASSES = ("zero", "one", "two", "three", "four", "five", "six")
LABELS = arrays(np.uint8, st.integers(0, 60), elements=st.integers(0, 6))
TASKS = st.sampled_from(["classes", "parity"])


def counts_of(goals: np.ndarray, every: np.ndarray) -> np.ndarray:
    return np.array([(goals == goal).sum() for goal in every])


@given(LABELS, TASKS)
def test_prefixes_are_balanced_as_far_as_promised(labels: np.ndarray, task: str) -> None:
    goals = targets(labels, task, None)
    ordered, every = goals[interleave(labels, goals)], np.unique(goals)
    promised = balanced_prefix(goals)
    for length in range(promised + 1):
        counts = counts_of(ordered[:length], every)
        assert counts.max(initial=0) - counts.min(initial=len(labels)) <= 1 or len(every) == 0
    if promised < len(labels):
        counts = counts_of(ordered[: promised + 1], every)
        assert counts.max() - counts.min() == 2, "the promise could have been longer"


@given(LABELS, TASKS)
def test_every_point_comes_once_and_each_class_in_its_order(labels: np.ndarray, task: str) -> None:
    order = interleave(labels, targets(labels, task, None))
    assert np.array_equal(np.sort(order), np.arange(len(labels)))
    for label in np.unique(labels):
        places = order[labels[order] == label]
        assert all(first < second for first, second in pairwise(places))


@given(LABELS)
def test_within_a_target_the_classes_are_balanced_too(labels: np.ndarray) -> None:
    goals = targets(labels, "parity", None)
    order = interleave(labels, goals)
    for goal in (-1, 1):
        inside = labels[order][goals[order] == goal]
        every = np.unique(inside)
        for length in range(balanced_prefix(inside) + 1):
            counts = counts_of(inside[:length], every)
            assert len(every) == 0 or counts.max() - counts.min() <= 1


def test_ten_classes_in_turn_serve_both_tasks() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 7))
    for task in ("classes", "parity"):
        order = interleave(labels, targets(labels, task, None))
        assert labels[order].tolist() == list(range(10)) * 7


def test_parity_is_its_formula() -> None:
    labels = np.arange(256).astype(np.uint8)
    assert targets(labels, "parity", None).tolist() == [2 * (y % 2) - 1 for y in range(256)]


def test_a_pair_gives_minus_one_to_the_first() -> None:
    assert targets(np.array([3, 8, 8, 3]), (8, 3), (8, 3)).tolist() == [1, -1, -1, 1]


@pytest.mark.parametrize(
    ("task", "pair"),
    [
        ("classes", None),
        ("parity", None),
        ((0, 3), (0, 3)),
        (("three", "one"), (3, 1)),
        ([6, "five"], (6, 5)),
    ],
)
def test_select(task: Labelling, pair: tuple[int, int] | None) -> None:
    assert select(task, CLASSES) == pair


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("partiy", r"`task`: 'partiy' came, expected .*; did you mean 'parity'\?"),
        ((3, 3), r"`task`: the pair \(3, 3\) is one class twice; give two different"),
        ((3, "three"), "is one class twice"),
        ((1, 2, 3), "`task`: .* came, expected 'classes', 'parity' or a pair"),
        ((1,), "or a pair"),
        ((0, 7), r"`task`: class 7 came, expected 0\.\.6"),
        ((-1, 2), r"`task`: class -1 came, expected 0\.\.6"),
        ((False, 2), "`task`: class False came"),
        (("thre", 2), r"`task`: 'thre' is no class .*; did you mean 'three'\?"),
    ],
)
def test_a_bad_task_is_named(task: Labelling, message: str) -> None:
    with pytest.raises(UserError, match=message):
        select(task, CLASSES)
