"""What makes a kernel this one: the parameters, the samples, the form, and what the network does with them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regimes.core.batch import Inputs, count, take, transform
from regimes.core.derivative import vjp
from regimes.kernel.request import Request

__all__ = ["Fingerprint", "fingerprint"]

# Samples of each side on which the network is looked at.
_SAMPLES = 8


@dataclass(frozen=True)
class Fingerprint:
    """Equal for equal kernels; a part of it up to rounding, which another machine may do otherwise.

    Attributes:
        digest: of names, numbers and form.
        outputs: of some samples a mix of the outputs, and their norm, in turns.
        gradients: the norm of the gradient of that mix, by each parameter.
        precision: the relative difference that counts as rounding.
    """

    digest: str
    outputs: tuple[float, ...]
    gradients: tuple[float, ...]
    precision: float

    def matches(self, other: Fingerprint) -> bool:
        """Whether both are of one kernel."""
        norms = [norm for norm in self.outputs[1::2] for _ in range(2)]
        largest = [max(self.gradients, default=0.0)] * len(self.gradients)
        return self.digest == other.digest and all(
            len(mine) == len(theirs)
            and all(abs(a - b) <= self.precision * s for a, b, s in zip(mine, theirs, size, strict=True))
            for mine, theirs, size in (
                (self.outputs, other.outputs, norms),
                (self.gradients, other.gradients, largest),
            )
        )


def fingerprint(request: Request, c: int) -> Fingerprint:
    """The fingerprint of a kernel that is asked for, of a network with c outputs.

    What the network does (an attribute, a closure, a hook) is seen in its outputs and in their gradient.
    """
    network = request.network
    mix = torch.linspace(1.0, 2.0, c, dtype=network.dtype, device=network.device)[None]
    total = {name: torch.zeros_like(value) for name, value in network.values.items()}
    sizes: list[Tensor] = []
    for weight, x in enumerate(_some(request), 1):
        found, grads = vjp(network.module, network.values, x, weight * mix, output=network.output)
        sizes += [(mix * found).sum() / mix.norm(), found.norm()]
        for name, grad in grads.items():
            total[name] += grad
    norms = [torch.linalg.vector_norm(each) for each in total.values()]
    return Fingerprint(
        _digest(request), _numbers(sizes), _numbers(norms), torch.finfo(network.dtype).eps ** 0.5
    )


def _numbers(found: list[Tensor]) -> tuple[float, ...]:
    return tuple(float(each.nan_to_num()) for each in found)


def _some(request: Request) -> Iterator[Inputs]:
    """A few samples of both sides, one at a time."""
    for x in (request.rows, *([] if request.columns is None else [request.columns])):
        for place in torch.linspace(0, count(x) - 1, min(_SAMPLES, count(x))).long().tolist():
            # A module may change its inputs in place.
            yield transform(take(x, slice(place, place + 1)), Tensor.clone)


def _digest(request: Request) -> str:
    network = request.network
    classes = [
        (name, type(sub).__module__, type(sub).__qualname__) for name, sub in network.module.named_modules()
    ]
    form = (request.reduce, request.scale, network.trained, request.columns is None)
    digest = hashlib.sha256(repr((classes, form)).encode())
    named = {
        **dict(network.module.named_parameters()),
        **dict(network.module.named_buffers()),
        **network.values,
    }
    for part in (named, request.rows, {} if request.columns is None else request.columns):
        pairs = (
            part.items() if isinstance(part, Mapping) else [("", part)] if isinstance(part, Tensor) else part
        )
        for entry in pairs:
            for value in entry if isinstance(entry, tuple) else (entry,):
                _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    """A tensor by its numbers, a plain value by its name, anything else by its type."""
    if not isinstance(value, Tensor):
        plain = value is None or isinstance(value, str | int | float | bool)
        digest.update(repr(value if plain else type(value)).encode())
        return
    array = value.detach().cpu().contiguous()
    digest.update(f"{tuple(array.shape)} {array.dtype}".encode())
    digest.update(array.view(-1).view(torch.uint8).numpy().data)
