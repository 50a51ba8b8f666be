"""What is held of some samples, filled a few samples and one direction at a time, and the factors it makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from regimes.kernel.factor import Explicit, Factor, Gram, Head, Sequences
from regimes.kernel.plan import Term
from regimes.kernel.rule import TokenRule

__all__ = ["Heads", "JacobianRows", "Products"]


class JacobianRows:
    """Rows of the Jacobian, (n, r, p), with columns for each of some parameters.

    Args:
        sizes: of the parameters, by name.
        samples: n.
        directions: r.
        like: a tensor of the same dtype on the same device.
    """

    def __init__(self, sizes: Mapping[str, int], samples: int, directions: int, like: Tensor) -> None:
        self._spans: dict[str, slice] = {}
        total = 0
        for name, size in sizes.items():
            self._spans[name] = slice(total, total + size)
            total += size
        self._matrix = like.new_empty(samples, directions, total)
        self._begun: set[tuple[str, int, int]] = set()

    def place(self, name: str, at: slice, direction: int) -> Tensor:
        """Where the gradients of some samples belong, (n, p)."""
        return self._matrix[at, direction, self._spans[name]]

    def put(self, name: str, at: slice, direction: int, each: Tensor) -> None:
        """Add what one use of a parameter gives it."""
        place = self.place(name, at, direction)
        key = (name, at.start, direction)
        if key in self._begun:
            place += each.flatten(1)
        else:
            place.copy_(each.reshape(place.shape))
            self._begun.add(key)

    def put_all(self, name: str, at: slice, each: Tensor) -> None:
        """All directions at once, (n, r, p)."""
        self._matrix[at, :, self._spans[name]] = each

    def finish(self, at: slice, direction: int) -> None:
        """What no use has given anything gets zeros."""
        for name in self._spans:
            if (name, at.start, direction) not in self._begun:
                self.place(name, at, direction).zero_()

    def factor(self) -> Factor:
        """J."""
        return Explicit(self._matrix)


class Products:
    """Inputs and gradients of a layer, (n, T, D) and (n, r, T, E), over all its uses.

    Args:
        term: the layer.
        samples: n.
        directions: r.
        room: numbers of working memory for the products of sequences.
        like: a tensor of the dtype of the gradients on their device.
    """

    def __init__(self, term: Term, samples: int, directions: int, room: int, like: Tensor) -> None:
        self._term = term
        self._samples = samples
        self._room = room
        self._inputs: Tensor | None = None
        # Where nothing comes back to a use, its gradients are 0.
        self._grads = like.new_zeros(samples, directions, term.shape.tokens, term.shape.given)

    def put_inputs(self, rules: Sequence[TokenRule], at: slice) -> None:
        """What the layer was given by some samples."""
        given = [rule.tokens() for rule in rules]
        whole = given[0] if len(given) == 1 else torch.cat(given, 1)
        if self._inputs is None:
            self._inputs = whole.new_empty(self._samples, *whole.shape[1:])
        self._inputs[at] = whole

    def put_grads(
        self, rules: Sequence[TokenRule], backs: Sequence[Tensor | None], at: slice, k: int
    ) -> None:
        """What comes back to it in one direction."""
        start = 0
        for rule, back in zip(rules, backs, strict=True):
            length = rule.site.positions
            if back is not None:
                self._grads[at, k, start : start + length] = rule.grads(back)
            start += length

    def factor(self) -> Factor:
        """The factor of the order that was planned."""
        assert self._inputs is not None
        term = self._term
        if term.order == "gram" and term.shape.tokens == 1 and term.shape.taken:
            return Gram(self._inputs[:, 0], self._grads[:, :, 0], term.factor, term.bias)
        return Sequences(self._inputs, self._grads, term.factor, term.order == "one-sided", self._room)


class Heads:
    """Inputs of the layer whose outcome is the output, (n, D)."""

    def __init__(self, term: Term, samples: int, directions: Tensor) -> None:
        self._term = term
        self._samples = samples
        self._directions = directions
        self._inputs: Tensor | None = None

    def put_inputs(self, rule: TokenRule, at: slice) -> None:
        """What the layer was given by some samples."""
        given = rule.tokens()[:, 0]
        if self._inputs is None:
            self._inputs = given.new_empty(self._samples, given.shape[1])
        self._inputs[at] = given

    def factor(self) -> Factor:
        """The factor."""
        assert self._inputs is not None
        return Head(self._inputs, self._directions, self._term.factor, self._term.bias)
