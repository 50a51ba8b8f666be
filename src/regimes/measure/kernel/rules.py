"""What each layer adds to the tangent kernel: factors of a tile of samples, and how two tiles contract."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from regimes.core.layer import Linear

__all__ = ["Factor", "LinearFactor", "LinearRule", "Reduce", "RowsFactor", "linear_rule"]

Reduce = Literal["full", "diagonal", "trace"]


def _contract(left: Tensor, right: Tensor, reduce: Reduce) -> Tensor:
    """<left[i, a], right[j, b]> of (n1, c, p) and (n2, c, p): (n1, n2, c, c), (n1, n2, c) or (n1, n2)."""
    n1, c, p = left.shape
    n2 = right.shape[0]
    if reduce == "full":
        products = left.reshape(n1 * c, p) @ right.reshape(n2 * c, p).mT
        return products.view(n1, c, n2, c).transpose(1, 2)
    if reduce == "diagonal":
        return (left.transpose(0, 1) @ right.permute(1, 2, 0)).permute(1, 2, 0)
    products = left.reshape(n1, c * p) @ right.reshape(n2, c * p).mT
    return products if c == 1 else products / c


class Factor(ABC):
    """What a group of parameters of one owner adds to the kernel, for a tile of samples."""

    @abstractmethod
    def times(self, other: Factor, reduce: Reduce) -> Tensor:
        """The part of the kernel between this tile (rows) and that of ``other`` (columns)."""


@dataclass(frozen=True)
class RowsFactor(Factor):
    """Rows of the Jacobian: K = J1 J2^T. Correct for any parameter.

    Attributes:
        rows: (n, c, p).
    """

    rows: Float[Tensor, "n c p"]

    def times(self, other: Factor, reduce: Reduce) -> Tensor:
        """J1 J2^T."""
        assert isinstance(other, RowsFactor)
        return _contract(self.rows, other.rows, reduce)


@dataclass(frozen=True)
class LinearRule:
    """Which terms a linear layer z = multiplier * W x + b adds.

    Attributes:
        weight: the squared multiplier, or 0 if W is frozen.
        bias: whether b trains.
        parameters: the names of W and b, those that train.
        size: inputs d and outputs e.
    """

    weight: float
    bias: bool
    parameters: tuple[str, ...]
    size: tuple[int, int]


@dataclass(frozen=True)
class LinearFactor(Factor):
    """K = (multiplier^2 A1 A2^T + 1) * (B1 B2^T), with 1 only if there is a bias.

    Attributes:
        rule: the terms.
        inputs: A, what the layer was given, (n, d).
        grads: B = df_a/dz, (n, c, e).
    """

    rule: LinearRule
    inputs: Float[Tensor, "n d"]
    grads: Float[Tensor, "n c e"]

    def times(self, other: Factor, reduce: Reduce) -> Tensor:
        """The product of both Gram matrices."""
        assert isinstance(other, LinearFactor)
        products = _contract(self.grads, other.grads, reduce)
        if not self.rule.weight:
            return products
        gram = self.inputs @ other.inputs.mT
        if self.rule.weight != 1.0:
            gram *= self.rule.weight
        if self.rule.bias:
            gram += 1
        return products * gram.view(*gram.shape, *[1] * (products.dim() - 2))


def linear_rule(layer: nn.Module, name: str, trained: Sequence[str]) -> LinearRule | None:
    """The rule of a submodule, or None if it is not exactly a linear layer with a trained parameter.

    Args:
        layer: the submodule.
        name: its name in the network.
        trained: the names of the trained parameters of the network; of tied ones only the first.
    """
    if type(layer) is Linear:
        multiplier = layer.scaling.multiplier
    elif type(layer) is nn.Linear:
        multiplier = 1.0
    else:
        return None
    # A hook or a forward of its own may change what goes in and what comes out.
    if layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer):
        return None
    own = {key for key, value in layer._parameters.items() if value is not None}
    dot = f"{name}." if name else ""
    mine = tuple(f"{dot}{key}" for key in ("weight", "bias") if f"{dot}{key}" in trained)
    if not mine or own - {"weight", "bias"} or "weight" not in own or layer.weight.dim() != 2:
        return None
    # A parameter that requires grad under another name is tied.
    tied = [key for key in own if getattr(layer, key).requires_grad and f"{dot}{key}" not in trained]
    if tied or not multiplier or math.isnan(multiplier):
        return None
    outputs, inputs = layer.weight.shape
    squared = multiplier**2 if f"{dot}weight" in mine else 0.0
    return LinearRule(squared, f"{dot}bias" in mine, mine, (inputs, outputs))
