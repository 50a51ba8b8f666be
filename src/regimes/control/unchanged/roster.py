"""Whether a module still has the modules and the parameters that it had."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

from torch import nn

__all__ = ["Roster"]


@final
class Roster:
    """Which submodules, parameters and buffers some modules have, by identity.

    Args:
        modules: those whose own entries count.
        buffers: whether theirs count too.
    """

    def __init__(self, modules: Iterable[nn.Module], buffers: bool = False) -> None:
        parts: list[dict[str, Any]] = []
        for each in modules:
            parts += [each._modules, each._parameters, *([each._buffers] if buffers else [])]
        # What is held has no successor at its address.
        self._held = [(part, list(part.values())) for part in parts]
        self._known = [(part, list(map(id, held))) for part, held in self._held]

    def same(self) -> bool:
        """Whether nothing was added, taken away or replaced."""
        return all([*map(id, part.values())] == known for part, known in self._known)
