"""Every operation that torch tests itself by: rows and products with the Jacobian against loops of autograd."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from regimes.core.derivative import jvp
from regimes.core.error import UserError
from regimes.core.jacobian import jacobian
from tests import reference
from tests.core import operations
from tests.core.operations import Network

# The table of operations is cut into so many tests.
PARTS = 24

pytestmark = [
    pytest.mark.slow,
    # torch says what it thinks of its own examples.
    pytest.mark.filterwarnings("ignore"),
]


class Chance(TorchDispatchMode):
    """Notes whether an operation draws random numbers, which it may do with a seed of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.found |= torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


def rows_of(network: Network) -> Tensor | None:
    """The rows by autograd, one after the other; None where it has none."""
    try:
        if not network.module(network.x).requires_grad:
            return None
        rows = reference.jacobian(network.module, network.x)["weight"]
    except Exception:  # of an operation that has no derivative, or that this machine does not have
        return None
    return rows if rows.numel() else None


def draws(network: Network) -> bool:
    with Chance() as chance:
        network.module(network.x)
    return chance.found


def close(found: Tensor, expected: Tensor, noise: float = 0.0) -> bool:
    size = float(expected.nan_to_num(0, 0, 0).abs().max())
    return found.shape == expected.shape and torch.allclose(found, expected, 1e-7, 1e-9 * size + noise, True)


def faults(network: Network, expected: Tensor) -> list[str]:
    """What the library gets wrong."""
    module, x = network.module, network.x
    parameters = dict(module.named_parameters())
    v = torch.randn(module.weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    along = torch.einsum("iap,p->ia", expected.reshape(*expected.shape[:2], -1), v.flatten())
    # A derivative that cancels (a norm of one number, a saturated softmax) is what rounding leaves of outputs f.
    with torch.no_grad():
        noise = 1e3 * torch.finfo(torch.float64).eps * float(module(x).nan_to_num(0, 0, 0).abs().max())
    wrong = [] if close(jacobian(module, parameters, x)["weight"], expected, noise) else ["rows"]
    # A row of no finite numbers has no product.
    if expected.isfinite().all() and not close(jvp(module, parameters, x, {"weight": v})[1], along, noise):
        wrong.append("J v")
    return wrong


@pytest.mark.parametrize("part", range(PARTS))
def test_every_operation_of_torch(part: int) -> None:
    """By every argument that has a gradient; left out is only what autograd cannot derive, or that draws numbers."""
    wrong: list[str] = []
    compared = 0
    for name in operations.names()[part::PARTS]:
        for number, network in enumerate(operations.networks(name)):
            expected = rows_of(network)
            if expected is None:
                continue
            try:
                found = faults(network, expected)
            except UserError as error:
                if not draws(network):
                    wrong.append(f"{name} {number}: refused, {error}")
                continue
            if found and not close(expected, reference.jacobian(network.module, network.x)["weight"]):
                continue  # autograd itself gives others each time
            compared += 1
            wrong += [f"{name} {number}: {what}" for what in found]
    assert not wrong
    assert compared > 0
