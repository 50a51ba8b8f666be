"""What rounding may make of the outputs of a network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from regimes.core.derivative import Function, gradients
from regimes.core.tree import Tree

__all__ = ["alike", "noise"]


def noise(outputs: Function, at: Tree) -> float:
    r"""A bound on the rounding error of f(w): :math:`10^3 \epsilon \sum_p |w_p\, \partial_p (s \cdot f)(w)|`.

    It is what changes of the parameters by a thousand rounding errors make of the outputs. Where large terms cancel,
    as in a start whose units come in mirrored pairs, f is much smaller than that, and nothing but rounding.

    Args:
        outputs: f, by named parameters.
        at: w, floating; s are signs that alternate over the outputs.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in at.items()}
    with torch.enable_grad():
        found = outputs(leaves)
    signs = torch.ones_like(found).flatten()
    signs[1::2] = -1
    pulled = gradients(found, leaves, signs.reshape(found.shape))
    total = sum(
        float((leaf.detach() * g).abs().sum()) for leaf, g in zip(leaves.values(), pulled, strict=True)
    )
    return 1e3 * torch.finfo(found.dtype).eps * total


def alike(a: Tensor, b: Tensor, rounding: Callable[[], float]) -> bool:
    """Whether outputs of the same samples are equal up to rounding, where they may be 0 but for that.

    Args:
        a, b: of one shape.
        rounding: their :func:`noise`, which costs a backward pass: asked for where they differ by more than
            sqrt(eps) of their size.
    """
    away, size = float((a - b).norm()), float(torch.maximum(a.norm(), b.norm()))
    return away <= torch.finfo(a.dtype).eps ** 0.5 * size or away <= rounding()
