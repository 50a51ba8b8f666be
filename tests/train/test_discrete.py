"""Gradient descent with momentum in function space, all steps at once, against steps one by one in plain float64."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.sparse.linalg import aslinearoperator
from torch import Tensor

from regimes import control, measure, models, train
from regimes.core.error import UserError
from regimes.core.loss import Loss, Squared, cross_entropy, squared
from regimes.train.discrete import Motion, Stepping, carried, in_closed_form, step_by_step
from regimes.train.frozen_kernel import KernelMatrix
from tests.train.kernels import F64, gram


def features(samples: int, outputs: int, parameters: int, seed: int = 0) -> Tensor:
    """J, (n c, p)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples * outputs, parameters, generator=generator, dtype=F64) / parameters**0.5


def plain(
    jacobian: Tensor, y: Tensor, rule: Stepping, w: Tensor, v: Tensor, steps: int, loss: Loss = squared
) -> tuple[Tensor, Tensor]:
    """w and v after steps of the explicit linear model from w0 = w, where F = 0; as torch.optim.SGD takes them."""
    first = w
    for _ in range(steps):
        outputs = (jacobian @ (w - first)).view(len(y), -1).requires_grad_()
        half = isinstance(loss, Squared)
        total = (outputs - y).square().sum() / 2 if half else loss.per_sample(outputs, y).sum()
        (u,) = torch.autograd.grad(total, outputs)
        g = jacobian.T @ u.reshape(-1) + rule.ridge * (w - first)
        v = rule.momentum * v + rule.speed * g
        w = w - rule.lr * v
    return w, v


CASES = [(7, 1, 30), (7, 3, 50), (3, 3, 40), (5, 5, 60), (4, 2, 5), (1, 1, 1)]


@pytest.mark.parametrize("shape", CASES)
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_is_what_steps_do_to_the_parameters(
    shape: tuple[int, int, int], momentum: float, ridge: float
) -> None:
    """From rest and with a velocity of its own; w and v by one product with J^T; also where J has a null space."""
    n, c, p = shape
    jacobian = features(*shape)
    kernel = KernelMatrix((jacobian @ jacobian.T).view(n, c, n, c).permute(0, 2, 1, 3))
    y = torch.randn(n, c, generator=torch.Generator().manual_seed(1), dtype=F64)
    rule = Stepping(0.9, momentum, 1 / n, ridge)
    w = torch.zeros(p, dtype=F64)
    for v in (torch.zeros_like(w), torch.linspace(-1, 1, p, dtype=F64)):
        motion = Motion.start(torch.zeros(n, c, dtype=F64), (jacobian @ v).view(n, c))
        for steps in (0, 1, 2, 40):
            # The ridge pulls at all of w; what the velocity carries outside the range of J^T is none of K's.
            if ridge and bool(v.any()):
                continue
            expected = plain(jacobian, y, rule, w, v, steps)
            for found in (
                in_closed_form(kernel, y, rule, motion, steps),
                step_by_step(kernel, lambda outputs: outputs - y, rule, motion, steps),
            ):
                mine = -rule.lr * carried(steps, momentum) * v + jacobian.T @ found.c.reshape(-1)
                speed = momentum**steps * v + jacobian.T @ found.b.reshape(-1)
                torch.testing.assert_close(mine, expected[0], rtol=1e-9, atol=1e-11)
                torch.testing.assert_close(speed, expected[1], rtol=1e-9, atol=1e-11)
                torch.testing.assert_close(found.outputs.reshape(-1), jacobian @ mine, rtol=1e-9, atol=1e-11)


