"""The work of a tangent kernel in operations: a count, the same in every call, for what decides by it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from regimes.core.batch import Inputs, check, count, device_of, feed, take
from regimes.core.derivative import exact
from regimes.kernel.cost import TYPICAL, building, pairing
from regimes.kernel.ntk import planned
from regimes.kernel.request import request

__all__ = ["forward_work", "ntk_work"]


def forward_work(module: nn.Module, x: Inputs) -> float:
    """The operations of products in one forward pass over all samples; told from two of them."""
    with exact(device_of(x)), torch.no_grad(), FlopCounterMode(display=False) as counter:
        feed(module, take(x, slice(0, 2)))
    return counter.get_total_flops() * count(x) / min(2, count(x))


def ntk_work(module: nn.Module, x: Inputs, parameters: Mapping[str, Tensor] | None = None) -> float:
    """The operations of the full kernel of some samples, in those that a typical processor does in products.

    The network is looked at on two samples; the plan tells the rest.

    Args:
        module: f.
        x: n samples.
        parameters: w by name.
    """
    check(x, "x")
    with exact(device_of(x)), torch.no_grad():
        asked = request(module, x, None, "full", None, None, parameters)
        plan = planned(asked)
    n, c, size = count(x), len(plan.asked), asked.network.dtype.itemsize
    found = 3 * c * forward_work(module, x) / TYPICAL.product
    for term in plan.terms:
        r = plan.width if term.order not in ("head", "jacobian") else c
        found += n * building(term.shape, term.order, r, TYPICAL, size)
        found += n * (n + 1) / 2 * pairing(term.shape, term.order, "full", r, TYPICAL, size)
    return found * TYPICAL.product
