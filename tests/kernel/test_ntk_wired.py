"""Random networks of a second grammar, each called twice with a change in between, against the definition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regimes import measure
from regimes.measure import Reduce
from tests import reference
from tests.kernel.test_ntk_again import REDUCTIONS
from tests.kernel.wired import changed, wired
from tests.measure.awkward_case import F64

NETWORKS, TOGETHER = 512, 16


def assert_is_the_definition(
    module: nn.Module, x1: Tensor, x2: Tensor, output: Any, forms: Sequence[Reduce], seed: int
) -> None:
    """Square and not in turns, up to the rounding of the whole."""
    rows, columns = reference.jacobian(module, x1, output), reference.jacobian(module, x2, output)
    for k, reduce in enumerate(forms, seed):
        other, right = (None, rows) if k % 2 else (x2, columns)
        expected = torch.stack(list(reference.products(rows, right, reduce).values())).sum(0)
        found = measure.ntk(module, x1, other, reduce=reduce, output=output)
        away, size = float((found - expected).norm()), float(expected.norm())
        assert away <= 1e-9 * size + 1e-12, f"network {seed}, {reduce}: {away / (size or 1):.1e}"


def check(seed: int) -> None:
    """A network, a change, and the network again; as many samples as outputs more often than not."""
    net, rng = wired(seed)
    if not any(p.requires_grad for p in net.parameters()):
        net.requires_grad_(True)
    outputs = net(torch.zeros(1, net.inputs, dtype=F64)).shape[1]
    n, m = rng.choice([outputs, 2, 3]), rng.choice([1, outputs, 3])
    x1, x2 = torch.randn(n, net.inputs, dtype=F64), torch.randn(m, net.inputs, dtype=F64)
    assert_is_the_definition(net, x1, x2, None, [REDUCTIONS[seed % 3]], seed)
    assert_is_the_definition(net, x1, x2, changed(net, rng), REDUCTIONS, seed)


@pytest.mark.parametrize("seed", range(12))
def test_some_random_networks(seed: int) -> None:
    check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, NETWORKS, TOGETHER))
def test_random_networks(first: int) -> None:
    for seed in range(first, first + TOGETHER):
        check(seed)
