"""What the graph of autograd leads to."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["reached"]


def reached(tensor: Tensor) -> dict[int, Tensor]:
    """The leaves that the graph of a tensor leads to, by id; held, lest another tensor is given the id of one."""
    seen: set[Any] = set()
    leaves: dict[int, Tensor] = {}
    waiting: list[Any] = [tensor.grad_fn] if tensor.grad_fn is not None else []
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        for following, _ in node.next_functions:
            if following is None:
                continue
            leaf = getattr(following, "variable", None)
            if leaf is not None:
                leaves[id(leaf)] = leaf
            waiting.append(following)
    return leaves
