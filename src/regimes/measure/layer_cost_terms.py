"""What a step pays for, as amounts that are due if any of some layers moves; fitted to what whole steps took."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

__all__ = ["Terms", "bounded_fit", "fitted", "paid"]

Terms = Mapping[frozenset[int], float]
"""Amounts (seconds, bytes), each with the layers any one of which makes it due."""

# What is known beforehand of a term counts as much as a whole step that is measured this much worse, squared.
_TRUST = 0.1


def paid(terms: Terms, moving: frozenset[int]) -> float:
    """What is due where these layers move.

    >>> paid({frozenset({0}): 1.0, frozenset({0, 1}): 2.0}, frozenset({1}))
    2.0
    """
    return sum(amount for layers, amount in terms.items() if layers & moving)


def fitted(
    seconds: Terms, counts: Terms, sets: Sequence[frozenset[int]], measured: Sequence[float]
) -> dict[frozenset[int], float]:
    r"""The terms whose sums over the sets are what was measured.

    First t = gamma seconds + delta counts is fitted to all sets: operations that are timed one by one are slower or
    faster than in a row, and something is paid for each of them. Then c = t u with u of 0 or more, by

    .. math:: \min_u \sum_S \Big(\frac{\sum_k [k \cap S] t_k u_k}{y_S} - 1\Big)^2 + 0.1^2 \sum_k (u_k - 1)^2.

    Args:
        seconds: of each term, where its parts are timed by themselves.
        counts: how many parts a term has.
        sets: of layers that moved.
        measured: y_S, seconds of the whole.
    """
    keys = list(counts)
    due = np.array([[bool(key & each) for key in keys] for each in sets], dtype=float)
    y = np.maximum(np.array(measured), 1e-12)
    parts = np.array([[seconds.get(key, 0.0) for key in keys], [counts[key] for key in keys]])
    gamma = bounded_fit((due @ parts.T) / y[:, None], np.ones(len(y)))
    prior = gamma @ parts
    rows = np.concatenate([due * prior / y[:, None], _TRUST * np.eye(len(keys))])
    u = bounded_fit(rows, np.concatenate([np.ones(len(y)), _TRUST * np.ones(len(keys))]))
    return {key: float(each) for key, each in zip(keys, prior * u, strict=True)}


def bounded_fit(
    rows: Iterable[Sequence[float]] | np.ndarray, wanted: Sequence[float] | np.ndarray
) -> np.ndarray:
    """The x of 0 or more that minimises |rows x - wanted|^2; columns may be of any size."""
    from scipy.optimize import nnls

    matrix = np.asarray(rows, dtype=float)
    sizes = np.linalg.norm(matrix, axis=0)
    sizes[sizes == 0] = 1.0
    return nnls(matrix / sizes, np.asarray(wanted, dtype=float))[0] / sizes
