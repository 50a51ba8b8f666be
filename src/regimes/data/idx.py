"""The IDX format of MNIST and its kin: a header of big-endian sizes, then unsigned bytes, row by row."""

from __future__ import annotations

import math

import numpy as np

from regimes.core.error import UserError

__all__ = ["idx_decode", "idx_encode"]

UNSIGNED_BYTE = 0x08


def idx_decode(content: bytes, name: str) -> np.ndarray:
    """The array in an IDX file of unsigned bytes, as a read-only view of ``content``.

    The header is two zero bytes, the type of the values (8: unsigned byte), the number of axes, and one
    big-endian 32-bit size per axis; then come the values, row by row. Source: LeCun, Cortes and Burges, The
    MNIST database of handwritten digits, "File formats".

    Args:
        content: the bytes of the file, after ``gunzip``.
        name: the file's name, for the error.

    Raises:
        UserError: if the header is not that of such a file, or promises another number of bytes.

    >>> idx_decode(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]), "labels").tolist()
    [7, 9]
    """
    head = content[:4]
    if len(head) < 4 or head[0] or head[1] or head[2] != UNSIGNED_BYTE or not 1 <= head[3] <= 3:
        raise UserError(
            f"`directory`: {name} begins with 0x{head.hex()}, expected 0x00000801 (labels) or 0x00000803 "
            "(images); it is no IDX file of unsigned bytes: take the published file"
        )
    axes = head[3]
    start = 4 + 4 * axes
    shape = tuple(int.from_bytes(content[4 + 4 * a : 8 + 4 * a], "big") for a in range(axes))
    size = start + math.prod(shape)  # no product of numpy's: it wraps round
    if len(content) != size:
        raise UserError(
            f"`directory`: {name} holds {len(content)} bytes, its header {shape} promises {size}; "
            "the file is truncated or altered: take the published file"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def idx_encode(array: np.ndarray) -> bytes:
    """The IDX file of an array of unsigned bytes: the inverse of :func:`idx_decode`.

    >>> idx_encode(np.array([7, 9], np.uint8)).hex()
    '00000801000000020709'
    """
    head = bytes([0, 0, UNSIGNED_BYTE, array.ndim])
    return head + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()
