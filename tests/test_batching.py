"""Every measurement where torch's rules for batches or for forward mode are wrong, and where sizes coincide."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from regimes import control, measure, train
from regimes.core.error import UserError
from regimes.kernel import rule
from tests.core.test_derivative import Doubled, Once
from tests.core.test_jacobian import DIFFICULT, by_cube, inputs
from tests.doors import has_its_gap, holds_as_operator, holds_in_all_forms, holds_linearised
from tests.measure.awkward import D
from tests.measure.awkward_case import F64, Net, matrix


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", DIFFICULT)
def test_sizes_that_coincide(name: str, size: int) -> None:
    """Samples, outputs and width are the same number."""
    module, x = DIFFICULT[name](size, size).to(F64), inputs(size)
    holds_in_all_forms(module, x)
    if "cdist" in name:  # it has no second derivative
        refused_without_one(module, x)
    else:
        holds_as_operator(module, x)
        holds_linearised(module, x)
    has_its_gap(module, x)


def refused_without_one(module: nn.Module, x: Tensor) -> None:
    """J v and J^T u are wanted of a network that has only J^T u."""
    with pytest.raises(UserError, match=r"neither a forward mode nor a second derivative.*measure\.ntk"):
        measure.ntk_operator(module, x)
    with pytest.raises(UserError, match=r"neither forward mode nor a second derivative|do not go together"):
        control.linearize(module)(x)


def test_training_from_a_kernel_takes_the_right_one() -> None:
    """Formed or as an operator."""
    module, x = DIFFICULT["prelu"](3, 1).to(F64), inputs(3)
    y = torch.tensor([1.0, -1.0, 0.5], dtype=F64)
    formed = train.kernel(measure.ntk(module, x, reduce="trace"), y).at(2.0)
    multiplied = train.kernel(measure.ntk_operator(module, x), y).at(2.0)
    assert torch.allclose(formed.outputs, multiplied.outputs, rtol=1e-9)


def by_function(net: Any, x: Tensor) -> Any:
    return net.out(net.function.apply(net.a(x)))


@pytest.mark.parametrize("function", [Doubled, Once])
def test_forward_mode_that_is_wrong(function: type[torch.autograd.Function]) -> None:
    module = Net(by_function, function=function, a=nn.Linear(D, 3), out=nn.Linear(3, 2)).to(F64)
    x = inputs(3)
    holds_in_all_forms(module, x)
    if function is Once:
        return refused_without_one(module, x)
    holds_as_operator(module, x)
    holds_linearised(module, x)
    y, right = (
        torch.zeros(3, 2, dtype=F64),
        Net(lambda net, x: net.out(net.a(x) ** 3), a=module.a, out=module.out),
    )
    found, expected = (measure.kappa(one, x, y, starts=2).value for one in (module, right))
    assert found == pytest.approx(expected, rel=1e-6)
    has_its_gap(module, x)


def by_sign(net: Any, x: Tensor) -> Any:
    """Forward mode is wrong for the samples that the first look leaves out."""
    h = net.a(x)
    return net.out(torch.where(x[:, :1] > 0, Doubled.apply(h), h.tanh()))  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_products_are_looked_at_each_time() -> None:
    module = Net(by_sign, a=nn.Linear(D, 3), out=nn.Linear(3, 2)).to(F64)
    x = inputs(8)
    x[:, 0] = -x[:, 0].abs()
    x[-1, 0] = 1.0
    holds_as_operator(module, x)


def mixed_up(vmap: Any, size: int) -> Any:
    """A vmap that takes the wrong sample for batches of one size."""

    def faulty(function: Any, dims: Any) -> Any:
        def run(*args: Any) -> Any:
            found = vmap(function, dims)(*args)
            return tuple(one.roll(1, 0) if len(one) == size else one for one in found)

        return run

    return faulty


def test_rules_are_held_against_autograd_at_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two samples, on which they are confirmed, say nothing of five."""
    module = Net(
        lambda net, x: net.out(net.a(x) * net.w), a=nn.Linear(D, 3), w=matrix(3), out=nn.Linear(3, 2)
    )
    monkeypatch.setattr(rule, "vmap", mixed_up(rule.vmap, 5))
    holds_in_all_forms(module.to(F64), inputs(5))


def test_weights_computed_from_others_are_held_against_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = parametrizations.weight_norm(nn.Linear(D, 3, dtype=F64))
    module = nn.Sequential(layer, nn.Tanh(), nn.Linear(3, 2, dtype=F64))
    grad = torch.autograd.grad

    def faulty(*args: Any, **named: Any) -> Any:
        found = grad(*args, **named)
        if not named.get("is_grads_batched"):
            return found
        return tuple(one.roll(1, 0) if one is not None and len(one) == 5 else one for one in found)

    monkeypatch.setattr(torch.autograd, "grad", faulty)
    holds_in_all_forms(module, inputs(5))


def test_an_operation_with_a_wrong_rule_for_batches() -> None:
    module = Net(by_cube, a=nn.Linear(D, 3), out=nn.Linear(3, 2)).to(F64)
    holds_in_all_forms(module, inputs(5))
    has_its_gap(module, inputs(5))
