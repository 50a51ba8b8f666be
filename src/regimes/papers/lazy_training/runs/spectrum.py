"""The fourth experiment of the lazy-training study: the spectrum of the tangent kernel on images."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from pydantic import Field

from regimes.papers.lazy_training.runs.images import ImageRun, network_of
from regimes.study import Run
from regimes.study.field import Index, Positive, Rows, Tick

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SpectrumRun", "images_of"]


class SpectrumRun(Run):
    r"""All eigenvalues of the tangent kernel of a network at its start, on images or on random pixels.

    The kernel is that of all C outputs, an (n C, n C) matrix. Its trace, and the leading eigenvalues over the others,
    say how fast the lazy dynamics run and how many directions they learn first (Chizat, Oyallon, Bach 2019, figure 7).

    Images are centred by the mean image and scaled to norm sqrt(d) each, d the number of pixels times channels. Random
    pixels are independent and standard normal, of as many channels and pixels, and each image is scaled to the same
    norm: both have pixels of mean square 1 in every image.

    Attributes:
        dataset: digits, mnist, fashion-mnist or cifar-10. For random pixels its shape counts, no file is read.
        model: conv, vgg or resnet, the networks of ``ImageRun``.
        width_factor: what multiplies the channels of vgg and resnet.
        gain: what multiplies the weights of their start.
        n: images, the first of the training set, classes in turn.
        pixels: real or random.
        seed: of the start, and of random pixels. Real images are the same for every seed.
        dtype: of everything.
        device: cpu or cuda.

    The columns: ``eigenvalues``, the largest first, n C of them; ``trace``, of the kernel; ``head``, the share of the
    trace in the first C eigenvalues; ``gap``, the C-th over the next; ``step`` is 0, the start.
    """

    version: ClassVar[int] = 1
    columns: ClassVar[Mapping[str, Any]] = {
        "status": str,
        "step": int,
        "eigenvalues": list[float],
        "trace": float,
        "head": float,
        "gap": float,
        "seconds": float,
    }

    dataset: Literal["digits", "mnist", "fashion-mnist", "cifar-10"] = "digits"
    model: Literal["conv", "vgg", "resnet"] = "conv"
    width_factor: Positive = 1.0
    gain: Positive = 1.0
    n: Annotated[int, Field(ge=2)] = 100
    pixels: Literal["real", "random"] = "real"
    seed: Index = 0
    dtype: Literal["float32", "float64"] = "float64"
    device: Literal["cpu", "cuda"] = "cpu"

    def cost(self) -> float:
        """Rough seconds: products of pairs of images, and the eigenvalues of a matrix of side 10 n."""
        pairs = 2e-5 if self.model == "conv" else 5e-3 * self.width_factor**2
        return 0.3 + self.n**2 * pairs + (10 * self.n) ** 3 * 3e-11

    @classmethod
    def perform(cls, runs: Sequence[Run], data: Path | None, tick: Tick) -> Iterator[tuple[Run, Rows]]:
        """Form and diagonalise one kernel after the other; yield each run with its row."""
        for run in cast("Sequence[SpectrumRun]", runs):
            tick(f"spectrum: {run.model} on {run.n} x {run.dataset}, {run.pixels}")
            yield run, [_see(run, data)]


def _see(run: SpectrumRun, directory: Path | None) -> dict[str, Any]:
    import torch

    from regimes import measure

    began = time.perf_counter()
    x = images_of(run, directory).to(run.device)
    start = ImageRun(
        model=run.model, width_factor=run.width_factor, gain=run.gain, seed=run.seed, dtype=run.dtype
    )
    network = network_of(start, tuple(x.shape[1:])).to(run.device)
    kernel = measure.ntk(network, x, reduce="full")
    outputs = kernel.shape[-1]
    kernel = kernel.permute(0, 2, 1, 3).reshape(run.n * outputs, -1)
    values = torch.linalg.eigvalsh(kernel).flip(0).tolist()
    trace = float(kernel.trace())
    return {
        "status": "finished",
        "step": 0,
        "eigenvalues": values,
        "trace": trace,
        "head": sum(values[:outputs]) / trace,
        # dead units can leave a kernel of rank C
        "gap": values[outputs - 1] / values[outputs] if values[outputs] > 0 else math.inf,
        "seconds": time.perf_counter() - began,
    }


def images_of(run: SpectrumRun, directory: Path | None) -> Tensor:
    """What a run looks at, (n, channels, height, width), each image of norm sqrt(d)."""
    import torch

    from regimes.data.catalog import describe

    dtype = getattr(torch, run.dtype)
    if run.pixels == "real":
        return _load(run.dataset, run.n, directory).to(dtype)
    shape = describe(run.dataset).shape
    generator = torch.Generator().manual_seed(run.seed)
    x = torch.randn(run.n, *shape, generator=generator, dtype=torch.float64)
    return (x / x.square().mean((1, 2, 3), keepdim=True).sqrt()).to(dtype)


@lru_cache(maxsize=2)
def _load(name: str, n: int, directory: Path | None) -> Tensor:
    """The images of a run; a worker that gets several runs on the same ones reads them once."""
    from regimes import data as datasets

    return datasets.load(name, task="classes", train=n, test=1, directory=directory).train.x
