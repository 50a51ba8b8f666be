"""What a caller asks for, checked: the network, the samples, the form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from regimes.control.scale import unscaled
from regimes.core.batch import (
    Inputs,
    check,
    check_finite,
    count,
    joined,
    same_samples,
    take,
    tensors,
    transform,
)
from regimes.core.derivative import Output, check_names, check_separable, plain
from regimes.core.error import UserError, nearest
from regimes.core.tree import trainable
from regimes.kernel.factor import Reduce
from regimes.kernel.network import Network

__all__ = ["Request", "request"]

# Working memory where the caller names none, bytes.
_MEMORY = 1 << 30
_PRECISIONS = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Request:
    """A kernel to be computed.

    Attributes:
        network: f.
        prefix: of its names in the module of the caller.
        scale: the factor from its kernel to that of the module, alpha^2.
        rows: x1.
        columns: x2, or None where it is x1.
        reduce: the form.
        memory: bytes of working memory.
    """

    network: Network
    prefix: str
    scale: float
    rows: Inputs
    columns: Inputs | None
    reduce: Reduce
    memory: int

    @property
    def shape(self) -> tuple[int, int]:
        """(n1, n2)."""
        return count(self.rows), count(self.rows if self.columns is None else self.columns)

    @property
    def probe(self) -> Inputs:
        """The first sample, and the first that differs from it."""
        first = take(self.rows, slice(0, 1))
        for x in (self.rows, self.rows if self.columns is None else self.columns):
            place = _unlike(first, x)
            if place is not None:
                return joined(first, take(x, slice(place, place + 1)))
        return joined(first, first)


def request(
    module: nn.Module,
    x1: Inputs,
    x2: Inputs | None,
    reduce: Reduce,
    output: Output | None,
    memory: int | None,
    parameters: Mapping[str, Tensor] | None,
    name: str = "x1",
) -> Request:
    """Check what was given; x1, called ``name`` where the caller is, has been: its device was needed.

    Raises:
        UserError: as :func:`regimes.measure.ntk` says.
    """
    if reduce not in (known := get_args(Reduce)):
        raise UserError(
            f"`reduce`: got '{reduce}', expected one of {', '.join(known)}{nearest(str(reduce), known)}"
        )
    if memory is not None and not memory > 0:
        raise UserError(f"`memory`: got {memory}, expected a positive number of bytes, or None")
    if x2 is not None:
        check(x2, "x2")
        same_samples(x1, x2)
    network, prefix, scale = _network(module, parameters, output)
    _check_precision(x1, name, network.dtype)
    if x2 is not None:
        _check_precision(x2, "x2", network.dtype)
    columns = None if x2 is None or x2 is x1 else transform(x2, plain)
    return Request(network, prefix, scale, transform(x1, plain), columns, reduce, memory or _MEMORY)


def _network(
    module: nn.Module, parameters: Mapping[str, Tensor] | None, output: Output | None
) -> tuple[Network, str, float]:
    """f, the prefix of its names in the module, and the factor from its kernel to that of the module."""
    if parameters is not None:
        check_names(module, parameters)
    # The origin of a scaled module does not move: its kernel is that of what it scales, unless more is done to it.
    inner, alpha = (unscaled(module)[:2]) if output is None else (module, 1.0)
    prefix = "" if inner is module else "network."
    check_separable(inner)
    trained = tuple(trainable(inner))
    if not trained:
        raise UserError(
            "`module`: nothing requires grad, so there is no kernel; set requires_grad on a parameter"
        )
    given = trainable(module) if parameters is None else parameters
    values = {
        name.removeprefix(prefix): plain(value) for name, value in given.items() if name.startswith(prefix)
    }
    _check_values(inner, values, trained, "`module`" if parameters is None else "`parameters`")
    return Network(inner, values, trained, output), prefix, alpha**2


def _check_values(
    module: nn.Module, values: Mapping[str, Tensor], trained: tuple[str, ...], what: str
) -> None:
    """Shapes, precision, and finite numbers; frozen parameters and all."""
    own = dict(module.named_parameters())
    first = trained[0]
    for name, parameter in own.items():
        value = values.get(name, parameter)
        if value.shape != parameter.shape:
            raise UserError(
                f"{what}: '{name}' has shape {tuple(value.shape)}, expected {tuple(parameter.shape)}"
            )
        if name in values and value.dtype not in _PRECISIONS:
            raise UserError(
                f"{what}: '{name}' is {value.dtype}, expected float32 or float64; call module.float() or .double()"
            )
        if name in values and value.dtype != values[first].dtype:
            raise UserError(
                f"{what}: '{name}' is {value.dtype}, expected {values[first].dtype}, as '{first}'; "
                "call module.float() or .double()"
            )
        check_finite(value.detach(), f"{what}: parameter '{name}'", "train or load it again")


def _check_precision(x: Inputs, name: str, dtype: torch.dtype) -> None:
    """Raise unless numbers among the inputs have the precision of the parameters."""
    for label, tensor in tensors(x).items():
        if tensor.is_floating_point() and tensor.dtype != dtype:
            raise UserError(
                f"`{name}{label}`: got {tensor.dtype}, expected {dtype}, as the parameters; call .to({dtype})"
            )


def _unlike(first: Inputs, x: Inputs) -> int | None:
    """The place of the first sample of x that differs from the one sample of ``first``."""
    places = [math.inf]
    for one, every in zip(tensors(first).values(), tensors(x).values(), strict=True):
        differs = (every != one).reshape(len(every), -1).any(1)
        if differs.any():
            places.append(float(differs.to(torch.int8).argmax()))
    nearest_place = min(places)
    return None if nearest_place == math.inf else int(nearest_place)
