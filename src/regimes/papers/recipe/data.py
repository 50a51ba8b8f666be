"""Parts of data: what a run is trained on."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, Field

from regimes import data
from regimes.data import Dataset
from regimes.study.field import Count

__all__ = ["ClassImages", "ParityPoints"]


class ParityPoints(BaseModel):
    """Points of two classes, by parity; training and test file merged.

    Attributes:
        dataset: digits, mnist, fashion-mnist, emnist or cifar-10.
        pca: principal components, each of variance 1; None for the images, each of norm sqrt(d).
        n: training points.
        n_test: test points; the first ``n_probe`` of them carry the kernels.
    """

    dataset: str = "digits"
    pca: Count | None = 10
    n: Annotated[int, Field(ge=2)] = 500
    n_test: Count = 1000
    n_probe: Annotated[int, Field(ge=2)] = 256

    def points(self, directory: Path | None) -> Dataset:
        """The points as vectors."""
        return self.laid_out(directory)

    def laid_out(self, directory: Path | None, size: int | None = None, flat: bool = True) -> Dataset:
        """The points as vectors or, not ``flat``, as images of side ``size``."""
        return _parity(self.dataset, self.pca, size, flat, (self.n, self.n_test, self.n_probe), directory)


# A worker that gets several programs on the same data reads them once.
@lru_cache(maxsize=2)
def _parity(
    name: str,
    pca: int | None,
    size: int | None,
    flat: bool,
    counts: tuple[int, int, int],
    directory: Path | None,
) -> Dataset:
    n, n_test, n_probe = counts
    return data.load(
        name,
        task="parity",
        train=n,
        test=n_test,
        probe=n_probe,
        merge=True,
        pca=pca,
        size=size,
        flat=flat,
        directory=directory,
    )


class ClassImages(BaseModel):
    """Images of ten classes, those of the training file and those of the test file.

    Attributes:
        dataset: digits, mnist, fashion-mnist or cifar-10.
        n: training points.
        n_test: test points.
        dtype: of everything; an output scale above 1000 needs float64.
    """

    dataset: str = "digits"
    n: Annotated[int, Field(ge=2)] = 1000
    n_test: Count = 500
    dtype: Literal["float32", "float64"] = "float32"

    def points(self, directory: Path | None) -> Dataset:
        """The images."""
        return self.laid_out(directory, flat=False)

    def laid_out(self, directory: Path | None, size: int | None = None, flat: bool = True) -> Dataset:
        """The points as vectors or, not ``flat``, as images of side ``size``.

        Images are channels last: convolutions and pools take two thirds of the time.
        """
        return _classes(self.dataset, self.n, self.n_test, self.dtype, size, flat, directory)


@lru_cache(maxsize=2)
def _classes(
    name: str, n: int, n_test: int, dtype: str, size: int | None, flat: bool, directory: Path | None
) -> Dataset:
    found = data.load(
        name,
        task="classes",
        train=n,
        test=n_test,
        size=size,
        flat=flat,
        dtype=getattr(torch, dtype),
        directory=directory,
    )
    if flat:
        return found
    parts = {
        part: replace(split, x=split.x.to(memory_format=torch.channels_last))
        for part, split in (("train", found.train), ("test", found.test))
    }
    return replace(found, **parts)