def test_critical_damping_and_many_steps() -> None:
    """Where both roots of the recurrence are one: (1 - sqrt(mu))^2 = eta s k; and after a million steps."""
    momentum, n = 0.81, 2
    k = torch.diag(torch.tensor([1.0, 0.25], dtype=F64))
    rule = Stepping((1 - momentum**0.5) ** 2 * n, momentum, 1 / n)
    y, motion = torch.ones(n, 1, dtype=F64), Motion.start(torch.zeros(n, 1, dtype=F64))
    for steps in (1, 17, 1000):
        found = in_closed_form(KernelMatrix(k), y, rule, motion, steps)
        expected = step_by_step(KernelMatrix(k), lambda outputs: outputs - y, rule, motion, steps)
        torch.testing.assert_close(found.outputs, expected.outputs, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(found.c, expected.c, rtol=1e-11, atol=1e-13)
    ended = in_closed_form(KernelMatrix(k), y, rule, motion, 10**6)
    torch.testing.assert_close(ended.outputs, y)
    torch.testing.assert_close(k @ ended.c, y)


@pytest.mark.parametrize("outputs", [0, 1, 4])
def test_a_path_after_steps_is_a_descent_of_the_lazy_network(outputs: int) -> None:
    """``train.kernel(...).after`` for each form of a kernel, an operator, and a start, against plain steps."""
    n, c = 4, max(outputs, 1)
    k = gram(n, outputs)
    full = k if k.dim() == 4 else torch.einsum("ij,ab->ijab", k, torch.eye(c, dtype=F64))
    y, start = torch.randn(n, c, dtype=F64), torch.randn(n, c, dtype=F64)
    operator = aslinearoperator(full.permute(0, 2, 1, 3).reshape(n * c, n * c).numpy())
    for momentum in (0.0, 0.9):
        c_plain, b, f = torch.zeros(n, c, dtype=F64), torch.zeros(n, c, dtype=F64), start
        for _ in range(25):
            b = momentum * b + (f - y) / n
            c_plain = c_plain - 0.3 * b
            f = start + torch.einsum("ijab,jb->ia", full, c_plain)
        for kernel in (k, full, operator):
            path = train.kernel(kernel, y, start=start)
            found = path.after(25, lr=0.3, momentum=momentum)
            torch.testing.assert_close(found.outputs, f)
            torch.testing.assert_close(found.coefficients, c_plain)
            assert (found.step, found.time) == (25, pytest.approx(7.5))
            torch.testing.assert_close(path.after(0, lr=0.3).outputs, start)


def test_other_losses_take_their_steps_in_function_space() -> None:
    n, c, p = 6, 3, 20
    jacobian, y = features(n, c, p), torch.arange(n) % c
    k = (jacobian @ jacobian.T).view(n, c, n, c).permute(0, 2, 1, 3)
    rule, w = Stepping(0.7, 0.9, 1 / n), torch.zeros(p, dtype=F64)
    expected, _ = plain(jacobian, y, rule, w, w, 30, cross_entropy)
    found = train.kernel(k, y, loss=cross_entropy).after(30, lr=0.7, momentum=0.9)
    torch.testing.assert_close(jacobian.T @ found.coefficients.reshape(-1), expected)


def test_many_small_steps_are_the_flow() -> None:
    k, y = gram(5), torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0], dtype=F64)
    path = train.kernel(k, y)
    torch.testing.assert_close(
        path.after(10**5, lr=1e-4).outputs, path.at(10.0).outputs, rtol=1e-4, atol=1e-4
    )


def test_a_rate_beyond_the_bound_is_refused_with_both_numbers() -> None:
    k, y = torch.diag(torch.tensor([4.0, 1.0])), torch.ones(2)
    path = train.kernel(k, y)
    assert math.isfinite(path.after(1, lr=1.1).loss)  # one step goes wherever it goes
    path.after(2, lr=1.0)
    with pytest.raises(UserError, match=r"`lr`: got 1.1, above 1 = 2 \(1 \+ momentum\)"):
        path.after(2, lr=1.1)
    path.after(2, lr=1.4, momentum=0.5)
    with pytest.raises(UserError, match=r"got 1.6, above 1.5"):
        path.after(2, lr=1.6, momentum=0.5)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"steps": -1, "lr": 0.1}, "`steps`"),
        ({"steps": True, "lr": 0.1}, "`steps`"),
        ({"steps": 2, "lr": 0.0}, "`lr`"),
        ({"steps": 2, "lr": math.nan}, "`lr`"),
        ({"steps": 2, "lr": 0.1, "momentum": 1.0}, "`momentum`"),
    ],
)
def test_mistakes(arguments: dict[str, float], names: str) -> None:
    path = train.kernel(gram(3), torch.ones(3, dtype=F64))
    with pytest.raises(UserError, match=names):
        path.after(**arguments)  # pyright: ignore[reportArgumentType]


def test_a_network_far_in_the_lazy_regime_takes_these_steps() -> None:
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    y = x[:, 0].sign()
    net = models.mlp(3, 30, 1)
    run = [*train.descent(control.scale(net, 1e5), x, y, loss=squared, lr=0.5, momentum=0.9, epochs=20)]
    rates = {name.rpartition(".")[0]: rate for name, rate in control.rates(net).items()}
    k = torch.stack([rates[name] * each for name, each in measure.ntk(net, x, by_layer=True).items()]).sum(0)
    found = train.kernel(k, y).after(20, lr=0.5, momentum=0.9)
    assert run[-1].outputs is not None
    torch.testing.assert_close(found.outputs, run[-1].outputs, rtol=1e-3, atol=1e-3)
