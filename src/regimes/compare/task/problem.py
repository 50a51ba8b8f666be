"""What the models of a comparison have in common: the network as a function, the data, and how answers are scored."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regimes.core.batch import Inputs, count, feed, take
from regimes.core.decision import wrong
from regimes.core.derivative import Output, bind, columns
from regimes.core.error import UserError
from regimes.core.loss import Loss, Squared

__all__ = [
    "Fit",
    "Picked",
    "Problem",
    "Samples",
    "Scores",
    "answers",
    "losses",
    "pieces",
    "tried",
]

# Samples that are evaluated together where no gradient is asked for.
_TOGETHER = 1024


class Picked(nn.Module):
    """A module with what is picked from its outputs, as (n, c)."""

    def __init__(self, module: nn.Module, output: Output | None) -> None:
        super().__init__()
        self.module = module
        self._output = output

    def forward(self, *args: Any, **named: Any) -> Tensor:
        """The outputs."""
        found = self.module(*args, **named)
        found = found if self._output is None else self._output(found)
        return columns(found, count(named or args))


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples with targets: (n,) class indices or floats, or (n, c) floats."""

    x: Inputs
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: Tensor) -> Samples:
        """Some of them."""
        return Samples(take(self.x, index), self.y[index])


@dataclass(frozen=True, eq=False)
class Scores:
    """Loss and error of each sample, (n,)."""

    loss: Tensor
    error: Tensor


@dataclass(frozen=True, eq=False)
class Problem:
    """What is learnt.

    Attributes:
        network: f with outputs (n, c), a copy.
        train, test: the data.
        valid: part of the training set that chooses when to stop, or None.
        loss: what is minimised.
        unit: the squared error that counts as 1, where the targets are numbers; None where they are classes.
        outputs: c.
    """

    network: nn.Module
    train: Samples
    test: Samples
    valid: Samples | None
    loss: Loss
    unit: float | None
    outputs: int

    @property
    def is_squared(self) -> bool:
        """Whether the kernel has a closed form."""
        return isinstance(self.loss, Squared)

    def score(self, outputs: Tensor, y: Tensor) -> Scores:
        """Loss and error of each sample, in float64."""
        outputs = outputs.double()
        y = y.double() if y.is_floating_point() else y
        if self.unit is not None:
            apart = outputs - y.reshape(outputs.shape)
            error = apart.square().sum(1) / self.unit
        else:
            error = wrong(outputs, y).double()
        return Scores(losses(self.loss, outputs, y), error)


@dataclass(frozen=True, eq=False)
class Fit:
    """A trained model.

    Attributes:
        name: of the model.
        status: "finished", or why there are no outputs.
        seconds: that it took.
        time: t of the gradient flow that goes as far.
        train, test: F on the data, (n, c).
        late: by how much the training error fell in the last quarter of the epochs, nan without epochs.
    """

    name: str
    status: str
    seconds: float
    time: float = math.nan
    train: Tensor | None = None
    test: Tensor | None = None
    late: float = math.nan

    def checked(self) -> Fit:
        """The same, or without outputs where one of them is not finite."""
        both = (self.train, self.test)
        if all(each is None or bool(each.isfinite().all()) for each in both):
            return self
        return Fit(self.name, "not finite", self.seconds)


def tried(name: str, models: Callable[[], list[Fit]]) -> list[Fit]:
    """The trained models, or a row that says why there are none: those that are trained already are kept."""
    began = time.perf_counter()
    try:
        return [fit.checked() for fit in models()]
    except (UserError, torch.OutOfMemoryError, torch.linalg.LinAlgError) as error:  # pyright: ignore[reportPrivateImportUsage]
        status = "not converged" if "`max_steps`" in str(error) else f"failed: {error}"
        return [Fit(name, status, time.perf_counter() - began)]


def losses(loss: Loss, outputs: Tensor, y: Tensor) -> Tensor:
    """The loss of each sample, (n,)."""
    if y.dim() == 2:
        return (outputs - y).square().sum(1) / 2
    return loss.per_sample(outputs, y)


def pieces(samples: int) -> Iterator[slice]:
    """Slices of the samples that are evaluated together."""
    for start in range(0, samples, _TOGETHER):
        yield slice(start, min(start + _TOGETHER, samples))


def answers(network: nn.Module, x: Inputs, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
    """F(w, x), (n, c), without a graph."""
    with torch.no_grad(), bind(network, parameters or {}):
        return torch.cat([feed(network, take(x, piece)) for piece in pieces(count(x))])
