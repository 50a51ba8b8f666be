"""A step of Gauss-Newton is the dense solve, in every form, and what the optimiser makes of it."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regimes import train
from regimes.core.loss import cross_entropy, squared
from tests.train.newton import dense
from tests.train.newton.dense import F64, flat
from tests.train.newton.networks import EXACT, NETWORKS, STEPS, bare, mlp, moved, task


@pytest.mark.parametrize("kernel", STEPS)
@pytest.mark.parametrize("loss", [squared, cross_entropy], ids=["squared", "cross-entropy"])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_step_is_the_dense_solve(network: str, loss: Any, kernel: Any) -> None:
    """Sizes that coincide among them; twice, at other parameters and with another damping."""
    for n, c in ((3, 3), (5, 1), (4, 2)):
        module = NETWORKS[network](c).double()
        optimizer = train.GaussNewton(module, loss=loss, kernel=kernel, adaptive=False, **EXACT)
        for damping in (0.1, 1e-3):
            x, y = task(n, c, loss)
            optimizer.param_groups[0]["damping"] = damping
            expected = STEPS[kernel](module, x, y, loss, damping)
            found, record = moved(optimizer, x, y)
            assert float((found - expected).norm()) <= 1e-8 * float(expected.norm())
            assert record.kernel == kernel and record.damping == damping and record.length == 1
            with torch.no_grad():
                for p in module.parameters():
                    p.add_(torch.randn_like(p), alpha=0.1)


@pytest.mark.parametrize("kernel", ["full", "trace", "products"])
def test_what_is_predicted_is_the_quadratic_model(kernel: Any) -> None:
    x, y = task(4, 3, cross_entropy)
    module = mlp(3).double()
    g, h = dense.curvature(cross_entropy, module(x), y)
    j, rate = dense.rows(module, x), 0.3
    optimizer = train.GaussNewton(module, loss=cross_entropy, kernel=kernel, lr=rate, adaptive=False, **EXACT)
    step, record = moved(optimizer, x, y)
    pushed = j @ step
    assert record.predicted == pytest.approx(-float(g @ pushed + pushed @ h @ pushed / 2) / 4, rel=1e-9)
    after = cross_entropy.per_sample(module(x), y).mean().item()
    assert record.actual == pytest.approx(record.loss - after, rel=1e-9)
    assert record.ratio == pytest.approx(record.actual / record.predicted)


@pytest.mark.parametrize("kernel", ["auto", "full", "trace", "products"])
def test_the_trust_ratio_of_a_linear_model_is_one(kernel: Any) -> None:
    x, y = task(6, 3, squared)
    module = nn.Linear(4, 3).double()
    optimizer = train.GaussNewton(module, loss=squared, kernel=kernel, damping=1.0)
    record = optimizer.step(x, y)
    assert record.ratio == pytest.approx(1, abs=1e-9)
    assert optimizer.param_groups[0]["damping"] == 0.5
    record = optimizer.step(x, y, check=(x + 0.1, y + 0.1))
    assert record.ratio == pytest.approx(1, abs=1e-9)


def test_without_damping_it_solves_least_squares() -> None:
    """The limit of a long block: the undamped step of a linear model is the least-norm solution."""
    x, y = task(3, 2, squared)
    module = nn.Linear(4, 2, bias=False).double()
    with torch.no_grad():
        module.weight.zero_()
    train.GaussNewton(module, loss=squared, kernel="full", damping=1e-12).step(x, y)
    torch.testing.assert_close(module.weight.detach(), (torch.linalg.pinv(x) @ y).T, rtol=1e-8, atol=1e-8)


def test_tokens_are_terms_of_the_loss() -> None:
    """(n, tokens, c) with (n, tokens) class indices, or floats of the same shape; and as output= picks them."""
    x = torch.randn(3, 2, 4, dtype=F64)
    for loss, y in ((cross_entropy, torch.randint(3, (3, 2))), (squared, torch.randn(3, 2, 3, dtype=F64))):
        kernel: Any
        for kernel in ("full", "products"):
            module = mlp(3).double()
            optimizer = train.GaussNewton(
                module,
                loss=loss,
                kernel=kernel,
                damping=0.02,
                adaptive=False,
                **EXACT,
                output=lambda out: out,
            )
            expected = dense.step(module, x, y, loss, 0.02)
            found, record = moved(optimizer, x, y)
            assert float((found - expected).norm()) <= 1e-8 * float(expected.norm())
            target = y.flatten() if loss is cross_entropy else y.reshape(6, 3)
            again = dense.step(module, x.reshape(6, 4), target, loss, 0.02)
            torch.testing.assert_close(again, dense.step(module, x, y, loss, 0.02))
            assert math.isfinite(record.ratio)


class Named(nn.Module):
    """Two inputs by name, and the outputs in a dict, as large libraries have it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(3)

    def forward(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        return {"logits": self.net(first + second)}


def test_inputs_by_name_and_outputs_that_are_picked() -> None:
    x, y = task(4, 3, cross_entropy)
    plain, named = mlp(3).double(), Named().double()
    named.net.load_state_dict(plain.state_dict())
    kernel: Any
    for kernel in STEPS:
        expected, _ = moved(train.GaussNewton(plain, loss=cross_entropy, kernel=kernel), x, y)
        optimizer = train.GaussNewton(
            named, loss=cross_entropy, kernel=kernel, output=lambda out: out["logits"]
        )
        found, _ = moved(optimizer, {"first": x, "second": 0 * x}, y)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_copy_steps_its_own_module() -> None:
    x, y = task(4, 3, cross_entropy)
    optimizer = bare(cross_entropy, damping=0.03)
    torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 5)
    other = copy.deepcopy(optimizer)
    before = flat(optimizer.module)
    found, record = moved(other, x, y)
    assert torch.equal(flat(optimizer.module), before) and found.any()
    assert optimizer.step(x, y) == record and torch.equal(flat(optimizer.module), flat(other.module))


