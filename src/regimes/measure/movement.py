"""How far the parameters have moved from where they started."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, overload

import torch
from torch import Tensor

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.state import State
from regimes.core.tree import by_layer as group
from regimes.measure.probe import Snapshot

__all__ = ["Movement", "movement"]


@overload
@checked
def movement(
    parameters: Mapping[str, Tensor], origin: Mapping[str, Tensor], *, by_layer: Literal[False] = False
) -> float: ...
@overload
def movement(
    parameters: Mapping[str, Tensor], origin: Mapping[str, Tensor], *, by_layer: Literal[True]
) -> dict[str, float]: ...
def movement(
    parameters: Mapping[str, Tensor], origin: Mapping[str, Tensor], *, by_layer: bool = False
) -> float | dict[str, float]:
    """The weight change dW = ||w - w0|| / ||w0||.

    Args:
        parameters: w by name, as ``State.parameters``.
        origin: w0, by the same names.
        by_layer: the same ratio for the parameters of each submodule, by its name.

    Returns:
        dW, or one number per layer; inf where w0 is 0 and w is not, 0 where both are.

    Raises:
        UserError: if the names differ.

    Source: Geiger et al. 2020.

    >>> movement({"w": torch.tensor([3.0, 5.0])}, {"w": torch.tensor([3.0, 4.0])})
    0.2
    """
    if set(parameters) != set(origin):
        odd = sorted(set(parameters) ^ set(origin))[0]
        raise UserError(
            f"`origin`: '{odd}' is in one of `parameters` and `origin`, expected the same names in both"
        )
    if not by_layer:
        return _moved(parameters, origin)
    return {
        layer: _moved(part, {name: origin[name] for name in part})
        for layer, part in group(parameters).items()
    }


def _moved(now: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> float:
    """||now - start|| / ||start||, from the norms of the parts."""
    far = math.hypot(*(float(torch.linalg.vector_norm(value - start[name])) for name, value in now.items()))
    size = math.hypot(*(float(torch.linalg.vector_norm(start[name])) for name in now))
    if far == 0.0:
        return 0.0
    return far / size if size else math.inf


@checked
@dataclass(frozen=True)
class Movement(Snapshot):
    """How far the parameters of a member have moved since its start. Value: ``dW`` (see :func:`movement`)."""

    def look(self, state: State) -> Mapping[str, float]:
        """dW now."""
        return {"dW": movement(state.parameters, state.origin)}
