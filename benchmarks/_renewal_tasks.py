"""The tasks of ``benchmarks/renewal.py``: data and networks of a seed, and one run of iterative linearisation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from regimes import control, data

__all__ = ["TASKS", "Ended", "Task", "run"]

Images = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """A task: its data and its network by seed, and how it is trained.

    Attributes:
        data: training and test samples.
        network: f.
        loss: of outputs and targets, the mean.
        steps: T, the same for all.
        batch: samples of a step.
        rate, momentum: of SGD; lowered in a block whose stability bound they exceed.
        rule: the adaptive one, chosen on other seeds (``--pilot``).
    """

    data: Callable[[int, Path | None], Images]
    network: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    steps: int
    batch: int
    rate: float
    momentum: float
    rule: control.Adaptive


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        updates: U.
        accuracy: of the network on the test samples, 0 to 1; chance where it diverged.
        linear: of the linear model.
        lowered: in how many blocks the rate was lowered.
        seconds: of processor time.
        steps: at which step each block began.
    """

    updates: int
    accuracy: float
    linear: float
    lowered: int
    seconds: float
    steps: tuple[int, ...]


def images(name: str, train: int) -> Callable[[int, Path | None], Images]:
    """Images and classes; the seed draws the network and the batches."""

    def load(seed: int, directory: Path | None) -> Images:
        test = 2000 if name != "digits" else 500
        found = data.load(
            name, train=train, test=test, probe=1, norm=False, dtype=torch.float32, directory=directory
        )
        size = found.train.x.std()
        return found.train.x / size, found.train.y, found.test.x / size, found.test.y

    return load


def parity(seed: int, directory: Path | None) -> Images:
    """The product of 3 of 30 signs, 2000 samples to train on: the features have to find which three."""
    generator = torch.Generator().manual_seed(seed)
    x = 1.0 - 2.0 * torch.randint(2, (4000, 30), generator=generator).float()
    y = (x[:, :3].prod(1) > 0).long()
    return x[:2000], y[:2000], x[2000:], y[2000:]


def cnn(channels: tuple[int, ...], last: int) -> Callable[[], nn.Module]:
    """Convolutions of stride 2, a linear layer."""

    def make() -> nn.Module:
        parts: list[nn.Module] = []
        for n, m in pairwise(channels):
            parts += [nn.Conv2d(n, m, 3, stride=2, padding=1), nn.ReLU()]
        return nn.Sequential(*parts, nn.Flatten(), nn.Linear(last, 10))

    return make


def two_layer() -> nn.Module:
    """30-128-2."""
    return nn.Sequential(nn.Linear(30, 128), nn.ReLU(), nn.Linear(128, 2))


# Of seed 100: one threshold for all tasks, since the drift at which features have moved has no units of a task.
RULE = control.Adaptive(drift=0.5, every=10, samples=128, directions=2)
TASKS: Mapping[str, Task] = {
    "3-sparse parity, two layers": Task(
        *(parity, two_layer, functional.cross_entropy),
        *(2000, 100, 0.2, 0.0, RULE),
    ),
    "digits, CNN": Task(
        *(images("digits", 1000), cnn((1, 8, 16), 16 * 4), functional.cross_entropy),
        *(600, 50, 0.05, 0.0, RULE),
    ),
    "fashion-mnist, CNN": Task(
        *(images("fashion-mnist", 2000), cnn((1, 8, 16), 16 * 49), functional.cross_entropy),
        *(1000, 50, 0.02, 0.0, RULE),
    ),
}


def run(task: Task, rule: Any, seed: int, directory: Path | None, steps: int | None = None) -> Ended:
    """Train by a rule: the network and the batches go by the seed, and so are the same for every rule."""
    total = task.steps if steps is None else steps
    x, y, test_x, test_y = task.data(seed, directory)
    torch.manual_seed(seed)
    linear = control.linearize(task.network())
    optimizer = torch.optim.SGD(linear.parameters(), lr=task.rate, momentum=task.momentum)
    policy = control.IterativeLinearisation(
        linear, optimizer, rule, inputs=x, targets=y, loss=task.loss, stable="lower", batch_size=task.batch
    )
    module = linear.nonlinear if rule == control.Every(1) else linear  # the same steps, sooner
    batches = torch.Generator().manual_seed(seed)
    began, order, model = time.process_time(), iter(()), 0.0
    while policy.steps < total:
        part = next(order, None)
        if part is None:
            order = iter(torch.randperm(len(x), generator=batches).split(task.batch))
            continue
        optimizer.zero_grad()
        value = task.loss(module(x[part]), y[part])
        if not math.isfinite(float(value.detach())):
            break
        value.backward()
        optimizer.step()
        if policy.steps == total - 1:
            model = accuracy(linear, test_x, test_y)
        policy.step()
    policy.remove()
    network = accuracy(linear.nonlinear, test_x, test_y)
    lowered = sum(block.lowered for block in policy.blocks)
    spent = time.process_time() - began
    return Ended(policy.updates, network, model, lowered, spent, tuple(block.step for block in policy.blocks))


def accuracy(module: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of samples whose largest output is that of their class."""
    with torch.no_grad():
        return float((module(x).argmax(1) == y).float().mean())
