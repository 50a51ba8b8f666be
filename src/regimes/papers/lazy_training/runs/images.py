"""The third experiment of the lazy-training study: convolutional networks on images under an output scale."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from pydantic import Field

from regimes.study import Run
from regimes.study.field import Count, Index, Positive, Rows, Tick

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ImageRun", "network_of"]


# Images at a time where outputs are computed; so many carry the stability.
_CHUNK = 500
# The channels of the convolutions of "conv"; a 2 x 2 max-pool follows the first and the third.
_CHANNELS = (16, 16, 32, 32)


class ImageRun(Run):
    r"""A convolutional network on images, :math:`F = \alpha (f(w) - f(w_0))`, by descent with momentum.

    ReLU, no normalisation, weights Xavier-normal and biases 0 at the start. The step in epoch t is lr / (1 + decay t).
    A run whose loss is larger at the end than at the start, at F = 0, counts as diverged.
    The squared loss is half the squared error summed over the outputs: a published step for the mean over ten
    outputs is five times the one here.

    Attributes:
        dataset: digits, mnist, fashion-mnist or cifar-10.
        model: conv (four convolutions of 16, 16, 32 and 32 channels), vgg (VGG-11) or resnet (ResNet-18).
        width_factor: what multiplies the channels of vgg and resnet.
        gain: what multiplies the weights of their start.
        n: training points.
        n_test: test points.
        loss: squared or cross-entropy.
        lr: the step at first.
        decay: of the step, per epoch.
        momentum: of the descent.
        batch_size: of the descent.
        epochs: of the descent.
        alpha: the output scale.
        seed: of start and batches.
        dtype: of everything; alpha above 1000 needs float64.
        device: cpu or cuda.
    """

    version: ClassVar[int] = 2
    columns: ClassVar[Mapping[str, Any]] = {
        "status": str,
        "step": int,
        "loss_end": float,
        "train_accuracy": float,
        "test_accuracy": float,
        "stability": float,
        "seconds": float,
    }

    dataset: str = "digits"
    model: Literal["conv", "vgg", "resnet"] = "conv"
    width_factor: Positive = 1.0
    gain: Positive = 1.0
    n: Annotated[int, Field(ge=2)] = 1000
    n_test: Count = 500
    loss: Literal["squared", "cross-entropy"] = "squared"
    lr: Positive = 0.1
    decay: Annotated[float, Field(ge=0)] = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    batch_size: Count = 32
    epochs: Count = 10
    alpha: Positive = 1.0
    seed: Index = 0
    dtype: Literal["float32", "float64"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"

    def cost(self) -> float:
        """Rough seconds: products of an epoch, and the overhead of a step."""
        pixels = {"digits": 0.16, "mnist": 1.9, "fashion-mnist": 1.9}.get(self.dataset, 2.8)
        products = (pixels if self.model == "conv" else 150 * self.width_factor**2) * 6e6
        return self.epochs * self.n * (products / 2e10 + 1.5e-3 / self.batch_size)

    @classmethod
    def perform(cls, runs: Sequence[Run], data: Path | None, tick: Tick) -> Iterator[tuple[Run, Rows]]:
        """Train one network after the other; yield each with its row."""
        for run in cast("Sequence[ImageRun]", runs):
            yield run, [_see(run, data, tick)]


def _see(run: ImageRun, directory: Path | None, tick: Tick) -> dict[str, Any]:
    import torch

    from regimes import control, measure, train
    from regimes.core.loss import LOSSES

    began = time.perf_counter()
    dataset = _load(run.dataset, run.n, run.n_test, run.dtype, directory)
    # Channels last, convolutions and pools take two thirds of the time.
    x, test = (
        part.x.to(run.device, memory_format=torch.channels_last) for part in (dataset.train, dataset.test)
    )
    module = control.scale(network_of(run, tuple(x.shape[1:])), run.alpha).to(run.device)
    epoch = -(-run.n // min(run.batch_size, run.n))
    states = train.descent(
        module,
        x,
        dataset.train.y,
        lr=lambda step: run.lr / (1 + run.decay * (step // epoch)),
        loss=LOSSES[run.loss],
        momentum=run.momentum,
        batch_size=run.batch_size,
        epochs=run.epochs,
        seed=run.seed,
    )
    start = math.nan
    for state in states:
        start = state.loss if math.isnan(start) else start
        tick(f"{run.dataset} alpha={run.alpha:g}: step {state.step} of {epoch * run.epochs}")
    with torch.no_grad():
        said, known = (torch.cat([state(part) for part in each.split(_CHUNK)]).cpu() for each in (test, x))
    return {
        # the linear dynamics of a step that is too large grow without end, but slowly
        "status": "diverged" if not state.loss <= start else state.status,
        "step": state.step,
        "loss_end": state.loss,
        "train_accuracy": 1 - measure.error_rate(known, dataset.train.y),
        "test_accuracy": 1 - measure.error_rate(said, dataset.test.y),
        "stability": measure.pattern(module, test[:_CHUNK], origin=state.origin, parameters=state.parameters),
        "seconds": time.perf_counter() - began,
    }


def network_of(run: ImageRun, shape: tuple[int, ...]) -> nn.Sequential:
    """The network of a run on images of that shape, (channels, height, width), at its start."""
    import torch

    from regimes import models

    channels, height, width = shape
    dtype = getattr(torch, run.dtype)
    if run.model == "conv":
        return _conv(run, channels, (height // 4) * (width // 4), dtype)
    if run.model == "resnet":
        return models.resnet(
            channels, width_factor=run.width_factor, gain=run.gain, seed=run.seed, dtype=dtype
        )
    return models.vgg(
        channels,
        size=(height, width),
        width_factor=run.width_factor,
        gain=run.gain,
        seed=run.seed,
        dtype=dtype,
    )


def _conv(run: ImageRun, channels: int, pixels: int, dtype: Any) -> nn.Sequential:
    """Four convolutions with ReLU, two max-pools, one linear layer."""
    from torch import nn

    from regimes.models.xavier import Start

    start = Start(run.seed, run.gain, dtype)
    layers: list[nn.Module] = []
    maps = channels
    for level, wanted in enumerate(_CHANNELS):
        layers += [start.conv(maps, wanted), nn.ReLU()]
        if level % 2 == 0:
            layers.append(nn.MaxPool2d(2))
        maps = wanted
    return nn.Sequential(*layers, nn.Flatten(), start.linear(maps * pixels, 10))


@lru_cache(maxsize=2)
def _load(name: str, n: int, n_test: int, dtype: str, directory: Path | None) -> Any:
    """The data set of a run; a worker that gets several runs on the same one reads it once."""
    import torch

    from regimes import data as datasets

    return datasets.load(
        name, task="classes", train=n, test=n_test, dtype=getattr(torch, dtype), directory=directory
    )
