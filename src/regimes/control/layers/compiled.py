"""Layers that are compiled: torch makes a function of each set that moves, and beyond a limit none, without a word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from regimes.control.layers.order import inside
from regimes.core.error import UserError

__all__ = ["Compiled"]

# Older ones run a compiled function again when other parameters of its block move, with the gradients of before: looked
# up on 2.6 and on 2.9 with the back end aot_eager.
_GUARDED = "2.13"


@final
class Compiled:
    """How many functions ``torch.compile`` has to make for the sets of layers so far, for each class of block.

    Args:
        module: as it is called.
        layers: the parameters of each layer, from the bottom to the top.
    """

    def __init__(self, module: nn.Module, layers: Sequence[Sequence[Tensor]]) -> None:
        self._module = module
        self._places = {id(p): place for place, layer in enumerate(layers) for p in layer}
        self._sets: set[frozenset[int]] = set()

    def check(self, moving: frozenset[int]) -> None:
        """Raise if a class of compiled blocks meets more sets of layers that move than torch compiles rightly.

        Raises:
            UserError: names the block, and says how to compile instead.
        """
        if moving in self._sets:
            return
        self._sets.add(moving)
        kinds: dict[type[nn.Module], set[tuple[bool, ...]]] = {}
        for name, block in self._module.named_modules():
            if "_orig_mod" not in block._modules and block._compiled_call_impl is None:
                continue
            if len(self._sets) > 1 and torch.__version__ < _GUARDED:
                raise UserError(
                    f"`module`: '{name}' is compiled and meets a second set of layers that move, for which torch "
                    f"{torch.__version__} gives the gradients of the first without a word; take torch 2.13 or newer, "
                    "leave it uncompiled, or let the same layers move at every step (Fixed)"
                )
            kind = kinds.setdefault(type(inside(block)), set())
            kind |= {self._seen_from(block, each) for each in self._sets}
            # The limit has this name in all versions; the newer one is an alias of it.
            if len(kind) > torch._dynamo.config.cache_size_limit:  # pyright: ignore[reportAttributeAccessIssue]
                raise UserError(
                    f"`module`: '{name}' is compiled as one function and meets set number {len(kind)} of layers that "
                    "move, from which on torch runs it uncompiled without a word; compile smaller blocks "
                    "(`for block in blocks: block.compile()`), or raise torch._dynamo.config.cache_size_limit"
                )

    def _seen_from(self, block: nn.Module, moving: frozenset[int]) -> tuple[bool, ...]:
        """Which parameters of a block move, and whether anything below it does: what its function depends on."""
        places = [self._places[id(p)] for p in block.parameters() if id(p) in self._places]
        below = any(place < min(places, default=0) for place in moving)
        return (below, *(place in moving for place in places))
