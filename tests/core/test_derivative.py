"""Derivatives of modules: each against loops of autograd, and each against the others."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regimes import models
from regimes.core.derivative import bind, call, check_separable, columns, hvp, jvp, value, vjp
from regimes.core.error import UserError
from regimes.core.tree import dot, trainable
from tests import reference
from tests.measure.awkward import D, build
from tests.properties import assert_close

MODULES = [
    "mlp with biases and outputs",
    "relu",
    "tied",
    "two paths",
    "bare parameters",
    "attention",
    "branching",
    "images",
]


def inputs(n: int = 4) -> Tensor:
    return torch.randn(n, D, dtype=torch.float64)


def random_like(tree: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.randn_like(p) for name, p in tree.items()}


def along(rows: dict[str, Tensor], v: dict[str, Tensor]) -> Tensor:
    """J v from the rows of J, (n, c)."""
    return torch.stack([torch.einsum("iap,p->ia", rows[k].flatten(2), v[k].flatten()) for k in v]).sum(0)


class Cut(torch.autograd.Function):
    """A cube without a forward mode."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        return 3 * x**2 * grad


class Cubed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(D, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = Cut.apply(self.a(x))
        assert isinstance(out, Tensor)
        return out


@pytest.mark.parametrize("name", MODULES)
def test_jvp_and_vjp_are_products_with_the_jacobian(name: str) -> None:
    module, x = build(name), inputs()
    parameters = trainable(module)
    v = random_like(parameters)
    rows = reference.jacobian(module, x)
    n, c = next(iter(rows.values())).shape[:2]
    u = torch.randn(n, c, dtype=torch.float64)

    outputs, pushed = jvp(module, parameters, x, v)
    assert_close(outputs, columns(module(x), n).detach())
    assert_close(pushed, along(rows, v))

    outputs, pulled = vjp(module, parameters, x, u)
    assert_close(outputs, columns(module(x), n).detach())
    for key, row in rows.items():
        assert_close(pulled[key], torch.einsum("ia,ia...->...", u, row))
    assert_close((u * pushed).sum(), dot(pulled, v))


def test_gradients_exist_in_inference_mode() -> None:
    module, x = build("images"), inputs()
    parameters = trainable(module)
    v = random_like({name: p.detach() for name, p in parameters.items()})
    rows = reference.jacobian(module, x)
    with torch.inference_mode():
        made_inside = x.clone()
        assert_close(jvp(module, parameters, made_inside, v)[1], along(rows, v))
        u = torch.ones(len(x), 2, dtype=torch.float64)
        assert_close(vjp(module, parameters, made_inside, u)[1]["5.weight"], rows["5.weight"].sum((0, 1)))


class Stopped(nn.Module):
    """Takes part of itself as a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(D, 4, dtype=torch.float64), nn.Linear(4, 2, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            gate = self.a(x).sin()
        return self.b(self.a(x).tanh() * gate)


@pytest.mark.parametrize("graph", [False, True])
def test_jvp_has_no_tangent_where_gradients_are_off(graph: bool) -> None:
    """J v goes with J^T u, whether or not the caller asks for gradients."""
    module, x = Stopped(), torch.randn(3, D, dtype=torch.float64)
    parameters = trainable(module)
    v = {name: torch.randn_like(value) for name, value in parameters.items()}
    u = torch.randn(3, 2, dtype=torch.float64)
    with torch.set_grad_enabled(graph):
        along = jvp(module, parameters, x, v)[1]
    pulled = vjp(module, parameters, x, u)[1]
    assert float((u * along).sum()) == pytest.approx(float(dot(pulled, v)), rel=1e-12)


def test_jvp_without_a_forward_mode() -> None:
    module = Cubed().double()
    parameters, x = trainable(module), inputs()
    v = random_like(parameters)
    assert_close(jvp(module, parameters, x, v)[1], along(reference.jacobian(module, x), v))


class Doubled(torch.autograd.Function):
    """A cube whose forward mode is twice what it should be."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return 3 * ctx.saved_tensors[0] ** 2 * grad

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return 6 * ctx.saved_tensors[0] ** 2 * tangent


class Once(Doubled):
    """The same, and its second derivative is lost without a word."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return 3 * ctx.saved_tensors[0] ** 2 * grad.detach()


@pytest.mark.parametrize("function", [Doubled, Once])
@pytest.mark.parametrize("small", [1.0, 1e-6])
def test_jvp_is_right_where_forward_mode_is_not(
    function: type[torch.autograd.Function], small: float
) -> None:
    """``small``: the rows of one sample beside those of the others."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(D, 3, dtype=torch.float64), nn.Linear(D, 2, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            part = function.apply(self.a(x) * x[:, :1])
            assert isinstance(part, Tensor)
            return part[:, :2] * small + self.b(x) * x[:, 1:2]

    module, x = Net(), inputs()
    x[1:, 0], x[0, 1] = 0.0, 0.0  # the function speaks for the first sample, the layer for the others
    parameters = trainable(module)
    v = random_like(parameters)
    assert_close(jvp(module, parameters, x, v)[1], along(reference.jacobian(module, x), v))


def test_jvp_refuses_chance_and_leaves_it_alone() -> None:
    module, x = models.mlp(D, 3, 1), inputs()
    v = random_like(trainable(module))
    before = torch.get_rng_state()
    jvp(module, trainable(module), x, v)
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(UserError, match="draws random numbers"):
        jvp(module, trainable(module), x, v, output=lambda out: out * torch.rand(()))


class InPlace(nn.Module):
    """Overwrites its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(D, 2, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x.mul_(2.0))


def test_products_leave_the_inputs_as_they_are() -> None:
    module, x = InPlace(), inputs()
    parameters, kept = trainable(module), x.clone()
    v, u = random_like(parameters), torch.randn(len(x), 2, dtype=torch.float64)
    jvp(module, parameters, x, v)
    vjp(module, parameters, x, u)
    value(module, parameters, x)
    assert torch.equal(x, kept)


def test_hvp_is_the_hessian_times_a_vector() -> None:
    module, x = models.mlp(2, 3, 1), torch.randn(4, 2, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in trainable(module).items()}
    v = random_like(parameters)

    def loss(w: Tensor) -> Tensor:
        split = w.split([p.numel() for p in parameters.values()])
        tree = {name: part.view_as(p) for (name, p), part in zip(parameters.items(), split, strict=True)}
        return call(module, tree, x).square().sum()

    flat = torch.cat([p.flatten() for p in parameters.values()])
    hessian = torch.autograd.functional.hessian(loss, flat)
    assert isinstance(hessian, Tensor)
    found = hvp(lambda w: call(module, dict(w), x).square().sum(), parameters, v)
    direction = torch.cat([v[name].flatten() for name in parameters])
    assert_close(torch.cat([found[name].flatten() for name in parameters]), hessian @ direction)


def test_hvp_of_a_linear_function_is_zero() -> None:
    found = hvp(lambda w: w["w"].sum(), {"w": torch.ones(2)}, {"w": torch.ones(2)})
    assert torch.equal(found["w"], torch.zeros(2))


@pytest.mark.parametrize("name", ["tied", "two paths", "functional", "weight norm"])
def test_bound_parameters_hold_everywhere_and_are_given_back(name: str) -> None:
    module, x = build(name), inputs()
    before = dict(module.named_parameters(remove_duplicate=False))
    values = {key: p.detach() * 2 for key, p in module.named_parameters()}
    found = call(module, values, x)
    after = dict(module.named_parameters(remove_duplicate=False))
    assert all(after[key] is p for key, p in before.items())
    with torch.no_grad():
        for key, p in module.named_parameters():
            p.copy_(values[key])
    assert_close(found, module(x))


def test_parameters_are_given_back_after_an_error() -> None:
    layer = nn.Linear(D, 1)
    weight = layer.weight
    with pytest.raises(RuntimeError), bind(layer, {"weight": torch.zeros(3, 3)}):
        layer(torch.zeros(2, D))
    assert layer.weight is weight


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm1d(3),
        nn.BatchNorm1d(3, track_running_stats=False).eval(),
        nn.InstanceNorm1d(3, track_running_stats=True),
        nn.Dropout(0.5),
        nn.RReLU(),
        nn.MultiheadAttention(2, 1, dropout=0.1),
        nn.LSTM(2, 2, num_layers=2, dropout=0.1),
    ],
)
def test_refuses_what_couples_samples_or_is_random(module: nn.Module) -> None:
    with pytest.raises(UserError, match=f"'1' .{type(module).__name__}"):
        check_separable(nn.Sequential(nn.Identity(), module))


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm1d(3).eval(),
        nn.InstanceNorm1d(3),
        nn.GroupNorm(1, 3),
        nn.Dropout(0.5).eval(),
        nn.Dropout(0.0),
        nn.MultiheadAttention(2, 1),
    ],
)
def test_accepts_what_treats_each_sample_alone(module: nn.Module) -> None:
    check_separable(module)


WRONG = [torch.zeros(3, 2, 2), torch.zeros(2), torch.zeros(()), torch.zeros(3).long()]


@pytest.mark.parametrize("outputs", WRONG)
def test_columns_refuses_other_outputs(outputs: Tensor) -> None:
    with pytest.raises(UserError, match="`module`: gave outputs of"):
        columns(outputs, 3)
    assert math.prod(columns(torch.zeros(3), 3).shape) == 3
