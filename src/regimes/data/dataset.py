"""A data set ready for training: read, choose points and targets, transform, hand over as tensors."""

from __future__ import annotations

import hashlib
import operator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.data.catalog import Description, describe
from regimes.data.image import Images, read
from regimes.data.labelling import Labelling, balanced_prefix, interleave, select, targets
from regimes.data.transform import CHUNK, Transform, fit

__all__ = ["Dataset", "Split", "load"]

Json = str | int | float | bool | None | list[str] | dict[str, str]
SIZES = (14, 16)


@dataclass(frozen=True, eq=False)
class Indices:
    """Indices into the published order, training file first: points to fit on, to train on, to test on."""

    fit: np.ndarray
    train: np.ndarray
    test: np.ndarray


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Points with their targets.

    Args:
        x: inputs, (n, d) or (n, c, h, w).
        y: targets, (n,): -1 or +1 as floats of the type of ``x`` for binary tasks, int64 classes for
            ``"classes"``.
        labels: (n,) int64, the class in the data set, an index into ``Dataset.classes``.
    """

    x: Float[Tensor, "n ..."]
    y: Shaped[Tensor, " n"]
    labels: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        kind = str(self.x.dtype).removeprefix("torch.")
        return f"Split(x {tuple(self.x.shape)} {kind}, y {tuple(self.y.shape)} {str(self.y.dtype)[6:]})"


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A data set with its task.

    Args:
        name: the data set.
        task: ``"classes"``, ``"parity"`` or ``"a|b"`` with the names of the two classes.
        train: the points to train on.
        test: the points to test on; none of them is in ``train``.
        probe: the first points of ``test``, for measurements such as kernels.
        classes: the names of the data set's classes.
        provenance: what the data came from and what was done to it, as values that JSON can hold.
    """

    name: str
    task: str
    train: Split
    test: Split
    probe: Split
    classes: tuple[str, ...]
    provenance: dict[str, Json]

    def __repr__(self) -> str:
        sizes = f"{len(self.train)} train, {len(self.test)} test, {len(self.probe)} probe"
        return f"Dataset({self.name}, {self.task}: {sizes}, x {tuple(self.train.x.shape[1:])})"


@checked
def load(
    name: str = "digits",
    *,
    task: Labelling = "classes",
    train: int | None = None,
    test: int | None = None,
    probe: int = 256,
    merge: bool = False,
    pca: int | None = None,
    size: int | None = None,
    center: bool = True,
    norm: bool = True,
    flat: bool = False,
    split: str | None = None,
    dtype: torch.dtype = torch.float64,
    directory: str | Path | None = None,
) -> Dataset:
    r"""A data set as tensors. The same arguments give the same bytes.

    The points of the task's classes are put in an order in which every prefix is balanced (the targets in
    turn, and within a target the classes in turn), and the first ones taken. Once a class has run out it is
    passed over; ``provenance["balanced_prefix"]`` says how far the balance goes. Then, in float64:

    1. pixels are divided by the largest value they can have, and averaged over equal areas to ``size``;
    2. the mean image is subtracted (``center``);
    3. each image is scaled to norm :math:`\sqrt d`, d the number of its values (``norm``);
    4. the first ``pca`` principal components are taken, each scaled to variance 1.

    The mean image and the components are those of all points of the task's classes: of training and test file
    together with ``merge``, of the training file otherwise. They do not depend on ``train`` and ``test``, so
    a smaller training set is the beginning of a larger one. With ``merge`` the test points are those that
    follow the training points. Source of the protocol (``merge=True``,
    ``task="parity"``): Geiger et al., Disentangling feature and lazy training in deep neural networks (2020),
    arXiv 1906.08034, section 2 and the authors' code.

    ``digits`` is embedded in scikit-learn: it needs no files, has no published split, and is always merged;
    three quarters are for training if nothing else is asked for. The others are read from their published
    files, packed with gzip or not, below the data directory: ``mnist/``, ``fashion-mnist/``, ``emnist/``,
    ``cifar-10-batches-py/`` or ``cifar-10-batches-bin/``, or right in it. Known checksums are verified.
    EMNIST's images are turned upright, and the labels of its split ``letters`` count from 0 here.

    Args:
        name: ``digits``, ``mnist``, ``fashion-mnist``, ``emnist`` or ``cifar-10``.
        task: ``"classes"`` (the class itself), ``"parity"`` (-1 for even, +1 for odd classes), or a pair of
            classes by index or name (-1 for the first, +1 for the second).
        train: number of training points; all that are there if left out.
        test: number of test points; all that are there if left out.
        probe: number of probe points, the first of the test points; all of these if there are fewer.
        merge: merge training and test file before the points are chosen.
        pca: number of principal components; inputs are then (n, pca).
        size: 14 or 16, the side to average images to; 28 to 14 is the mean of 2 x 2 blocks.
        center: subtract the mean image.
        norm: scale each image to norm sqrt(d).
        flat: inputs as (n, d) instead of (n, c, h, w).
        split: of EMNIST: ``byclass``, ``bymerge``, ``balanced`` (if left out), ``letters``, ``digits``,
            ``mnist``.
        dtype: the floating type of the inputs and of binary targets.
        directory: the data directory; else the environment variable ``REGIMES_DATA``; else
            ``~/.cache/regimes``.

    Raises:
        UserError: for a bad argument, which it names; for missing, truncated or altered files.

    >>> load("digits", task="parity", train=100, test=200)
    Dataset(digits, parity: 100 train, 200 test, 200 probe, x (1, 8, 8))
    """
    description = describe(name)
    _, variant = description.variant(split)
    pair = select(task, variant.classes)
    check(size, pca, dtype, description)
    sizes = (count("train", train), count("test", test))
    probes = count("probe", probe)
    merge = merge or name == "digits"
    images = read(name, directory, split)
    goals = targets(images.labels, task, pair)
    rows = choose(images, goals, pair, merge, sizes)
    transform = fit(images.pixels, rows.fit, description.top, size, center, norm, pca)
    train_part = gather(images, goals, rows.train, transform, flat, dtype)
    test_part = gather(images, goals, rows.test, transform, flat, dtype)
    probe_part = Split(test_part.x[:probes], test_part.y[:probes], test_part.labels[:probes])
    title = str(task) if pair is None else f"{images.classes[pair[0]]}|{images.classes[pair[1]]}"
    provenance = source(description, images) | {
        "task": title,
        "merge": merge,
        "size": size,
        "center": center,
        "norm": norm,
        "pca": pca,
        "explained": transform.components.explained if transform.components else None,
        "flat": flat or pca is not None,
        "dtype": str(dtype).removeprefix("torch."),
        "balanced_prefix": min(len(rows.train), balanced_prefix(goals[rows.fit])),
        "probe": len(probe_part),
    }
    return Dataset(name, title, train_part, test_part, probe_part, images.classes, provenance | record(rows))


