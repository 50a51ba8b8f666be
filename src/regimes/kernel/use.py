"""One use of a parameter together with data, as the recorder writes it down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

__all__ = ["Draft", "Kind", "Reference", "Use"]

Kind = Literal["linear", "convolution", "transposed convolution", "embedding", "norm", "operation"]


@dataclass(frozen=True, eq=False)
class Reference:
    """A tensor that is a parameter, or is computed from parameters alone.

    Attributes:
        names: the parameters it depends on.
        tensor: with its graph down to their stand-ins.
        factor: where the tensor is a multiple of one parameter W, or of its transpose: the factor; else None.
        transposed: whether of its transpose.
        version: of the tensor when that was found; a change in place makes it void.
    """

    names: tuple[str, ...]
    tensor: Tensor
    factor: float | None = None
    transposed: bool = False
    version: int = 0


@dataclass(frozen=True, eq=False)
class Draft:
    """What a rule reads off the arguments of an operation.

    Attributes:
        kind: the rule.
        references: the parameters, by their part in the operation.
        inputs: the data that the rule needs.
        options: geometry: stride, padding, ...; equal in two passes that do the same.
        again: does the operation once more: without its parameters ("norm": inputs -> normalised inputs), or on
            others ("operation": inputs, parameters -> outcome).
    """

    kind: Kind
    references: Mapping[str, Reference]
    inputs: tuple[Tensor, ...]
    options: tuple[Any, ...] = ()
    again: Callable[..., Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Use:
    """One operation between data and parameters, done.

    Attributes:
        draft: what it was.
        versions: of the inputs when they were used.
        edge: what the gradient of the outcome comes back through: right even if that is changed in place later.
        shape: of the outcome.
    """

    draft: Draft
    versions: tuple[int, ...]
    edge: GradientEdge
    shape: torch.Size

    @property
    def intact(self) -> bool:
        """Whether the inputs still hold what the operation saw."""
        return all(x._version == v for x, v in zip(self.draft.inputs, self.versions, strict=True))
