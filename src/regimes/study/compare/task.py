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
from regimes.core.loss import CrossEntropy, Loss, Squared

__all__ = [
    "Columns",
    "Fit",
    "Part",
    "Scores",
    "Task",
    "answers",
    "attempt",
    "check_targets",
    "losses",
    "pieces",
]

# Samples that are evaluated together where no gradient is asked for.
_TOGETHER = 1024


class Columns(nn.Module):
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
class Part:
    """Samples with targets: (n,) class indices or floats, or (n, c) floats."""

    x: Inputs
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: Tensor) -> Part:
        """Some of them."""
        return Part(take(self.x, index), self.y[index])


@dataclass(frozen=True, eq=False)
class Scores:
    """Loss and error of each sample, (n,)."""

    loss: Tensor
    error: Tensor


@dataclass(frozen=True, eq=False)
class Task:
    """What is learnt.

    Attributes:
        network: f with outputs (n, c), a copy.
        train, test: the data.
        valid: part of the training set that chooses when to stop, or None.
        loss: what is minimised.
        unit: the squared error that counts as 1, where the targets are numbers; None where they are classes.
    """

    network: nn.Module
    train: Part
    test: Part
    valid: Part | None
    loss: Loss
    unit: float | None

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


def attempt(name: str, models: Callable[[], list[Fit]]) -> list[Fit]:
    """The trained models, or a row that says why there are none: those that are trained already are kept."""
    began = time.perf_counter()
    try:
        return models()
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


def check_targets(y: Any, name: str, samples: int, outputs: int, loss: Loss, like: Tensor) -> Tensor:
    """The targets on the device of the network: (n,) class indices, (n,) floats of its dtype, or (n, c) floats.

    Raises:
        UserError: if they are not what outputs and loss need.
    """
    wanted = (
        f"({samples},) floats, or -1 and +1"
        if outputs == 1
        else f"({samples},) class indices (int64) below {outputs}, or ({samples}, {outputs}) floats"
    )
    if not isinstance(y, Tensor):
        raise UserError(f"`{name}`: got {type(y).__name__}, expected a tensor of {wanted}")
    came = f"`{name}`: got {y.dtype} {tuple(y.shape)}"
    if y.is_floating_point():
        if tuple(y.shape) not in ((samples, outputs), (samples,) * (outputs == 1)):
            raise UserError(f"{came} for {samples} samples and {outputs} outputs, expected {wanted}")
        if not bool(y.isfinite().all()):
            raise UserError(f"`{name}`: holds nan or infinity, expected finite numbers; drop those samples")
        return (y.reshape(samples) if outputs == 1 else y).to(like)
    if y.dtype != torch.int64 or tuple(y.shape) != (samples,) or outputs == 1:
        way = "; .long() makes class indices of other integers" if y.dim() == 1 and outputs > 1 else ""
        raise UserError(f"{came} for {samples} samples and {outputs} outputs, expected {wanted}{way}")
    if int(y.min()) < 0 or int(y.max()) >= outputs:
        raise UserError(f"{came} from {int(y.min())} to {int(y.max())}, expected {wanted}")
    if not isinstance(loss, Squared | CrossEntropy):
        raise UserError(
            f"`loss`: got {type(loss).__name__} for class indices, expected Squared or CrossEntropy"
        )
    return y.to(like.device)