def check(size: int | None, pca: int | None, dtype: torch.dtype, description: Description) -> None:
    channels, height, width = description.shape
    if size is not None and (isinstance(size, bool) or size not in SIZES):
        raise UserError(f"`size`: {size!r} came, expected 14 or 16, or None to keep {height} x {width}")
    if size is not None and size > height:
        raise UserError(
            f"`size`: {size} came, but the images of '{description.name}' are {height} x {width}; "
            "leave it out"
        )
    dimension = channels * (height * width if size is None else size * size)
    components = count("pca", pca)
    if components is not None and components > dimension:
        raise UserError(
            f"`pca`: {components} came, but an image has {dimension} values; use at most {dimension}"
        )
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UserError(
            f"`dtype`: {dtype!r} came, expected a floating type such as torch.float64 or torch.float32"
        )


def count(argument: str, value: int | None) -> int | None:
    if value is None:
        return None
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise UserError(f"`{argument}`: {value!r} came, expected a whole number from 1 on")
    return number


def choose(
    images: Images,
    goals: np.ndarray,
    pair: tuple[int, int] | None,
    merge: bool,
    sizes: tuple[int | None, int | None],
) -> Indices:
    labels = images.labels
    rows = np.arange(len(labels)) if pair is None else np.flatnonzero(np.isin(labels, pair))
    halves = rows[rows < images.train], rows[rows >= images.train]
    for part, half in zip(("training", "test"), halves, strict=True):
        if pair is not None and len(np.unique(labels[half])) < 2:
            raise UserError(
                f"`task`: the {part} images hold no points of one of the classes {pair}; choose others"
            )
    train, test = sizes
    if merge:
        order = rows[interleave(labels[rows], goals[rows])]
        if train is None:
            train = min(len(halves[0]), len(order) - (test or 0))
        test = len(order) - train if test is None else test
        if train < 1 or test < 1 or train + test > len(order):
            raise UserError(
                f"`train` and `test`: {sizes[0]} and {sizes[1]} came, but there are {len(order)} points of "
                "these classes in all; ask for fewer"
            )
        return Indices(rows, order[:train], order[train : train + test])
    orders = [half[interleave(labels[half], goals[half])] for half in halves]
    for argument, size, order in zip(("train", "test"), sizes, orders, strict=True):
        if len(order) < (size or 1):
            raise UserError(
                f"`{argument}`: {size} came, but its file holds {len(order)} points of these classes; "
                "ask for fewer, or merge the files with merge=True"
            )
    return Indices(halves[0], orders[0][:train], orders[1][:test])


def gather(
    images: Images, goals: np.ndarray, rows: np.ndarray, transform: Transform, flat: bool, dtype: torch.dtype
) -> Split:
    x = torch.empty(0)
    for start in range(0, len(rows), CHUNK):
        # One chunk at a time in float64: all of CIFAR-10 would take 1.5 GB more.
        part = torch.from_numpy(transform(images.pixels[rows[start : start + CHUNK]]))
        part = part.flatten(1) if flat else part
        x = x if start else torch.empty(len(rows), *part.shape[1:], dtype=dtype)
        x[start : start + CHUNK] = part
    y = torch.from_numpy(goals[rows])
    # Classes stay whole numbers for the cross-entropy; signs are multiplied with the outputs.
    y = y if y.dtype == torch.int64 else y.to(dtype)
    return Split(x, y, torch.from_numpy(images.labels[rows].astype(np.int64)))


def source(description: Description, images: Images) -> dict[str, Json]:
    return {
        "name": description.name,
        "title": description.title,
        "source": description.source,
        "split": images.split or None,
        "files": dict(images.files),
        "verified": images.verified,
    }


def record(rows: Indices) -> dict[str, Json]:
    return {
        "fitted_on": len(rows.fit),
        "train": len(rows.train),
        "test": len(rows.test),
        "train_indices": fingerprint(rows.train),
        "test_indices": fingerprint(rows.test),
    }


def fingerprint(rows: np.ndarray) -> str:
    """The sha256 of indices into the published order, training file first, as little-endian int64."""
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()
