"""What a set of layers saves in a step, counted on one batch: operations and bytes, not seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from regimes.core.tree import trainable

__all__ = ["Cost", "step_cost"]


@dataclass(frozen=True)
class Cost:
    """What a step costs.

    Attributes:
        backward: floating-point operations of the matrix products and convolutions of the backward pass.
        kept: bytes that the forward pass keeps for the backward pass, without the parameters.
        moving: parameters that move.
    """

    backward: int
    kept: int
    moving: int


def step_cost(network: nn.Module, mean_loss: Callable[[], Tensor]) -> Cost:
    """The cost of a step of a network, some of whose parameters require grad.

    Args:
        network: is left with no gradient.
        mean_loss: of a batch.
    """
    parameters = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    bytes_of: dict[int, int] = {}

    def note(value: Any) -> Any:
        storage = value.untyped_storage()
        if storage.data_ptr() not in parameters:
            bytes_of[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        loss = mean_loss()
    moved = trainable(network)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(loss, list(moved.values()), allow_unused=True)
    count = sum(parameter.numel() for parameter in moved.values())
    return Cost(counter.get_total_flops(), sum(bytes_of.values()), count)
