"""What some parameters add to the tangent kernel: held per sample, contracted between two sets of samples.

Rows of the Jacobian run over samples, then over r directions in output space (the outputs themselves, if nothing
cheaper does). A block of the kernel is (n1 r, n2 r) in the full form, (r, n1, n2) in the diagonal, (n1, n2) in the
trace, which here is the sum over the directions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

__all__ = ["Explicit", "Factor", "Gram", "Head", "Reduce", "Sequences", "block_shape"]

Reduce = Literal["full", "diagonal", "trace"]


def block_shape(reduce: Reduce, rows: int, columns: int, left: int, right: int) -> tuple[int, ...]:
    """The shape of a block between so many samples in so many directions; in the reduced forms both are the same."""
    if reduce == "full":
        return rows * left, columns * right
    return (left, rows, columns) if reduce == "diagonal" else (rows, columns)


def _products(left: Tensor, right: Tensor, reduce: Reduce) -> Tensor:
    """<left[i, a], right[j, b]> of (n1, r, p) and (n2, r, p), as a block."""
    if reduce == "full":
        return left.flatten(0, 1) @ right.flatten(0, 1).mT
    if reduce == "trace":
        return left.flatten(1) @ right.flatten(1).mT
    return left.transpose(0, 1) @ right.permute(1, 2, 0)


def _weigh(block: Tensor, products: Tensor, gram: Tensor, reduce: Reduce) -> None:
    """block += products, each entry times that of its pair of samples."""
    if reduce != "full" or block.shape == gram.shape:
        block.addcmul_(products, gram)
        return
    n1, n2 = gram.shape
    # Spread over the columns first: the innermost loop then runs over more than a few directions.
    wide = gram.repeat_interleave(block.shape[1] // n2, 1)[:, None]
    block.view(n1, -1, block.shape[1]).addcmul_(products.view(n1, -1, block.shape[1]), wide)


class Factor(ABC):
    """What some parameters add to the kernel, for some samples."""

    @property
    @abstractmethod
    def directions(self) -> int:
        """r, the directions in output space."""

    @abstractmethod
    def add(self, block: Tensor, other: Factor, rows: slice, columns: slice, reduce: Reduce) -> None:
        """block += K[rows, columns]."""


@dataclass(frozen=True)
class Explicit(Factor):
    """Rows of the Jacobian: K = J1 J2^T. Correct for any parameter."""

    rows: Float[Tensor, "n r p"]

    @property
    def directions(self) -> int:
        """r."""
        return self.rows.shape[1]

    def add(self, block: Tensor, other: Factor, rows: slice, columns: slice, reduce: Reduce) -> None:
        """block += J1 J2^T."""
        assert isinstance(other, Explicit)
        left, right = self.rows[rows], other.rows[columns]
        if reduce == "diagonal":
            block.baddbmm_(left.transpose(0, 1), right.permute(1, 2, 0))
        elif reduce == "full":
            block.addmm_(left.flatten(0, 1), right.flatten(0, 1).mT)
        else:
            block.addmm_(left.flatten(1), right.flatten(1).mT)


@dataclass(frozen=True)
class Gram(Factor):
    """A layer used once per sample: K = (factor^2 A1 A2^T + 1) * (B1 B2^T), the 1 only if there is a bias."""

    inputs: Float[Tensor, "n d"]
    grads: Float[Tensor, "n r e"]
    factor: float
    bias: bool

    @property
    def directions(self) -> int:
        """r."""
        return self.grads.shape[1]

    def add(self, block: Tensor, other: Factor, rows: slice, columns: slice, reduce: Reduce) -> None:
        """block += the product of both Gram matrices."""
        assert isinstance(other, Gram)
        gram = self.inputs[rows] @ other.inputs[columns].mT
        if self.factor != 1.0:
            gram *= self.factor**2
        if self.bias:
            gram += 1
        _weigh(block, _products(self.grads[rows], other.grads[columns], reduce), gram, reduce)


@dataclass(frozen=True)
class Head(Factor):
    """A layer whose outcome is the output: B is the same for every sample, one direction each.

    Attributes:
        rays: the directions, (r, c).
    """

    inputs: Float[Tensor, "n d"]
    rays: Float[Tensor, "r c"]
    factor: float
    bias: bool

    @property
    def directions(self) -> int:
        """r."""
        return self.rays.shape[0]

    def add(self, block: Tensor, other: Factor, rows: slice, columns: slice, reduce: Reduce) -> None:
        """block += (factor^2 A1 A2^T + 1) between directions that share an output."""
        assert isinstance(other, Head)
        gram = self.inputs[rows] @ other.inputs[columns].mT
        if self.factor != 1.0:
            gram *= self.factor**2
        if self.bias:
            gram += 1
        pairs = self.rays @ other.rays.mT
        if reduce == "trace":
            block.add_(gram, alpha=float(pairs.trace()))
        elif reduce == "diagonal":
            block.addcmul_(gram, pairs.diagonal()[:, None, None])
        else:
            whole = block.view(gram.shape[0], self.directions, gram.shape[1], other.directions)
            for a, b in pairs.nonzero().tolist():
                whole[:, a, :, b].add_(gram, alpha=float(pairs[a, b]))


@dataclass(frozen=True)
class Sequences(Factor):
    """A layer used T times per sample: K = sum over s, t of <A1[s], A2[t]> <B1[s], B2[t]>.

    Attributes:
        inputs: A, (n, T, D), or the rows (n, T) of a table that were asked for: then <A1[s], A2[t]> is 1 where
            they are the same.
        grads: B.
        factor: of the weight.
        one_sided: whether A1 meets the gradients of the weight for the columns, rather than A2.
        room: numbers of working memory.
    """

    inputs: Shaped[Tensor, "n t *d"]
    grads: Float[Tensor, "n r t e"]
    factor: float
    one_sided: bool
    room: int

    @property
    def directions(self) -> int:
        """r."""
        return self.grads.shape[1]

    def add(self, block: Tensor, other: Factor, rows: slice, columns: slice, reduce: Reduce) -> None:
        """block += K, piece by piece."""
        assert isinstance(other, Sequences)
        left, right = self._cut(rows), other._cut(columns)
        n1, n2 = len(left.inputs), len(right.inputs)
        whole = block.view(n1, self.directions, n2, other.directions) if reduce == "full" else block
        high, wide = self._piece(n1, reduce)
        for i in range(0, n1, high):
            for j in range(0, n2, wide):
                one, two = left._cut(slice(i, i + high)), right._cut(slice(j, j + wide))
                if reduce == "full":
                    whole[i : i + high, :, j : j + wide] += one._full(two)
                else:
                    whole[..., i : i + high, j : j + wide] += one._reduced(two, reduce)

    def _cut(self, samples: slice) -> Sequences:
        return replace(self, inputs=self.inputs[samples], grads=self.grads[samples])

    def _piece(self, samples: int, reduce: Reduce) -> tuple[int, int]:
        """How many samples of each side to take at a time."""
        _, r, t, e = self.grads.shape
        pair = 2 * t * t if reduce != "full" else 2 * t * r * e + (0 if self.one_sided else t * t)
        pairs = max(1, self.room // pair)
        high = min(samples, pairs)
        return high, max(1, pairs // high)

    def _gram(self, other: Sequences) -> Tensor:
        """<A1[i, s], A2[j, t]>, (n1 t, n2 t)."""
        if self.inputs.dim() == 2:
            same = self.inputs.reshape(-1, 1) == other.inputs.reshape(1, -1)
            gram = same.to(self.grads.dtype)
        else:
            gram = self.inputs.flatten(0, 1) @ other.inputs.flatten(0, 1).mT
        return gram if self.factor == 1.0 else gram.mul_(self.factor**2)

    def _full(self, other: Sequences) -> Tensor:
        """(n1, r, n2, r): one side of the products first, for all directions of the other."""
        n1, left, t, e = self.grads.shape
        n2, r = other.grads.shape[:2]
        if self.one_sided:
            weights = other.grads.mT @ other.inputs[:, None]
            met = self.inputs.flatten(0, 1) @ weights.reshape(n2 * r * e, -1).mT
            met = met.mul_(self.factor**2).view(n1, t, n2, r, e).permute(0, 1, 4, 2, 3)
        else:
            gram = self._gram(other).view(n1, t, n2, t).permute(2, 0, 1, 3).reshape(n2, n1 * t, t)
            met = gram @ other.grads.transpose(1, 2).reshape(n2, t, r * e)
            met = met.view(n2, n1, t, r, e).permute(1, 2, 4, 0, 3)
        return (self.grads.reshape(n1, left, t * e) @ met.reshape(n1, t * e, n2 * r)).view(n1, left, n2, r)

    def _reduced(self, other: Sequences, reduce: Reduce) -> Tensor:
        """(n1, n2), or (r, n1, n2): the products of gradients take the sum over directions with them."""
        n1, r, t, e = self.grads.shape
        n2 = other.grads.shape[0]
        gram = self._gram(other)
        if reduce == "trace":
            products = self._rows().flatten(1) @ other._rows().flatten(1).mT
            return products.mul_(gram).view(n1, t, n2, t).sum((1, 3))
        each = (
            self.grads[:, a].reshape(n1 * t, e) @ other.grads[:, a].reshape(n2 * t, e).mT for a in range(r)
        )
        return torch.stack([p.mul_(gram).view(n1, t, n2, t).sum((1, 3)) for p in each])

    def _rows(self) -> Tensor:
        """B as (n t, r, e)."""
        return self.grads.transpose(1, 2).flatten(0, 1)
