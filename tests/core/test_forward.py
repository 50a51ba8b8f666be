"""Forward mode: outputs and tangents where numbers and tensors without a tangent take part."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from regimes.core.forward import by_forward_mode

Function = Callable[[Mapping[str, Tensor]], Tensor]
CASES: dict[str, Function] = {
    "number on either side": lambda w: 2 * w["a"] * 0.5 + w["a"].mul(3) * True,
    "number by torch": lambda w: torch.mul(w["a"], -1.5).exp(),
    "tensor of no axes": lambda w: w["a"] * torch.tensor(2.0) + torch.tensor(0.5) * w["b"],
    "tensor without a tangent": lambda w: w["a"].detach() * 2 * w["b"],
    "nothing moves": lambda w: w["a"].detach() * 2,
    "power and quotient": lambda w: (w["a"] ** 2 / 3) * 4,
}


@pytest.mark.parametrize("name", CASES)
def test_is_the_derivative_along_a_direction(name: str) -> None:
    """... and the tangent has the gradient J^T u by the direction."""
    at = {"a": torch.randn(3, dtype=torch.float64), "b": torch.randn(3, dtype=torch.float64)}
    along = {key: torch.randn_like(value).requires_grad_() for key, value in at.items()}
    value, slope = by_forward_mode(CASES[name], at, along)
    u = torch.randn(3, dtype=torch.float64)
    leaves = {key: each.clone().requires_grad_() for key, each in at.items()}
    outputs = CASES[name](leaves)
    torch.testing.assert_close(value.detach(), outputs.detach())
    if not outputs.requires_grad:
        assert not slope.any()
        return
    pulled = torch.autograd.grad(outputs, list(leaves.values()), u, materialize_grads=True)
    wanted = sum((g * along[key].detach()).sum() for key, g in zip(at, pulled, strict=True))
    torch.testing.assert_close((u * slope).sum().detach(), wanted)
    found = torch.autograd.grad((u * slope).sum(), list(along.values()), materialize_grads=True)
    for mine, theirs in zip(found, pulled, strict=True):
        torch.testing.assert_close(mine, theirs)
