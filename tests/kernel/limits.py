"""Working memory: the limits that the tangent kernel accepts, and what it takes."""

from __future__ import annotations

import re
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import pytest
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from regimes import measure
from regimes.core.batch import Inputs
from regimes.core.error import UserError
from regimes.measure import Reduce

__all__ = ["Peak", "least_memory"]


class Peak(TorchDispatchMode):
    """Weighs the tensors that operations make inside the block.

    Attributes:
        now: bytes of those that are still there.
        most: the largest that this has been.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: dict[int, int] = {}

    def _gone(self, key: int) -> None:
        self.now -= self._known.pop(key)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            if id(storage) not in self._known and id(storage) not in given:
                self._known[id(storage)] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, id(storage))
        self.most = max(self.most, self.now)
        return out


def least_memory(module: nn.Module, *x: Inputs, reduce: Reduce = "full") -> int:
    """The smallest limit that is accepted, in bytes, as the message says.

    A network that leaves its plan is computed in another way, and a second message says what that needs.
    """
    memory = 1
    for _ in range(2):
        with pytest.raises(UserError, match=rf"^`memory`: got {memory}\b") as caught:
            measure.ntk(module, *x, reduce=reduce, memory=memory)
        found = re.search(r"at least ([\d_,]+)", str(caught.value))
        assert found is not None, f"no number of bytes in: {caught.value}"
        memory = int(re.sub("[_,]", "", found[1]))
        with suppress(UserError):
            measure.ntk_forecast(module, *x, reduce=reduce, memory=memory)
            break
    return memory