def test_class_indices_are_targets_of_the_squared_loss() -> None:
    x, y = task(5, 3, cross_entropy)
    one, other = mlp(3).double(), mlp(3).double()
    other.load_state_dict(one.state_dict())
    train.GaussNewton(one, loss=squared).step(x, y)
    train.GaussNewton(other, loss=squared).step(x, torch.nn.functional.one_hot(y, 3).double())
    assert torch.equal(flat(one), flat(other))


@pytest.mark.parametrize("kernel", STEPS)
def test_single_precision_gives_the_same_step(kernel: Any) -> None:
    """Also where float32 has too few digits to factorise, and the solution is still finite."""
    x, y = task(12, 3, cross_entropy)
    module = mlp(3).double()
    for damping in (1.0, 1e-3, 1e-9):
        low = copy.deepcopy(module).float()
        expected = STEPS[kernel](module, x, y, cross_entropy, damping)
        optimizer = train.GaussNewton(
            low, loss=cross_entropy, kernel=kernel, damping=damping, adaptive=False, tolerance=1e-5
        )
        found, record = moved(optimizer, x.float(), y)
        assert math.isfinite(record.predicted)
        assert damping < 1e-8 or float((found - expected).norm()) <= 3e-3 * float(expected.norm())


def test_the_line_search_goes_by_the_other_batch() -> None:
    """What is kept lowers the loss there; a rate that is too large by far is halved away, or nothing moves."""
    lengths = []
    for rate in (1.0, 20.0, 1e4):
        module = mlp(3).double()
        (x, y), other = task(6, 3, cross_entropy), task(8, 3, cross_entropy)
        optimizer = train.GaussNewton(module, loss=cross_entropy, damping=1e-3, lr=rate)
        before = cross_entropy.per_sample(module(other[0]), other[1]).mean().item()
        step, record = moved(optimizer, x, y, check=other)
        after = cross_entropy.per_sample(module(other[0]), other[1]).mean().item()
        assert record.taken == bool(step.any()) == (after < before)
        assert math.log2(rate / record.length).is_integer() if record.taken else record.length == 0
        if record.taken:
            assert record.actual == pytest.approx(before - after)
        else:
            assert optimizer.param_groups[0]["damping"] == 2e-3
        lengths.append(record.length / rate)
    assert min(lengths) < 1


