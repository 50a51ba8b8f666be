"""The rule of Levenberg and Marquardt: more damping where the quadratic model promised too much."""

from __future__ import annotations

import math

__all__ = ["LEAST", "MOST", "adapted", "trust_ratio"]

# A ratio below the first doubles lambda, one above the second halves it (Nocedal and Wright 2006, algorithm 4.1).
_POOR, _GOOD, _FACTOR = 0.25, 0.75, 2.0
LEAST, MOST = 1e-12, 1e12
"""Where lambda stays."""


def trust_ratio(actual: float, predicted: float, loss: float, eps: float) -> float:
    """Actual over predicted decrease; nan where the predicted one is within the rounding of the loss.

    Minus infinity where the loss was not finite, or the model itself says that it rises (a learning rate above 2).

    >>> trust_ratio(0.5, 1.0, 2.0, 1e-16)
    0.5
    """
    rounding = 10 * eps * abs(loss)
    if math.isnan(actual) or predicted < -rounding:
        return -math.inf
    return actual / predicted if predicted > rounding else math.nan


def adapted(damping: float, ratio: float, whole: bool = True) -> float:
    """The damping of the next step.

    A ratio close to 1 at a small part of a step says nothing of the whole one, so that lambda stays then.

    Args:
        damping: lambda.
        ratio: of the step that was tried last; minus infinity where it was not taken.
        whole: whether the line search left it its length.

    >>> adapted(0.1, 0.9), adapted(0.1, 0.9, whole=False), adapted(0.1, 0.5), adapted(0.1, -1.0)
    (0.05, 0.1, 0.1, 0.2)
    """
    factor = _FACTOR if ratio < _POOR else 1 / _FACTOR if ratio > _GOOD and whole else 1.0
    return min(max(damping * factor, LEAST), MOST)
