"""A processor whose products round by where their operands lie, whatever the one the tests run on does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# The products that layers are made of; each takes its operands in these places of its arguments.
_PRODUCTS = {
    "aten::mm": (0, 1),
    "aten::bmm": (0, 1),
    "aten::addmm": (1, 2),
    "aten::baddbmm": (1, 2),
    "aten::convolution": (0, 1),
    "aten::convolution_backward": (0, 1, 2),
}
_LINE = 64  # bytes of a cache line


class RoundsByAlignment(TorchDispatchMode):
    """Each product is changed in its last digits by how far its operands and its result lie from a cache line.

    As MKL does on some processors unless conditional numerical reproducibility is on: code that hands it numbers at
    varying places gives varying bits under this mode, on every machine.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        places = _PRODUCTS.get(func._schema.name)
        if places is None:
            return found
        operands = [args[place] for place in places]
        results = found if isinstance(found, tuple) else (found,)
        for result in results:
            if isinstance(result, Tensor):
                batched = func._schema.name in ("aten::bmm", "aten::baddbmm")
                parts = result.unbind(0) if batched else [result]
                for i, part in enumerate(parts):
                    mine = [one[i] if batched else one for one in operands]
                    part.mul_(1 + _distance([*mine, part]) * 2.0**-46)
        return found


def _distance(tensors: Sequence[Tensor]) -> int:
    """How far the tensors lie from where a cache line begins, each told apart: 0 if all begin one."""
    return sum((i + 1) * (one.data_ptr() % _LINE // 4) for i, one in enumerate(tensors))


def misaligned(x: Tensor, places: int) -> Tensor:
    """The same numbers, so many entries behind the beginning of a cache line."""
    room = torch.empty(x.numel() + places + _LINE, dtype=x.dtype)
    first = -room.data_ptr() % _LINE // x.element_size() + places
    return room[first : first + x.numel()].view(x.shape).copy_(x)
