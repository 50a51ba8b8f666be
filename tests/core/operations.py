"""Every operation that torch tests itself by, as a network: one argument is the parameter."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

__all__ = ["Operation", "names", "networks"]

# Of each operation so many of torch's own examples, spread over all of them.
_EXAMPLES = 20


@cache
def _database() -> dict[str, Any]:
    """torch's table of operations with examples (OpInfo), by name and variant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db

    return {info.formatted_name: info for info in op_db if torch.float64 in info.dtypes}


def names() -> list[str]:
    """All operations on float64."""
    return sorted(_database())


class Operation(nn.Module):
    """Outputs (n, c) of one operation: some entries of its outcome, sample after sample.

    Args:
        function: the operation.
        arguments: what it is called with, args and kwargs.
        place: which of the tensors in them is the parameter.
        outputs: c.
    """

    def __init__(self, function: Callable[..., Any], arguments: Any, place: int, outputs: int) -> None:
        super().__init__()
        self._function, self._place, self._outputs = function, place, outputs
        self._leaves, self._form = tree_flatten(arguments)
        self.weight = nn.Parameter(self._leaves[place].detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(n,) factors of all other arguments, or of the parameter where there are no others, to (n, c)."""
        return torch.stack([self._one(factor) for factor in x])

    def _one(self, factor: Tensor) -> Tensor:
        others = [k for k, one in enumerate(self._leaves) if k != self._place and differentiable(one)]
        moved = list(self._leaves)
        moved[self._place] = self.weight if others else self.weight * factor
        for k in others:
            moved[k] = self._leaves[k].detach() * factor
        args, kwargs = tree_unflatten(moved, self._form)
        flat = outcome(self._function(*args, **kwargs))
        if not len(flat):
            return flat
        return flat[torch.linspace(0, len(flat) - 1, min(self._outputs, len(flat))).long()]


def outcome(found: Any) -> Tensor:
    """All real numbers among what an operation returns, one after the other."""
    tensors = [one for one in tree_leaves(found) if isinstance(one, Tensor) and not one.is_sparse]
    real = [torch.view_as_real(one.resolve_conj()) if one.is_complex() else one for one in tensors]
    flat = [one.reshape(-1) for one in real if one.dtype == torch.float64]
    return torch.cat(flat) if flat else torch.empty(0)


def differentiable(one: Any) -> bool:
    """Whether the example asks for the gradient by this argument."""
    return isinstance(one, Tensor) and one.dtype == torch.float64 and one.requires_grad


@dataclass(frozen=True)
class Network:
    """A network and samples for it."""

    module: Operation
    x: Tensor


def networks(name: str) -> Iterator[Network]:
    """An operation by each of its arguments, on torch's examples; as many samples as outputs."""
    info = _database()[name]
    examples = list(info.sample_inputs("cpu", torch.float64, requires_grad=True))
    step = max(1, len(examples) // _EXAMPLES)
    for number, example in enumerate(examples[::step]):
        size = 2 + number % 4
        arguments = ((example.input, *example.args), example.kwargs)
        for place, one in enumerate(tree_leaves(arguments)):
            if differentiable(one) and one.layout == torch.strided:
                module = Operation(info.op, arguments, place, size)
                yield Network(module, torch.linspace(0.9, 1.0, size, dtype=torch.float64))
