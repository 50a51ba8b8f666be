"""Small stand-ins for the published files, and the plain reader that ours is compared with."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np


def write_idx(path: Path, array: np.ndarray) -> None:
    """An IDX file, packed if its name says so."""
    head = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    content = head + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def read_idx_slowly(path: Path) -> list[int] | list[list[list[int]]]:
    """The values of an IDX file, one byte at a time."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        zero, nought, kind, axes = (file.read(1)[0] for _ in range(4))
        assert (zero, nought, kind) == (0, 0, 8)
        shape = [int.from_bytes(file.read(4), "big") for _ in range(axes)]
        if axes == 1:
            return [file.read(1)[0] for _ in range(shape[0])]
        count, height, width = shape
        return [[[file.read(1)[0] for _ in range(width)] for _ in range(height)] for _ in range(count)]


def write_emnist(
    directory: Path, split: str, labels: np.ndarray, train: int, suffix: str = ".gz", seed: int = 0
) -> np.ndarray:
    """The four files of a split of EMNIST; returns the images as they are stored, training images first."""
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), 28, 28), np.uint8)
    for part, rows in (("train", slice(0, train)), ("test", slice(train, None))):
        write_idx(directory / f"emnist-{split}-{part}-images-idx3-ubyte{suffix}", images[rows])
        write_idx(directory / f"emnist-{split}-{part}-labels-idx1-ubyte{suffix}", labels[rows])
    return images


def write_batch(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """A python batch of CIFAR-10, or nearly: Python 2 pickled the published ones."""
    batch = {b"batch_label": b"a batch", b"labels": labels.tolist(), b"data": images, b"filenames": []}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(batch, protocol=3))
