"""CIFAR-10 from its published files: the python batches (pickles) or the binary version."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from regimes.core.error import UserError
from regimes.data.catalog import File
from regimes.data.checksum import open_file

__all__ = ["BatchUnpickler", "cifar_batch", "cifar_binary"]

PIXELS = 3 * 32 * 32
LARGEST = 1 << 25  # bytes; the published batches have 31 million


def cifar_batch(path: Path, file: File) -> tuple[np.ndarray, np.ndarray, str]:
    """Images (m, 3072) and labels (m,), both uint8, and the sha256 of one python batch.

    A pickle can run code when it is read, so nothing is unpickled before the file's sha256 equals that of the
    published batch, and then only arrays, lists, strings and numbers.

    Raises:
        UserError: if the checksum is any other; the binary version of the data set is the way out.
    """
    with path.open("rb") as opened:
        raw = opened.read(LARGEST)  # of a longer file the beginning is enough to see that it is another
    found = hashlib.sha256(raw).hexdigest()
    if found != file.sha256:
        raise UserError(
            f"`directory`: {path} is not the published batch: sha256 expected {file.sha256}, found {found}; "
            "it is a pickle and is not opened: take the published file again, or remove this folder and run: "
            "regimes fetch cifar-10"
        )
    batch = BatchUnpickler(raw).load()
    return np.asarray(batch[b"data"], np.uint8), np.asarray(batch[b"labels"], np.uint8), found


def cifar_binary(path: Path, file: File, most: int) -> tuple[np.ndarray, np.ndarray, str, str]:
    """Images (m, 3072), labels (m,), sha256 and how that was verified, of one file of the binary version.

    The file is a sequence of records of 3073 bytes: the label, then 1024 red, 1024 green and 1024 blue
    values, row by row. Source: the data set's page, "Binary version". The checksum expected is that of the
    published python batch laid out like this.

    Args:
        path: where the file lies.
        file: what is known of it.
        most: bytes it can hold.

    Raises:
        UserError: if the size is no multiple of 3073, or the checksum is neither that nor one recorded by a
            fetch.
    """
    content = open_file(path, file, most)
    if len(content.data) % (PIXELS + 1):
        raise UserError(
            f"`directory`: {path} holds {len(content.data)} bytes, expected a multiple of {PIXELS + 1}; "
            "take the published file again"
        )
    records = np.frombuffer(content.data, np.uint8).reshape(-1, PIXELS + 1)
    return records[:, 1:], records[:, 0], content.sha256, content.verified


class BatchUnpickler(pickle.Unpickler):
    """Reads dictionaries, lists, strings, numbers and arrays of bytes, and refuses to name anything else."""

    def __init__(self, raw: bytes) -> None:
        super().__init__(io.BytesIO(raw), encoding="bytes")

    def find_class(self, module: str, name: str, /) -> Callable[..., Any]:
        """A stand-in for one of the three things an array is made of; nothing is looked up."""
        # The module of `_reconstruct` is `numpy._core` from numpy 2 on.
        known = PARTS.get((module.replace("._core.", ".core."), name))
        if known is None:
            raise UserError(
                f"`directory`: the batch asks for {module}.{name}, expected numpy arrays only; "
                "take the published file"
            )
        return known


class Part:
    """What a pickle may call in the place of a part of numpy. It has no attribute that a pickle could set."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[], Any]) -> None:
        object.__setattr__(self, "_make", make)

    def __setattr__(self, name: str, value: object) -> None:
        raise UserError(
            f"`directory`: the batch sets '{name}', expected arrays only; take the published file"
        )

    def __call__(self, *_: object) -> Any:
        """The part, whatever the pickle asks of it: shape and values come later, and are checked by numpy."""
        return self._make()


PARTS = {
    ("numpy.core.multiarray", "_reconstruct"): Part(lambda: np.empty(0, np.uint8)),
    ("numpy", "ndarray"): Part(lambda: np.empty(0, np.uint8)),
    ("numpy", "dtype"): Part(lambda: np.dtype(np.uint8)),
}
