"""Bytes: those that a forward pass keeps, and the most that tensors hold at once, whatever made them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["kept_bytes", "peak_bytes"]


class _Live(TorchDispatchMode):
    """Counts the storages that operations return, from when they are first seen until they are gone."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: set[int] = set()

    def see(self, tensors: Iterable[Any]) -> None:
        """Count what is new."""
        for each in tensors:
            if not isinstance(each, Tensor):
                continue
            storage = each.untyped_storage()
            key = storage._cdata
            if key not in self._seen:
                self._seen.add(key)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, key, storage.nbytes())
        self.most = max(self.most, self.now)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.see(tree_leaves(found))
        return found


def peak_bytes(run: Callable[[], object], held: Iterable[Tensor]) -> int:
    """The most bytes at once during ``run()``, with those of the tensors ``held`` before it, each storage once."""
    live = _Live()
    live.see(held)
    with live:
        run()
    return live.most


def kept_bytes(module: nn.Module, loss: Callable[[], Tensor]) -> int:
    """The bytes that computing ``loss()`` saves for the backward pass: each storage once, none of the module's."""
    own = {each.untyped_storage().data_ptr() for each in (*module.parameters(), *module.buffers())}
    held: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        found = loss()
    assert found.requires_grad
    return sum(each.untyped_storage().nbytes() for each in held.values())
