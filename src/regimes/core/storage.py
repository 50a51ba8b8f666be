"""The memory of tensors: views of one storage are the same bytes."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

__all__ = ["address", "stored"]


def address(tensor: Tensor) -> int:
    """Where the storage of a tensor begins."""
    return tensor.untyped_storage().data_ptr()


def stored(tensors: Iterable[Tensor], besides: Iterable[Tensor] = ()) -> int:
    """The bytes of the storages of tensors, each once.

    Args:
        tensors: what is counted.
        besides: tensors whose storages do not count.

    >>> import torch
    >>> x = torch.zeros(4, 2)
    >>> stored([x, x[0], x.T]), stored([x], besides=[x[1]])
    (32, 0)
    """
    left = {address(each) for each in besides}
    sizes = {address(each): each.untyped_storage().nbytes() for each in tensors}
    return sum(size for place, size in sizes.items() if place not in left)
