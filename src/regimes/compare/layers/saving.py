"""What a set of layers saves in a step, counted on one batch: operations and bytes, not seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from regimes.core.tree import trainable
from regimes.measure.layer_cost_kept import kept_by_layers
from regimes.measure.layer_cost_terms import paid

__all__ = ["Cost", "step_cost"]


@dataclass(frozen=True)
class Cost:
    """What a step costs.

    Attributes:
        backward: floating-point operations of the matrix products and convolutions of the backward pass.
        kept: bytes that the forward pass keeps for the backward pass, without parameters and buffers.
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
    moved = trainable(network)
    kept = paid(kept_by_layers(network, [[*moved.values()]], mean_loss), frozenset({0}))
    loss = mean_loss()
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(loss, list(moved.values()), allow_unused=True)
    count = sum(parameter.numel() for parameter in moved.values())
    return Cost(counter.get_total_flops(), int(kept), count)
