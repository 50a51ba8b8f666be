"""Which solve a batch gets, by its sizes and the memory: the same for equal sizes on every machine."""

from __future__ import annotations

import math
from typing import Literal

from regimes.core.error import UserError

__all__ = ["Solve", "chosen"]

Solve = Literal["full", "trace", "products"]
# The longest side of a matrix that "auto" factorises: some dozens of training steps of a small network.
_FULL, _TRACE = 2048, 4096
# Matrices of float64 that are held at once: the kernel, as it was computed and as it is solved, and its factor.
_HELD = 4
_MEMORY = 1 << 30


def chosen(
    kernel: Literal["auto", "full", "trace", "products"],
    shape: tuple[int, ...],
    width: int,
    memory: int | None,
) -> Solve:
    """How a batch is solved.

    Args:
        kernel: what was asked for.
        shape: of the outputs, n in front.
        width: outputs of a sample.
        memory: bytes (default: 2^30).

    Raises:
        UserError: if what was asked for does not fit: says what would.
    """
    n, room = shape[0], memory or _MEMORY
    if kernel == "products":
        return kernel
    if kernel == "auto":
        if n * width <= _FULL and _bytes(n * width) <= room:
            return "full"
        return "trace" if len(shape) < 3 and n <= _TRACE and _bytes(n) <= room else "products"
    each = width if kernel == "full" else 1
    if _bytes(n * each) <= room:
        return kernel
    fitting = math.isqrt(room // (8 * _HELD)) // each
    ways = [f"a batch of at most {fitting} samples"] if fitting else []
    ways += ["kernel='trace'"] if kernel == "full" and _bytes(n) <= room else []
    raise UserError(
        f"`memory`: got {room} bytes, expected at least {_bytes(n * each)} for the {kernel} kernel of {n} samples with "
        f"{width} outputs each; take {', or '.join([*ways, 'kernel=' + repr('products')])}"
    )


def _bytes(side: int) -> int:
    return 8 * _HELD * side**2
