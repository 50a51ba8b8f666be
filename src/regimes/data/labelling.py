"""What is to be learnt from the images: targets from classes, and the order in which the points come."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

from regimes.core.error import UserError, nearest

__all__ = ["Labelling", "balanced_prefix", "interleave", "select", "targets"]

Labelling = str | Sequence[int | str]
"""``"classes"``, ``"parity"``, or two classes, each by its index or by its name."""


def select(task: Labelling, classes: Sequence[str]) -> tuple[int, int] | None:
    """The two classes of a binary pair as indices, or ``None`` for the tasks that use every class.

    Args:
        task: ``"classes"``, ``"parity"``, or two classes, each by its index or by its name.
        classes: the names of all classes.

    Raises:
        UserError: for an unknown task or class, or a pair of one class.

    >>> select(("cat", 5), ["airplane", "automobile", "bird", "cat", "deer", "dog"])
    (3, 5)
    """
    if isinstance(task, str):
        if task not in ("classes", "parity"):
            raise UserError(
                f"`task`: {task!r} came, expected 'classes', 'parity' or a pair of classes such as (3, 8)"
                f"{nearest(task, ('classes', 'parity'))}"
            )
        return None
    if not isinstance(task, (tuple, list)) or len(task) != 2:
        raise UserError(
            f"`task`: {task!r} came, expected 'classes', 'parity' or a pair of classes such as (3, 8)"
        )
    first, second = (class_index(value, classes) for value in task)
    if first == second:
        raise UserError(f"`task`: the pair {tuple(task)!r} is one class twice; give two different classes")
    return first, second


def class_index(value: int | str, classes: Sequence[str]) -> int:
    if isinstance(value, str):
        if value not in classes:
            raise UserError(f"`task`: {value!r} is no class ({', '.join(classes)}){nearest(value, classes)}")
        return list(classes).index(value)
    try:
        index = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        index = -1
    if not 0 <= index < len(classes):
        raise UserError(f"`task`: class {value!r} came, expected 0..{len(classes) - 1} or a class's name")
    return index


def targets(labels: np.ndarray, task: Labelling, pair: tuple[int, int] | None) -> np.ndarray:
    r"""The targets of points with these labels.

    ``"parity"``: :math:`y = 2 (\text{label} \bmod 2) - 1`; a pair :math:`(a, b)`: -1 for a and +1 for b, both
    as int8; ``"classes"``: the label itself as int64. Source of the parity task: Geiger et al., Disentangling
    feature and lazy training (2020), arXiv 1906.08034, section 2.

    >>> targets(np.array([0, 1, 7, 4]), "parity", None).tolist()
    [-1, 1, 1, -1]
    """
    if pair is not None:
        return np.where(labels == pair[1], 1, -1).astype(np.int8)
    if task == "parity":
        return (2 * (labels % 2).astype(np.int8) - 1).astype(np.int8)
    return labels.astype(np.int64)


def interleave(labels: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """The order in which every prefix is balanced: one point of each target in turn, and within a target one
    point of each class in turn, each class in its published order. A class that has run out is passed over.

    Args:
        labels: (n,) classes.
        goals: (n,) targets; each class belongs to one target.

    Returns:
        (n,) a permutation of the indices.

    >>> labels = np.array([0, 0, 0, 1, 1, 2])
    >>> interleave(labels, labels).tolist()
    [0, 3, 5, 1, 4, 2]
    """
    turn = rank(labels)
    order = np.lexsort((labels, turn))  # within a target: by turn, then by class
    place = np.empty(len(labels), np.int64)
    place[order] = rank(goals[order])
    return np.lexsort((goals, place))


def rank(groups: np.ndarray) -> np.ndarray:
    """(n,) how many points of the same group come before each point."""
    order = np.argsort(groups, kind="stable")
    _, starts, counts = np.unique(groups[order], return_index=True, return_counts=True)
    ranks = np.empty(len(groups), np.int64)
    ranks[order] = np.arange(len(groups)) - np.repeat(starts, counts)
    return ranks


def balanced_prefix(goals: np.ndarray) -> int:
    """How long a prefix of an interleaved order may be and still hold every target equally often, give or
    take one.

    >>> balanced_prefix(np.array([-1, -1, 1, 1, 1, 1]))
    5
    """
    counts = np.unique(goals, return_counts=True)[1]
    least = int(counts.min(initial=len(goals)))
    return len(counts) * least + int((counts > least).sum())