@pytest.mark.parametrize("with_check", [False, True])
def test_a_loss_that_is_not_finite_moves_nothing(with_check: bool) -> None:
    x, y = task(5, 1, squared)
    module = nn.Sequential(nn.Linear(4, 3), Explosive(), nn.Linear(3, 1)).double()
    optimizer = train.GaussNewton(module, loss=squared, lr=1e8, damping=1e-6)
    step, record = moved(optimizer, x, y, **({"check": task(5, 1, squared)} if with_check else {}))
    assert not step.any() and not record.taken and record.ratio == -math.inf
    assert optimizer.param_groups[0]["damping"] == 2e-6


class Explosive(nn.Module):
    """exp exp x."""

    def forward(self, x: Tensor) -> Tensor:
        return x.exp().exp()


def test_a_run_goes_on_bit_for_bit_at_every_step() -> None:
    """With its damping, the learning rate of a schedule, and the line search."""

    def begun() -> tuple[nn.Module, train.GaussNewton, Any]:
        torch.manual_seed(1)
        module = mlp(3).double()
        optimizer = train.GaussNewton(module, loss=cross_entropy, damping=1e-3, kernel="trace")
        return module, optimizer, torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 5)

    batches = [(*task(4, 3, cross_entropy), task(4, 3, cross_entropy)) for _ in range(5)]

    def go(optimizer: train.GaussNewton, schedule: Any, some: list[Any]) -> list[train.GaussNewtonStep]:
        found = []
        for x, y, other in some:
            found.append(optimizer.step(x, y, check=other))
            schedule.step()
        return found

    module, optimizer, schedule = begun()
    records = go(optimizer, schedule, batches)
    assert len({record.damping for record in records}) > 1
    for stop in range(5):
        first = begun()
        go(*first[1:], batches[:stop])
        states = [copy.deepcopy(each.state_dict()) for each in first]
        second = begun()
        for each, state in zip(second, states, strict=True):
            each.load_state_dict(state)
        assert go(*second[1:], batches[stop:]) == records[stop:]
        assert torch.equal(flat(second[0]), flat(module))
        assert second[1].param_groups[0]["damping"] == optimizer.param_groups[0]["damping"]
    assert schedule.get_last_lr() == [pytest.approx(0.1)]


def test_training_falls_to_the_ground() -> None:
    x, y = task(30, 1, squared)
    module = nn.Sequential(nn.Linear(4, 40), nn.Tanh(), nn.Linear(40, 1)).double()
    optimizer = train.GaussNewton(module, loss=squared, damping=1e-2)
    losses = [optimizer.step(x, y).loss for _ in range(20)]
    assert losses[-1] < 1e-6 * losses[0]


def test_auto_goes_by_the_sizes() -> None:
    for n, c, width, kernel in ((16, 2, 3, "full"), (1025, 2, 3, "trace"), (4097, 1, 1, "products")):
        module = nn.Linear(2, c * width).double() if n < 2000 else nn.Linear(2, 1).double()
        x = torch.randn(n, 2, dtype=F64)
        y = torch.zeros(n, c * width, dtype=F64) if n < 2000 else torch.zeros(n, dtype=F64)
        record = train.GaussNewton(module, loss=squared, max_products=3).step(x, y)
        assert record.kernel == kernel and (record.products > 0) == (kernel == "products")


class NoForward(torch.autograd.Function):
    """tanh, without a forward mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        return grad * (1 - x.tanh() ** 2)


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return NoForward.apply(x)  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("kernel", STEPS)
def test_operations_without_forward_mode(kernel: Any) -> None:
    x, y = task(4, 2, squared)
    module = nn.Sequential(nn.Linear(4, 3), Odd(), nn.Linear(3, 2)).double()
    expected = STEPS[kernel](module, x, y, squared, 0.1)
    optimizer = train.GaussNewton(module, loss=squared, kernel=kernel, **EXACT)
    found, _ = moved(optimizer, x, y)
    assert float((found - expected).norm()) <= 1e-8 * float(expected.norm())
