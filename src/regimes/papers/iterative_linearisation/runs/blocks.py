"""Training in linear blocks: the network is replaced by its linearisation, which is renewed every K steps."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import nn

from regimes import control, measure, models, train
from regimes.core.loss import LOSSES
from regimes.core.state import State
from regimes.core.stream import entropy, generator
from regimes.data import Dataset, Split
from regimes.models.xavier import Start
from regimes.papers.iterative_linearisation.runs.probes import probes
from regimes.papers.recipe.data import ClassImages
from regimes.papers.recipe.device import OnDevice
from regimes.papers.recipe.recipe import Recipe, Scene
from regimes.study.field import Count, Index, Positive
from regimes.train.plan import Anchor

__all__ = ["Blocks", "CnnBlocks", "MlpBlocks", "ParityBlocks"]

# So many blocks are looked at one by one; of more, those at looks in between.
_BLOCKS = 10
# Looks in each factor of ten of the steps.
_LOOKS = 2


class Blocks(OnDevice, Recipe):
    r"""Descent on :math:`f(a, x) + J(a, x)(w - a)`, whose anchor a is moved to w every K steps.

    All runs of a ladder take the same steps at the same rate: they differ in when the anchor moves. U = T / K is the
    number of feature updates, the start counted as one. Velocity is kept when the anchor moves. The rate is constant,
    and no block is shortened: ``bound`` says at each anchor what rate its linear dynamics bear.

    Attributes:
        period: K, the steps of a block. 1 trains the network itself, which is the same; T or more never renews.
        once: the anchor follows at each of the first steps, up to this one, and stays there: linearised once, at
            epoch t. None for blocks of equal length.
        steps: T.
        lr: eta.
        momentum: mu.
        batch_size: of the descent; None for all points.
        loss: squared or cross-entropy.
        seed: of the start, and of the points where they are drawn.
        n: training points.
        n_test: test points.
        n_probe: test points that carry the kernel.
        n_top: training points whose loss is told.
    """

    tells: ClassVar = {"step": "step", "status": "status"}

    period: Count = 1
    once: Index | None = None
    steps: Count = 1000
    lr: Positive = 0.2
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    batch_size: Count | None = None
    loss: Literal["squared", "cross-entropy"] = "squared"
    seed: Index = 0
    n: Annotated[int, Field(ge=2)] = 500
    n_test: Count = 1000
    n_probe: Annotated[int, Field(ge=2)] = 48
    n_top: Annotated[int, Field(ge=2)] = 512

    @property
    def batch(self) -> str:
        """Members of one program differ in their start: they share the data, if it is not drawn, and the blocks."""
        return self.all_but("seed")

    @property
    def label(self) -> str:
        """Data, and the blocks."""
        return f"{self.about}, {f'once at {self.once}' if self.once is not None else f'K = {self.period}'}"

    @property
    def about(self) -> str:
        """The task in a word."""
        return "blocks"

    def anchored(self, step: int) -> bool:
        """Whether the function that is trained from this step on is linearised there; each step, for the network."""
        if self.once is not None:
            return step <= self.once
        return step == 0 or (step % self.period == 0 and step < self.steps)

    def looked_at(self, step: int) -> bool:
        """Whether the kernel is looked at there: at both ends of a block, if a linear model is trained."""
        if self.plan is None:
            return False
        return step in (self.steps, self.once) if self.once is not None else step in (*self.ends, self.steps)

    @property
    def ends(self) -> range:
        """The anchors that are looked at, of at most ten blocks, and the end."""
        period = self.period if self.once is None else self.steps
        return range(0, self.steps + 1, max(1, period * max(1, self.steps // period // _BLOCKS)))

    @property
    def plan(self) -> Anchor | None:
        """When the anchor moves; None to train the network itself."""
        return None if self.once is None and self.period == 1 else self.anchored

    @property
    def when(self) -> measure.When:
        """Both ends of each block, of at most ten blocks; and steps between, evenly on a logarithmic scale."""
        last = self.steps
        looks = {0, last, *self.ends, self.once or 0}
        looks |= {end - 1 for end in self.ends if end and self.plan is not None}
        looks |= {round(10 ** (k / _LOOKS)) for k in range(_LOOKS * len(str(last)))}
        places = sorted(step for step in looks if step <= last)
        return lambda step: places[min(bisect.bisect_right(places, step), len(places) - 1)]

    def seconds(self, step: float) -> float:
        """Rough seconds, from those of a step of the network."""
        return self.steps * step * (1.0 if self.plan is None else 2.0)

    @classmethod
    def states(cls, runs: Sequence[Self], modules: Sequence[nn.Module], scene: Scene) -> Iterable[State]:
        """The descent of the members."""
        first, parts = runs[0], [own.train for own in scene.data]
        shared = all(part is parts[0] for part in parts)
        return train.descent(
            modules,
            parts[0].x if shared else [part.x for part in parts],
            parts[0].y if shared else [part.y for part in parts],
            lr=first.lr,
            loss=LOSSES[first.loss],
            momentum=first.momentum,
            batch_size=first.batch_size,
            steps=first.steps,
            anchor=first.plan,
        )

    @classmethod
    def probes(cls, scene: Scene) -> Sequence[measure.Probe]:
        """Network and linearisation side by side; kernel and bound at the anchors."""
        return probes(scene)


class Pictures(ClassImages, Blocks):
    """Images of ten classes under a ReLU network.

    Attributes:
        width: of the hidden layers.
    """

    width: Count = 32

    @property
    def about(self) -> str:
        """The data set and the loss."""
        return f"{self.dataset}, {self.loss}"


class MlpBlocks(Pictures):
    """A fully connected network without biases, NTK law.

    Attributes:
        depth: hidden layers.
    """

    depth: Count = 2

    def cost(self) -> float:
        """Rough seconds."""
        return self.seconds(2e-4 + self.n * self.width * (64 + self.width) * 6 / 1e10)

    def points(self, directory: Path | None) -> Dataset:
        """The images as vectors."""
        return self.laid_out(directory)

    def network(self, shape: tuple[int, ...]) -> nn.Module:
        """The network at its start."""
        dtype = getattr(torch, self.dtype)
        return models.mlp(
            shape[0],
            self.width,
            self.depth,
            10,
            law=control.NTK,
            activation="relu",
            seed=self.seed,
            dtype=dtype,
        )


class CnnBlocks(Pictures):
    """Two convolutions 3 x 3 of stride 2, of ``width`` and twice as many channels, and a linear layer; Xavier start.

    Attributes:
        size: side to which images are averaged; None as they come.
        width: channels of the first convolution.
        momentum: none: in batches it buys no stability (``control.stable_rate``).
    """

    size: Literal[14, 16] | None = 14
    width: Count = 4
    n: Annotated[int, Field(ge=2)] = 2000
    n_test: Count = 4000
    batch_size: Count | None = 128
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def cost(self) -> float:
        """Rough seconds."""
        return self.seconds(1e-3 + (self.batch_size or self.n) * self.width * 3e-6)

    def points(self, directory: Path | None) -> Dataset:
        """The images."""
        return self.laid_out(directory, self.size, flat=False)

    def network(self, shape: tuple[int, ...]) -> nn.Module:
        """The network at its start."""
        channels, height, width = shape
        pixels = math.ceil(math.ceil(height / 2) / 2) * math.ceil(math.ceil(width / 2) / 2)
        source = generator(self.seed, "strided cnn", channels, pixels, self.width)
        start = Start(source, 1.0, getattr(torch, self.dtype))
        return nn.Sequential(
            start.conv(channels, self.width, stride=2),
            nn.ReLU(),
            start.conv(self.width, 2 * self.width, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            start.linear(2 * self.width * pixels, 10),
        )


class ParityBlocks(Blocks):
    r"""A sparse parity: :math:`y = x_1 \cdots x_k` of points uniform on :math:`\{-1, 1\}^d`; one hidden layer.

    A kernel that looks the same after any permutation of the inputs needs of the order of d^k points for it. Each
    seed has its own points.

    Attributes:
        inputs: d.
        order: k.
        width: of the hidden layer.
    """

    inputs: Count = 50
    order: Count = 2
    width: Count = 64
    n: Annotated[int, Field(ge=2)] = 800
    dtype: Literal["float32", "float64"] = "float32"

    @property
    def about(self) -> str:
        """The task."""
        return f"{self.order}-parity"

    def cost(self) -> float:
        """Rough seconds."""
        return self.seconds(2e-4 + self.n * self.width * self.inputs * 6 / 1e10)

    def points(self, directory: Path | None) -> Dataset:
        """Those of the seed."""
        return _parity(self.inputs, self.order, self.n, self.n_test, self.n_probe, self.seed, self.dtype)

    def network(self, shape: tuple[int, ...]) -> nn.Module:
        """The network at its start."""
        dtype = getattr(torch, self.dtype)
        return models.mlp(shape[0], self.width, 1, 1, activation="relu", seed=self.seed, dtype=dtype)


@lru_cache(maxsize=32)
def _parity(inputs: int, order: int, n: int, n_test: int, n_probe: int, seed: int, dtype: str) -> Dataset:
    random = np.random.default_rng(entropy(seed, "sparse parity", inputs, order))
    signs = torch.from_numpy(random.integers(0, 2, (n + n_test, inputs))).to(getattr(torch, dtype)) * 2 - 1
    whole = Split(signs, signs[:, :order].prod(1), torch.full((len(signs),), -1))
    train_part, test_part, probe_part = (
        Split(whole.x[part], whole.y[part], whole.labels[part])
        for part in (slice(n), slice(n, None), slice(n, n + n_probe))
    )
    provenance = {"name": "sparse parity", "inputs": inputs, "order": order, "seed": seed, "n": n}
    return Dataset("sparse-parity", "classes", train_part, test_part, probe_part, (), provenance)
