"""Module, data and loss of a comparison, checked and on one device."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regimes.compare.task.problem import Picked, Problem, Samples, answers
from regimes.core.batch import Inputs, check, count, take, tensors, transform
from regimes.core.check import shown
from regimes.core.derivative import Output, check_separable, plain
from regimes.core.error import UserError
from regimes.core.loss import CrossEntropy, Loss, Squared, cross_entropy, squared
from regimes.core.tree import trainable
from regimes.train.program import choose_dtype

__all__ = ["Data", "Seeded", "generators_kept", "made", "prepared"]

Seeded = nn.Module | Callable[[int], nn.Module]
"""A module, or what makes one of a seed."""


@dataclass(frozen=True, eq=False)
class Data:
    """What a caller gave, as it came.

    Attributes:
        x, y, x_test, y_test: the samples.
        loss: what is minimised, or None for that of the targets.
        output: what picks the outputs.
        validation: share of the training samples that choose when to stop.
    """

    x: Inputs
    y: Tensor
    x_test: Inputs
    y_test: Tensor
    loss: Loss | None
    output: Output | None
    validation: float


def prepared(module: nn.Module, data: Data, seed: int) -> Problem:
    """Network and data, checked and on one device.

    Raises:
        UserError: if data, module and loss do not fit, or the module couples samples or is random.
    """
    if not isinstance(data.loss, Loss | None):
        raise UserError(
            f"`loss`: got {type(data.loss).__name__}, expected a value of regimes.core.loss: squared, cross_entropy"
        )
    dtype = choose_dtype([module], None, None)
    network = Picked(copy.deepcopy(module).to(dtype), data.output)
    check_separable(network)
    like = next(iter([*trainable(network).values(), *network.parameters()]), torch.zeros(())).detach()
    given = []
    for name, inputs in (("x", data.x), ("x_test", data.x_test)):
        check(inputs, name)
        given.append(transform(inputs, lambda value: _moved(value, like)))
        if count(inputs) < 2:
            raise UserError(f"`{name}`: got 1 sample, expected at least 2; one sample has no spread")
    _same_samples(data.x, data.x_test)
    c = _outputs(network, given[0])
    y, y_test = (
        _check_targets(each, name, count(inputs), c, data.loss, like)
        for each, name, inputs in ((data.y, "y", given[0]), (data.y_test, "y_test", given[1]))
    )
    classes = _are_classes(y, y_test)
    loss = data.loss or (cross_entropy if classes else squared)
    unit = _unit(y, y_test, classes, loss)
    train, valid = _split(Samples(given[0], y), data.validation, seed)
    return Problem(network, train, Samples(given[1], y_test), valid, loss, unit, c)


def made(source: Any, seed: int) -> nn.Module:
    """The module, or what the function from seed to module makes of this seed."""
    expected = "expected a torch.nn.Module, or a function from seed to one"
    module = source
    if not isinstance(source, nn.Module) and callable(source):
        try:
            inspect.signature(source).bind(seed)
        except TypeError as error:
            raise UserError(f"`module`: got {shown(source)}, {expected}; with a seed: {error}") from error
        except ValueError:  # written in C: nobody knows what it takes
            pass
        module = source(seed)
    if not isinstance(module, nn.Module):
        raise UserError(f"`module`: got {type(module).__name__}, {expected}")
    return module


def _moved(value: Tensor, like: Tensor) -> Tensor:
    """On the device of the parameters; floats in their precision."""
    return plain(value).to(like) if value.is_floating_point() else plain(value).to(like.device)


def _outputs(network: nn.Module, x: Inputs) -> int:
    """c; said in words where the module does not take the inputs."""
    try:
        return answers(network, take(x, slice(0, 2))).shape[1]
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError) as error:
        shapes = ", ".join(f"x{label} {tuple(value.shape)}" for label, value in tensors(x).items())
        reason = str(error).splitlines()[0]
        raise UserError(f"`x`: the module does not take two samples of {shapes}: {reason}") from error


def _same_samples(x: Inputs, x_test: Inputs) -> None:
    """Raise unless the held-out samples have the shapes of the others."""
    one, other = (
        {label: tuple(value.shape[1:]) for label, value in tensors(each).items()} for each in (x, x_test)
    )
    if one != other:
        raise UserError(f"`x_test`: got samples of shapes {other}, expected {one}, as in `x`")


def _are_classes(y: Tensor, y_test: Tensor) -> bool:
    """Whether the targets are classes: indices, or floats that are all -1 or +1."""
    return not y.is_floating_point() or bool(
        (y.abs() == 1).all() and (y_test.abs() == 1).all() and y.dim() == 1
    )


def _unit(y: Tensor, y_test: Tensor, classes: bool, loss: Loss) -> float | None:
    """The variance of the training targets, where they are numbers; None where they are classes."""
    if bool((y == y[0]).all()):
        raise UserError(
            "`y`: all targets are the same, expected at least two values; there is nothing to learn"
        )
    if classes:
        if not bool(torch.isin(y_test, y).any()):
            raise UserError(
                f"`y_test`: has classes {_named(y_test)}, none of those in `y`, {_named(y)}; split the data at random"
            )
        return None
    if not isinstance(loss, Squared):
        raise UserError(
            f"`loss`: got {type(loss).__name__} for targets from {float(y.min()):g} to {float(y.max()):g}, expected "
            "Squared, or targets -1 and +1; 2 * y - 1 makes them of 0 and 1"
        )
    y = y.double().reshape(len(y), -1)
    return float((y - y.mean(0)).square().sum(1).mean())


def _named(y: Tensor) -> str:
    """The first of the classes."""
    found = [f"{value:g}" for value in y.unique().tolist()]
    return ", ".join(found[:10]) + (", ..." if len(found) > 10 else "")


def _split(part: Samples, share: float, seed: int) -> tuple[Samples, Samples | None]:
    """The samples to train on, and those that say when to stop."""
    number = isinstance(share, int | float) and not isinstance(share, bool)
    if not number or not 0 <= share < 1:
        raise UserError(
            f"`validation`: got {share!r}, expected a share of the training samples, from 0 to below 1"
        )
    if share == 0:
        return part, None
    held = round(share * len(part))
    if held < 2 or len(part) - held < 2:
        raise UserError(
            f"`validation`: got {share:g}, which is {held} of {len(part)} training samples, expected at least 2 there "
            "and 2 left"
        )
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed)).to(part.y.device)
    return part.take(order[held:]), part.take(order[:held])


def _check_targets(y: Any, name: str, samples: int, outputs: int, loss: Loss | None, like: Tensor) -> Tensor:
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
    if not isinstance(loss, Squared | CrossEntropy | None):
        raise UserError(
            f"`loss`: got {type(loss).__name__} for class indices, expected Squared or CrossEntropy"
        )
    return y.to(like.device)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Afterwards torch's generators of random numbers are where they were."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        yield
