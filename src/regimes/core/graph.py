"""What the graph of autograd leads to."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["passed", "reached"]


def passed(tensor: Tensor) -> set[Any]:
    """The nodes of the graph of a tensor: what a backward pass from it comes by."""
    seen: set[Any] = set()
    waiting: list[Any] = [tensor.grad_fn] if tensor.grad_fn is not None else []
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions if following is not None]
    return seen


def reached(tensor: Tensor) -> dict[int, Tensor]:
    """The leaves that the graph of a tensor leads to, by id; held, lest another tensor is given the id of one."""
    leaves = (getattr(node, "variable", None) for node in passed(tensor))
    return {id(leaf): leaf for leaf in leaves if leaf is not None}
