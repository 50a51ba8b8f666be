"""Cut probabilities of least gradient variance at a given cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from regimes.control.layers.moves import Cut
from regimes.core.check import checked
from regimes.core.error import UserError

__all__ = ["least_variance"]

# A budget may lie so far outside of what can be met, relative to it: costs are sums of rounded numbers.
_ROUNDING = 1e-9


@checked
def least_variance(
    squared_norms: Sequence[float],
    costs: Sequence[float],
    budget: float,
    *,
    top: int = 1,
    interval: int = 1,
) -> Cut:
    r"""The cut of least gradient variance among those that cost the same.

    A layer that moves with probability p_l, and then by 1/p_l times its gradient g_l, follows the full gradient on
    average. Sampling adds sum_l ||g_l||^2 (1/p_l - 1) to its variance. A step costs sum_l p_l b_l on average, where b_l
    is what going down to layer l, and moving it, adds. The probabilities solve

    .. math:: \min_p \sum_l |g_l|^2 / p_l \quad \text{with} \quad \sum_l p_l b_l \le \text{budget},
        \quad 0 \le p_1 \le \dots \le p_n = 1.

    Without the order and the bounds that is p_l ~ ||g_l|| / sqrt(b_l). Neighbours in the wrong order are pooled: a
    block of layers has p ~ sqrt(sum ||g_l||^2 / sum b_l). What is above 1 is cut off there, and the common factor is
    such that the whole budget is spent. A layer that costs nothing moves as often as the one above it. Layers without
    a gradient, with none below them that has one, get what is left when all others move at every step.

    The variance is that of steps multiplied by 1/p (``LayerwiseSparse(largest_factor=math.inf)``). Steps as they are
    have less variance, and follow another direction on average: sum_l p_l g_l.

    Args:
        squared_norms: the mean of ||g_l||^2 over batches for each layer from the bottom to the top.
        costs: b_l of each layer, in any unit; what is paid at every step belongs to the last one.
        budget: the mean cost of a step, in that unit, from the sum of the ``top`` costs to the sum of all.
        top: so many layers move at every step.
        interval: so many steps go by one draw.

    Raises:
        UserError: if the numbers of layers differ, a number is negative or not finite, or the budget cannot be met: it
            is less than the top costs alone, or more than all layers cost.

    Source: the allocation of Neyman (1934) under order constraints, by pool-adjacent-violators (Best and Chakravarti
    1990).

    >>> least_variance([4.0, 1.0, 1.0], [1.0, 1.0, 2.0], budget=3.0).p
    (0.5, 0.5, 1.0)
    >>> [round(p, 3) for p in least_variance([1.0, 4.0, 1.0], [1.0, 1.0, 2.0], budget=2.9).p]
    [0.3, 0.6, 1.0]
    """
    _check(squared_norms, costs, top, interval)
    n = len(costs) - top
    least, most = math.fsum(costs[n:]), math.fsum(costs)
    if not least * (1 - _ROUNDING) <= budget <= most * (1 + _ROUNDING):
        raise UserError(
            f"`budget`: got {budget:g}, expected from {least:g}, what the top costs at every step, to {most:g}, what "
            "all layers cost"
        )
    roots = _pooled(squared_norms[:n], costs[:n])
    return Cut(p=(*_spent(roots, costs[:n], budget - least), *[1.0] * top), interval=interval)


def _check(squared_norms: Sequence[float], costs: Sequence[float], top: int, interval: int) -> None:
    """Raise unless there is one number of each kind for a layer, none negative."""
    if not len(costs):
        raise UserError("`costs`: got none, expected one for each layer, at least one")
    if len(squared_norms) != len(costs):
        raise UserError(
            f"`squared_norms`: got {len(squared_norms)} numbers, expected {len(costs)}, one for each of `costs`"
        )
    for name, values in (("squared_norms", squared_norms), ("costs", costs)):
        for value in values:
            if not 0 <= value < math.inf:
                raise UserError(f"`{name}`: got {value:g}, expected finite numbers of 0 or more")
    if not 1 <= top <= len(costs):
        raise UserError(f"`top`: got {top}, expected from 1 to {len(costs)}, as many as there are layers")
    if interval < 1:
        raise UserError(f"`interval`: got {interval}, expected a whole number of at least 1")


def _pooled(squares: Sequence[float], costs: Sequence[float]) -> list[float]:
    """sqrt(sum |g|^2 / sum b) of the block of each layer, never decreasing towards the top."""
    blocks: list[tuple[float, float, int]] = []  # sum |g|^2, sum b, how many layers
    for square, cost in zip(squares, costs, strict=True):
        block = (square, cost, 1)
        while blocks and _slope(blocks[-1]) >= _slope(block):
            below = blocks.pop()
            block = (below[0] + block[0], below[1] + block[1], below[2] + block[2])
        blocks.append(block)
    return [math.sqrt(_slope(block)) for block in blocks for _ in range(block[2])]


def _slope(block: tuple[float, float, int]) -> float:
    """sum |g|^2 / sum b; infinite of what costs nothing."""
    return block[0] / block[1] if block[1] else math.inf


def _spent(roots: Sequence[float], costs: Sequence[float], budget: float) -> list[float]:
    """min(1, t root_l) with sum_l p_l b_l = budget; what is left beyond that goes to layers whose root is 0, evenly."""
    factor, left = _factor([root if root < math.inf else 0.0 for root in roots], costs, budget)
    even, _ = _factor([float(root == 0) for root in roots], costs, left)
    chances = [even if root == 0 else 1.0 if root == math.inf else factor * root for root in roots]
    return [min(1.0, chance) for chance in chances]


def _factor(roots: Sequence[float], costs: Sequence[float], budget: float) -> tuple[float, float]:
    """t with sum_l min(1, t root_l) b_l = budget, infinite where that is less for every t; and what is left then."""
    pairs = [(root, cost) for root, cost in zip(roots, costs, strict=True) if root]
    left = max(budget, 0.0)
    while pairs:  # from the top, which reaches 1 first
        factor = left / math.fsum(root * cost for root, cost in pairs)
        root, cost = pairs.pop()
        if factor * root <= 1:
            return factor, 0.0
        left = max(left - cost, 0.0)
    return math.inf, left
