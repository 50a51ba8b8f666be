"""Readers: a data set's name and directory in, all its images and labels out, in the published order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regimes.core.error import UserError
from regimes.data.catalog import Description, describe, home
from regimes.data.checksum import locate, open_file
from regimes.data.cifar import cifar_batch, cifar_binary
from regimes.data.idx import idx_decode

__all__ = ["Images", "choices", "read"]


@dataclass(frozen=True, eq=False)
class Images:
    """All images of a data set, the training file first.

    Args:
        pixels: (n, c, h, w) uint8.
        labels: (n,) uint8, index into ``classes``.
        train: how many of them are the training file's; all others are the test file's.
        classes: the names of the classes.
        split: the name of the split, "" where there is only one.
        files: file name to sha256, as the files lie on the disk.
        verified: ``"published"``, ``"fetched"``, ``"none"`` (only the structure could be checked) or
            ``"embedded"``.
    """

    pixels: np.ndarray
    labels: np.ndarray
    train: int
    classes: tuple[str, ...]
    split: str
    files: dict[str, str]
    verified: str


def read(name: str, directory: str | Path | None = None, split: str | None = None) -> Images:
    """Read a data set from its published files.

    Args:
        name: one of :data:`regimes.data.DATASETS`.
        directory: the data directory (see :func:`regimes.data.load`).
        split: of EMNIST, which of the six.

    Raises:
        UserError: for an unknown name or split, missing files, or files that are not the published ones.

    >>> read("digits").pixels.shape
    (1797, 1, 8, 8)
    """
    description = describe(name)
    variant, _ = description.variant(split)
    base = home(directory)
    try:
        return READERS[name](description, base, variant)
    except OSError as error:
        raise UserError(
            f"`directory`: {base} cannot be read ({error}); see to that, or name another directory"
        ) from error


def choices(description: Description, split: str) -> list[tuple[str, ...]]:
    """Per published file the names it may lie under, the preferred one first."""
    names = [file.name.format(split=split) for file in description.files]
    if description.name == "cifar-10":
        return [(name, f"{name}.bin") for name in names]
    return [(f"{name}.gz", name, name.replace("-idx", ".idx")) for name in names]


def read_digits(description: Description, directory: Path, split: str) -> Images:
    from sklearn.datasets import load_digits  # takes most of a second to import

    values, labels = load_digits(return_X_y=True)
    pixels = np.asarray(values, np.uint8).reshape(-1, *description.shape)
    labels = np.asarray(labels, np.uint8)
    variant = description.variants[split]
    return Images(pixels, labels, variant.train, variant.classes, split, {}, "embedded")


def read_idx(description: Description, directory: Path, split: str) -> Images:
    other = split != description.fetched
    hint = f" (a fetch gives the split '{description.fetched}' only)" if other else ""
    paths = locate(description, directory, choices(description, split), hint)
    sizes = description.sizes(split)
    contents = [open_file(*one) for one in zip(paths, description.files, sizes, strict=True)]
    arrays = [idx_decode(content.data, content.name) for content in contents]
    variant = description.variants[split]
    for part in (0, 2):
        check_pair(arrays[part], arrays[part + 1], description, paths[part], paths[part + 1])
    labels = np.concatenate([arrays[1], arrays[3]]) - np.uint8(variant.first)
    if labels.max(initial=0) >= len(variant.classes):  # a label below the first one has wrapped round to 255
        last = variant.first + len(variant.classes) - 1
        raise UserError(
            f"`directory`: {paths[1].name} or {paths[3].name} holds a label outside {variant.first}..{last}; "
            "take the published files"
        )
    pixels = np.concatenate([arrays[0], arrays[2]])[:, None]
    if description.name == "emnist":
        pixels = pixels.swapaxes(2, 3)  # EMNIST's files hold every image transposed
    sums = {content.name: content.sha256 for content in contents}
    kinds = {content.verified for content in contents}
    return Images(pixels, labels, len(arrays[1]), variant.classes, split, sums, weakest(kinds))


def check_pair(
    images: np.ndarray, labels: np.ndarray, description: Description, image_path: Path, label_path: Path
) -> None:
    if images.ndim != 3 or labels.ndim != 1 or images.shape[1:] != description.shape[1:]:
        raise UserError(
            f"`directory`: {image_path.name} has shape {images.shape} and {label_path.name} {labels.shape}, "
            f"expected (n, {description.shape[1]}, {description.shape[2]}) and (n,); take the published files"
        )
    if len(images) != len(labels):
        raise UserError(
            f"`directory`: {image_path.name} holds {len(images)} images and {label_path.name} {len(labels)} "
            "labels, expected as many; take the published files"
        )


def read_cifar(description: Description, directory: Path, split: str) -> Images:
    paths = locate(description, directory, choices(description, split))
    pixels, labels, sums, kinds = [], [], {}, set()
    for path, file, most in zip(paths, description.files, description.sizes(split), strict=True):
        if path.suffix == ".bin":
            image, label, sums[path.name], kind = cifar_binary(path, file, most)
        else:
            image, label, sums[path.name] = cifar_batch(path, file)
            kind = "published"
        pixels.append(image)
        labels.append(label)
        kinds.add(kind)
    classes = description.variants[split].classes
    merged = np.concatenate(labels)
    if merged.max(initial=0) >= len(classes):
        raise UserError(
            f"`directory`: {paths[0].parent} holds a label above {len(classes) - 1}; take the published files"
        )
    stacked = np.concatenate(pixels).reshape(-1, *description.shape)
    return Images(stacked, merged, len(merged) - len(labels[-1]), classes, split, sums, weakest(kinds))


def weakest(kinds: set[str]) -> str:
    return next(kind for kind in ("none", "fetched", "published") if kind in kinds)


READERS: dict[str, Callable[[Description, Path, str], Images]] = {
    "digits": read_digits,
    "mnist": read_idx,
    "fashion-mnist": read_idx,
    "emnist": read_idx,
    "cifar-10": read_cifar,
}
