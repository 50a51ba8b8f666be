"""What each order of contraction costs: operations and numbers moved, per pair of samples and per sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from regimes.kernel.factor import Reduce
from regimes.kernel.machine import Speeds

__all__ = ["TYPICAL", "Order", "Shape", "building", "cheapest", "entries", "pairing"]

Order = Literal["explicit", "gram", "one-sided", "head", "jacobian"]

# Of a processor, relative to each other; for double precision all are half. Orders are chosen by these and not by
# speeds that were measured, so that equal calls give equal bits on every run.
TYPICAL = Speeds(product=1e11, batched=8e10, traffic=3e10, shuffle=8e9)
# How many samples an explicit gradient is used against, where nothing is known: it is built once for all of them.
_COMPANY = 64


@dataclass(frozen=True)
class Shape:
    """Sizes of a term.

    Attributes:
        tokens: T, the uses per sample; 0 where only rows of the Jacobian can be formed.
        taken: D, what a use is given; 0 where it is the number of a row.
        given: E, what it gives.
        numel: the number of parameters.
    """

    tokens: int
    taken: int
    given: int
    numel: int


def entries(shape: Shape, order: Order, r: int, outputs: int) -> int:
    """Numbers held per sample, with r directions."""
    t, d, e = shape.tokens, max(1, shape.taken), shape.given
    if order in ("gram", "one-sided"):
        return t * (d + r * e)
    if order == "head":
        return d
    return (outputs if order == "jacobian" else r) * shape.numel


def building(shape: Shape, order: Order, r: int, speeds: Speeds, itemsize: int = 4) -> float:
    """Seconds per sample to form what is held, after the backward passes."""
    if order == "explicit" and shape.tokens:
        work = 2 * r * shape.tokens * max(1, shape.taken) * shape.given / speeds.batched
        return work + 3 * r * shape.numel * itemsize / speeds.traffic
    return 2 * entries(shape, order, r, r) * itemsize / speeds.traffic


def pairing(shape: Shape, order: Order, reduce: Reduce, r: int, speeds: Speeds, itemsize: int = 4) -> float:
    """Seconds per pair of samples."""
    t, d, e = shape.tokens, max(1, shape.taken), shape.given
    full = reduce == "full"
    pairs = r * r if full else r
    if order == "head":
        return 2 * d / speeds.product + r * itemsize / speeds.traffic
    if order in ("explicit", "jacobian"):
        return 2 * pairs * shape.numel / speeds.product
    if t == 1:
        moved = 3 * itemsize * (pairs if reduce != "trace" else 1)
        return (2 * d + 2 * pairs * e) / speeds.product + moved / speeds.traffic
    if order == "gram" and not full:
        sums = 1 if reduce == "trace" else r
        return (2 * t * t * (d + r * e)) / speeds.product + 4 * sums * t * t * itemsize / speeds.traffic
    last = 2 * r * r * t * e / speeds.batched + 2 * t * r * e * itemsize / speeds.shuffle
    if order == "one-sided":
        return 2 * r * t * d * e / speeds.product + last
    return (
        2 * t * t * d / speeds.product
        + 2 * r * t * t * e / speeds.batched
        + 2 * t * t * itemsize / speeds.shuffle
        + last
    )


def cheapest(shape: Shape, reduce: Reduce, r: int) -> Order:
    """The order that takes the least time on a typical machine."""
    if not shape.tokens:
        return "explicit"
    if shape.tokens == 1 and shape.taken:
        return "gram"
    orders: list[Order] = ["explicit", "gram"]
    if reduce == "full" and shape.taken:
        orders.append("one-sided")

    def seconds(order: Order) -> float:
        building_once = building(shape, order, r, TYPICAL)
        return pairing(shape, order, reduce, r, TYPICAL) + 2 * building_once / _COMPANY

    return min(orders, key=seconds)
