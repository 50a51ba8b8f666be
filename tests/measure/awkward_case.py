"""What an entry of the table of awkward modules is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regimes.core.batch import Inputs

__all__ = ["F64", "Case", "D", "Net", "Samples", "matrix", "normal", "number", "tokens"]

D = 4  # inputs of a module, where nothing else is said
F64 = torch.float64

Samples = Callable[[int], Inputs]
"""n -> n samples in float64, the same at every call."""


def normal(*shape: int) -> Callable[[int], Tensor]:
    """Samples of that shape with normal entries."""

    def draw(n: int) -> Tensor:
        return torch.randn(n, *shape, dtype=F64, generator=torch.Generator().manual_seed(n))

    return draw


def tokens(length: int, vocabulary: int) -> Callable[[int], Tensor]:
    """Sequences of whole numbers below ``vocabulary``; with few of them some come twice."""

    def draw(n: int) -> Tensor:
        return torch.randint(vocabulary, (n, length), generator=torch.Generator().manual_seed(n))

    return draw


_VECTORS = normal(D)


@dataclass(frozen=True)
class Case:
    """A module, samples for it, and what picks the outputs from what it returns.

    Attributes:
        module: a fresh module.
        samples: n -> samples.
        output: as in ``measure.ntk``.
    """

    module: Callable[[], nn.Module]
    samples: Samples = _VECTORS
    output: Callable[[Any], Tensor] | None = None


class Net(nn.Module):
    """Layers, parameters, buffers and plain values by name, and a function that says what is done."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *args: Any, **named: Any) -> Any:
        return self.run(self, *args, **named)


def matrix(*shape: int) -> nn.Parameter:
    """A parameter with normal entries."""
    return nn.Parameter(torch.randn(*shape))


def number(value: float) -> nn.Parameter:
    """A parameter of shape ()."""
    return nn.Parameter(torch.tensor(value))
