"""Rows of the Jacobian against loops of autograd, where torch's rules for batches are right and where they are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regimes.core import jacobian as library
from regimes.core.derivative import bind
from regimes.core.error import UserError
from regimes.core.jacobian import are_rows, jacobian
from regimes.core.tree import trainable
from tests import reference
from tests.core.test_derivative import MODULES, inputs
from tests.measure.awkward import D, build
from tests.measure.awkward_case import F64, Net
from tests.properties import assert_close


class Distances(nn.Module):
    """Distances to points that train."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.a = nn.Linear(D, width)
        self.points = nn.Parameter(torch.randn(outputs, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(self.a(x), self.points)


Build = Callable[[int, int], nn.Module]
# Operations whose rules for batches are or were wrong: (width, outputs) -> module.
DIFFICULT: dict[str, Build] = {
    "prelu": lambda h, c: nn.Sequential(nn.Linear(D, h), nn.PReLU(), nn.Linear(h, c)),
    "prelu of channels": lambda h, c: nn.Sequential(nn.Linear(D, h), nn.PReLU(h), nn.Linear(h, c)),
    "prelu at the end": lambda h, c: nn.Sequential(nn.Linear(D, h), nn.Linear(h, c), nn.PReLU()),
    "cdist": lambda h, c: Distances(h, c),
    "cdist before a layer": lambda h, c: nn.Sequential(Distances(h, h), nn.Tanh(), nn.Linear(h, c)),
}


def equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for key, rows in expected.items():
        assert_close(found[key], rows)


@pytest.mark.parametrize("chunk", [None, 1, 3])
@pytest.mark.parametrize("name", MODULES)
def test_jacobian_is_that_of_autograd(name: str, chunk: int | None) -> None:
    module, x = build(name), inputs()
    equal(jacobian(module, trainable(module), x, chunk=chunk), reference.jacobian(module, x))


@pytest.mark.parametrize("size", [1, 2, 4, 5])
@pytest.mark.parametrize("name", DIFFICULT)
def test_sizes_that_coincide(name: str, size: int) -> None:
    """Samples, outputs and width are the same number; the second call gives what the first one gave."""
    module, x = DIFFICULT[name](size, size).to(F64), inputs(size)
    expected = reference.jacobian(module, x)
    for chunk in (None, None, 2):
        equal(jacobian(module, trainable(module), x, chunk=chunk), expected)


@pytest.mark.parametrize("names", ["2.weight", ["2.weight"]])
def test_jacobian_of_some_parameters(names: str | list[str]) -> None:
    module, x = build("mlp"), inputs()
    found = jacobian(module, trainable(module), x, names=names)
    assert list(found) == ["2.weight"]
    assert_close(found["2.weight"], reference.jacobian(module, x)["2.weight"])


def test_rows_exist_in_inference_mode() -> None:
    module, x = build("images"), inputs()
    with torch.inference_mode():
        equal(jacobian(module, trainable(module), x.clone()), reference_outside(module, x))


def reference_outside(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    with torch.inference_mode(False), torch.enable_grad():
        return reference.jacobian(module, x.clone())


class Slope(torch.autograd.Function):
    """grad * 3 x^2, with a rule for batches that takes the wrong sample."""

    @staticmethod
    def forward(grad: Tensor, x: Tensor) -> Tensor:
        return grad * 3 * x**2

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, int], grad: Tensor, x: Tensor) -> tuple[Tensor, int]:
        return (grad.movedim(in_dims[0], 0) * 3 * x.movedim(in_dims[1], 0) ** 2).roll(1, 0), 0


class Cube(torch.autograd.Function):
    """x^3, right for one sample after the other."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Slope.apply(grad, *ctx.saved_tensors)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], x: Tensor) -> tuple[Any, int]:
        return Cube.apply(x), in_dims[0]


def by_cube(net: Any, x: Tensor) -> Any:
    return net.out(Cube.apply(net.a(x)))


def cubed() -> nn.Module:
    return Net(by_cube, a=nn.Linear(D, 3), out=nn.Linear(3, 2)).to(F64)


@pytest.mark.parametrize("small", [1.0, 1e-9])
def test_a_rule_for_batches_that_is_wrong_is_found(small: float) -> None:
    """Also where only samples of small rows are wrong."""
    module, x = cubed(), inputs()
    x[2:] *= small ** (1 / 3)
    equal(jacobian(module, trainable(module), x), reference.jacobian(module, x))


def test_most_networks_need_no_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    looped: list[str] = []
    original = library._looped

    def counted(*args: Any) -> Any:
        looped.append(name)
        return original(*args)

    monkeypatch.setattr(library, "_looped", counted)
    modules = {key: build(key) for key in ("mlp", "relu", "tied", "attention", "images")}
    modules["prelu"] = DIFFICULT["prelu"](2, 2)
    modules["a number"] = Net(
        lambda net, x: net.a(x) * net.w, a=nn.Linear(D, 2), w=nn.Parameter(torch.ones(()))
    )
    for name, module in modules.items():  # noqa: B007
        for dtype in (torch.float32, F64):
            module.to(dtype)
            jacobian(module, trainable(module), inputs(16).to(dtype))
    assert looped == []
    name, module = "wrong", cubed()
    jacobian(module, trainable(module), inputs())
    assert looped == ["wrong"]


def test_rows_leave_no_trace() -> None:
    """Neither in the generator of random numbers nor in the parameters."""
    module, x = cubed(), inputs()
    before, own = torch.get_rng_state(), dict(module.named_parameters())
    jacobian(module, trainable(module), x)
    assert torch.equal(before, torch.get_rng_state())
    assert all(p is own[name] and p.grad is None for name, p in module.named_parameters())


def by_value(net: Any, x: Tensor) -> Tensor:
    """Cannot go through vmap."""
    return net.out(net.a(x) if float(x.sum()) > 0 else -net.a(x))


def by_checkpoint(net: Any, x: Tensor) -> Tensor:
    return net.out(checkpoint(net.a, x if float(x.sum()) > 0 else -x, use_reentrant=False))


@pytest.mark.parametrize("forward", [by_value, by_checkpoint])
def test_rows_one_by_one_at_other_parameters(forward: Callable[[Any, Tensor], Tensor]) -> None:
    module, x = Net(forward, a=nn.Linear(D, 3), out=nn.Linear(3, 2)).to(F64), inputs()
    values = {name: p.detach() + 0.1 * torch.randn_like(p) for name, p in module.named_parameters()}
    found = jacobian(module, values, x)
    with bind(module, {name: nn.Parameter(value) for name, value in values.items()}):
        equal(found, reference.jacobian(module, x))


def by_chance(net: Any, x: Tensor) -> Tensor:
    return net.a(x) * (torch.rand(()) if float(x.sum()) > 0 else torch.rand(2))


@pytest.mark.parametrize("forward", [by_chance, lambda net, x: net.a(x) * torch.rand(())])
def test_chance_is_refused(forward: Callable[[Any, Tensor], Tensor]) -> None:
    module = Net(forward, a=nn.Linear(D, 2)).to(F64)
    with pytest.raises(UserError, match="draws random numbers"):
        jacobian(module, trainable(module), inputs())


def test_rows_of_zeros_may_be_wrong() -> None:
    rows = {"w": torch.zeros(2, 3, 4, dtype=F64), "b": torch.ones(2, 3, 1, dtype=F64)}
    right = {"w": torch.zeros(4, dtype=F64), "b": torch.ones(1, dtype=F64)}
    assert are_rows(rows, lambda u: {"w": right["w"], "b": u.sum() * right["b"]})
    assert not are_rows(rows, lambda u: {"w": right["w"] + 1e-3, "b": u.sum() * right["b"]})
    nothing = {"w": torch.zeros(2, 3, 4, dtype=F64)}
    assert are_rows(nothing, lambda u: right)
    assert not are_rows(nothing, lambda u: {"w": right["w"] + 1e-3})
