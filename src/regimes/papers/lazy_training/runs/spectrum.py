"""The fourth experiment: the spectrum of the tangent kernel on images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from regimes import measure
from regimes.core.state import State
from regimes.core.stream import generator
from regimes.data import Dataset, Split
from regimes.data.catalog import describe
from regimes.papers.recipe.data import ClassImages
from regimes.papers.recipe.device import OnDevice
from regimes.papers.recipe.network import Convolutional
from regimes.papers.recipe.recipe import Recipe, Scene
from regimes.study.field import Count

__all__ = ["SpectrumRun"]


@dataclass(frozen=True, eq=False)
class Spectrum(measure.Snapshot):
    """The eigenvalues of the tangent kernel of all C outputs.

    Values: ``eigenvalues``, the largest first, n C of them; ``trace``, of the kernel; ``head``, the share of the trace
    in the first C eigenvalues; ``eigengap``, the C-th over the next.

    Attributes:
        inputs: x, (n, ...).
    """

    inputs: Tensor

    @property
    def columns(self) -> measure.Columns:
        """The eigenvalues, and three numbers."""
        return {"eigenvalues": list[float], "trace": float, "head": float, "eigengap": float}

    def look(self, state: State) -> Mapping[str, float | list[float]]:
        """Form the kernel and diagonalise it."""
        kernel = measure.ntk(state.module, self.inputs, reduce="full", parameters=state.parameters)
        outputs = kernel.shape[-1]
        kernel = kernel.permute(0, 2, 1, 3).reshape(len(self.inputs) * outputs, -1)
        values = torch.linalg.eigvalsh(kernel).flip(0).tolist()
        trace = float(kernel.trace())
        return {
            "eigenvalues": values,
            "trace": trace,
            "head": sum(values[:outputs]) / trace,
            # dead units can leave a kernel of rank C
            "eigengap": values[outputs - 1] / values[outputs] if values[outputs] > 0 else math.inf,
        }


class SpectrumRun(ClassImages, Convolutional, OnDevice, Recipe):
    r"""All eigenvalues of the tangent kernel of a network at its start, on images or on random pixels.

    The kernel is that of all C outputs, an (n C, n C) matrix. Its trace, and the leading eigenvalues over the others,
    say how fast the lazy dynamics run and how many directions they learn first (Chizat, Oyallon, Bach 2019, figure 7).

    Images are centred by the mean image and scaled to norm sqrt(d) each, d the number of pixels times channels. Random
    pixels are independent and standard normal, of as many channels and pixels, and each image is scaled to the same
    norm: both have pixels of mean square 1 in every image.

    Attributes:
        dataset: digits, mnist, fashion-mnist or cifar-10. For random pixels its shape counts, no file is read.
        n: images, the first of the training set, classes in turn.
        pixels: real or random.
        seed: of the start, and of random pixels. Real images are the same for every seed.
    """

    version: ClassVar[int] = 2
    tells: ClassVar[Mapping[str, str]] = {"status": "status", "step": "step"}

    dataset: Literal["digits", "mnist", "fashion-mnist", "cifar-10"] = "digits"
    n: Annotated[int, Field(ge=2)] = 100
    n_test: Count = 1
    pixels: Literal["real", "random"] = "real"
    dtype: Literal["float32", "float64"] = "float64"

    def cost(self) -> float:
        """Rough seconds: products of pairs of images, and the eigenvalues of a matrix of side 10 n."""
        pairs = 2e-5 if self.model == "conv" else 5e-3 * self.width_factor**2
        return 0.3 + self.n**2 * pairs + (10 * self.n) ** 3 * 3e-11

    @property
    def label(self) -> str:
        """Network and images."""
        return f"spectrum: {self.model} on {self.n} x {self.dataset}, {self.pixels}"

    def points(self, directory: Path | None) -> Dataset:
        """The images, or random ones in their place."""
        if self.pixels == "real":
            return super().points(directory)
        shape = describe(self.dataset).shape
        source = generator(self.seed, "pixels", *shape)
        x = torch.randn(self.n, *shape, generator=source, dtype=torch.float64)
        x = (x / x.square().mean((1, 2, 3), keepdim=True).sqrt()).to(getattr(torch, self.dtype))
        blank = torch.zeros(self.n, dtype=torch.int64)
        split = Split(x, blank, blank)
        return Dataset(self.dataset, "classes", split, split, split, (), {})

    def network(self, shape: tuple[int, ...]) -> nn.Module:
        """The network at its start, unscaled."""
        return self.start(shape)

    @classmethod
    def states(cls, runs: Sequence[Self], modules: Sequence[nn.Module], scene: Scene) -> Iterable[State]:
        """The start alone: nothing is trained."""
        for member, module in enumerate(modules):
            yield replace(State.of(module), member=member, status="finished")

    @classmethod
    def probes(cls, scene: Scene) -> Sequence[measure.Probe]:
        """The spectrum on the images."""
        return [Spectrum(scene.train.x)]
