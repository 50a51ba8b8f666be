"""The training of a function: closed form, early stopping, adapted steps."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from regimes import train
from regimes.core.error import UserError
from regimes.core.loss import Loss, cross_entropy, hinge, soft_hinge, squared
from regimes.train import KernelState, Tolerance
from tests.train.kernels import F64, TIGHT, TIMES, Stepped, gram, last


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("t", [*TIMES, math.inf])
def test_is_the_solution_of_the_equation(t: float, ridge: float) -> None:
    """c' = (y - F0 - (K + ridge) c) / n, by the exponential of a matrix twice the size."""
    n = 8
    k, y, start = gram(n), torch.randn(n, dtype=F64), torch.randn(n, dtype=F64)
    state = train.kernel(k, y, ridge=ridge, start=start).at(t)
    a = k + ridge * torch.eye(n, dtype=F64)
    if t == math.inf:
        c = torch.linalg.solve(a, y - start)
    else:
        both = torch.cat([torch.cat([-a, (y - start)[:, None]], 1), torch.zeros(1, n + 1, dtype=F64)])
        c = torch.matrix_exp(both * t / n)[:n, n]
    torch.testing.assert_close(state.coefficients[:, 0], c, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(state.outputs[:, 0], start + k @ c, rtol=1e-8, atol=1e-8)
    assert state.loss == pytest.approx(float(((start + k @ c - y) ** 2).mean() / 2), abs=1e-12)
    assert state.status == ("finished" if t == math.inf else "running") and state.time == t


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["one", "classes", "full"])
def test_the_closed_form_is_what_steps_come_to(kind: str, ridge: float) -> None:
    n, c = 6, 1 if kind == "one" else 3
    k = gram(n, 3) if kind == "full" else gram(n)
    y = torch.randn(n, dtype=F64) if kind == "one" else torch.arange(n) % 3
    closed = train.kernel(k, y, ridge=ridge)
    stepped = train.kernel(k, y, loss=Stepped(), ridge=ridge, tolerance=TIGHT)
    for t in (0.0, 0.01, 0.1, 1.0, 4.0):
        state, expected = stepped.at(t), closed.at(t)
        assert expected.outputs.shape == (n, c)
        torch.testing.assert_close(state.outputs, expected.outputs, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(state.coefficients, expected.coefficients, rtol=2e-3, atol=2e-3)
        assert state.time == t or state.status != "running"


@pytest.mark.parametrize("alpha", [1e-3, 0.5, 1e6])
def test_alpha_cancels(alpha: float) -> None:
    k, y = gram(7), torch.randn(7, dtype=F64).sign()
    for t in (*TIMES, math.inf):
        torch.testing.assert_close(
            train.kernel(alpha**2 * k, y, alpha=alpha).at(t).outputs, train.kernel(k, y).at(t).outputs
        )
    ends = [
        list(train.kernel(factor**2 * k, y, alpha=factor, loss=soft_hinge, max_steps=50))
        for factor in (1.0, alpha)
    ]
    for one, other in zip(*ends, strict=True):
        assert one.time == other.time and one.step == other.step
        torch.testing.assert_close(one.outputs, other.outputs)


def test_a_shared_kernel_is_a_full_one_that_is_a_multiple_of_the_identity() -> None:
    k, y = gram(6, others=4), torch.arange(6) % 3
    full = torch.einsum("ij,ab->ijab", k, torch.eye(3, dtype=F64))
    diagonal = k[..., None].expand(-1, -1, 3)
    for loss, t in itertools.product((squared, cross_entropy), (0.5, 20.0)):
        states = [train.kernel(each[:6], y, loss=loss).at(t) for each in (k, full, diagonal)]
        tests = [state.predict(each[6:]) for state, each in zip(states, (k, full, diagonal), strict=True)]
        for state, test in zip(states[1:], tests[1:], strict=True):
            torch.testing.assert_close(state.outputs, states[0].outputs)
            torch.testing.assert_close(test, tests[0])


def test_outputs_with_a_kernel_each_do_not_know_of_each_other() -> None:
    k, y = torch.stack([gram(6, seed=seed) for seed in (1, 2)], -1), torch.randn(6, 2, dtype=F64)
    state = train.kernel(k, y).at(3.0)
    for a in range(2):
        alone = train.kernel(k[..., a], y[:, a]).at(3.0)
        torch.testing.assert_close(state.outputs[:, a], alone.outputs[:, 0])


def test_predictions_on_the_training_set_are_the_outputs() -> None:
    y, start = torch.arange(6) % 3, torch.randn(6, 3, dtype=F64)
    for k, loss in itertools.product((gram(6), gram(6, 3)), (squared, cross_entropy)):
        state = train.kernel(k, y, loss=loss, start=start).at(2.0)
        torch.testing.assert_close(state.predict(k, start), state.outputs)
        torch.testing.assert_close(state.predict(k) + start, state.outputs)


def test_a_singular_kernel_gives_the_solution_of_least_norm() -> None:
    half = gram(5)
    k = half.repeat(2, 2)  # each point twice
    y = torch.randn(10, dtype=F64)
    state = train.kernel(k, y).at(math.inf)
    assert float(train.kernel(k, y).at(1e12).coefficients.abs().max()) < 1e3
    torch.testing.assert_close(state.coefficients[:, 0], torch.linalg.pinv(k) @ y)
    torch.testing.assert_close(state.outputs[:5, 0], (y[:5] + y[5:]) / 2)
    nothing = train.kernel(torch.zeros(3, 3), torch.ones(3))
    assert not last(nothing).outputs.any() and not last(nothing).coefficients.any()


def test_ridge_alone_takes_the_same_from_a_cholesky_factor() -> None:
    for k in (gram(9), gram(9, 2), torch.stack([gram(9), 2 * gram(9, seed=1)], -1)):
        y = torch.arange(9) % 2
        path = train.kernel(k, y, ridge=0.1)
        by_factor = path.at(math.inf)
        path.at(1.0)
        by_eigenvectors = path.at(math.inf)
        torch.testing.assert_close(by_factor.coefficients, by_eigenvectors.coefficients)
        torch.testing.assert_close(by_factor.outputs, by_eigenvectors.outputs)
    with pytest.raises(UserError, match="`ridge`: got 1e-30, too little for K"):
        train.kernel(gram(5).repeat(2, 2), torch.randn(10), ridge=1e-30).at(math.inf)


@pytest.mark.parametrize("loss", [squared, cross_entropy])
def test_early_stopping_is_the_least_over_the_path(loss: Loss) -> None:
    generator = torch.Generator().manual_seed(3)
    k = gram(20, others=30, seed=3)
    features = torch.randn(50, 2, generator=generator, dtype=F64)
    noisy = (features[:, 0] + 2 * torch.randn(50, generator=generator, dtype=F64)).sign()
    k = k + torch.cat([features[:, :1]]) @ features[:20, :1].T
    path = train.kernel(k[:20], noisy[:20], loss=loss, max_steps=300)
    found = path.best(k[20:], noisy[20:])

    def value(state: KernelState) -> float:
        return float(loss.per_sample(state.predict(k[20:]), noisy[20:]).mean())

    assert 0 < found.time < last(path).time
    assert value(found) == min(value(state) for state in path)
    if loss is squared:
        fine = min(value(path.at(found.time * 1.003**i)) for i in range(-1000, 1000))
        assert value(found) <= fine * (1 + 1e-3)


def test_times_of_a_closed_form_hold_its_whole_course() -> None:
    k, y = gram(12), torch.randn(12, dtype=F64)
    states = list(train.kernel(k, y))
    assert states[0].time == 0 and states[-1].time == math.inf and states[-1].status == "finished"
    assert all(a.time < b.time for a, b in itertools.pairwise(states))
    # ||F - y|| falls; that of the computed F, two products with an orthogonal basis, is known up to their rounding
    rounding = 2 * len(y) * torch.finfo(F64).eps * float(y.norm())
    sizes = [math.sqrt(2 * len(y) * state.loss) for state in states]
    assert all(b <= a + rounding for a, b in itertools.pairwise(sizes))
    assert max((a.outputs - b.outputs).abs().max() for a, b in itertools.pairwise(states)) < 0.1
    torch.testing.assert_close(states[-2].outputs, states[-1].outputs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", [soft_hinge, cross_entropy])
def test_a_flow_ends_where_every_margin_is_met(loss: Loss) -> None:
    k, y = gram(10), torch.randn(10, dtype=F64).sign()
    *before, end = train.kernel(k, y, loss=loss)
    assert end.status == "finished" and bool((end.outputs[:, 0] * y >= 1).all())
    assert all(state.status == "running" and bool((state.outputs[:, 0] * y < 1).any()) for state in before)
    assert all(
        float((a.outputs - b.outputs).abs().max()) < 0.1 for a, b in itertools.pairwise([*before, end])
    )
    assert (
        train.kernel(k, y, loss=loss).at(math.inf).time == train.kernel(k, y, loss=loss).at(2 * end.time).time
    )


def test_the_plain_hinge_needs_a_tolerance_for_its_jumps() -> None:
    k, y = gram(10), torch.randn(10, dtype=F64).sign()
    assert last(train.kernel(k, y, loss=hinge, max_steps=500)).status != "finished"
    assert last(train.kernel(k, y, loss=hinge, tolerance=Tolerance(gradient=math.inf))).status == "finished"


@pytest.mark.parametrize("loss", [hinge, soft_hinge, cross_entropy])
def test_a_function_that_cannot_move_is_at_its_end(loss: Loss) -> None:
    """A kernel of zeros meets no margin, at no time."""
    (end,) = train.kernel(torch.zeros(3, 3), torch.ones(3), loss=loss)
    assert end.status == "finished" and end.step == 0 and not end.outputs.any()
    assert train.kernel(torch.zeros(3, 3), torch.ones(3), loss=loss).at(math.inf).status == "finished"


def test_limits_of_a_flow() -> None:
    k, y = gram(10), torch.randn(10, dtype=F64).sign()
    end = last(train.kernel(k, y, loss=soft_hinge, max_steps=3))
    assert end.step == 3 and end.status == "stopped"
    assert last(train.kernel(k, y, loss=soft_hinge, max_seconds=0)).status == "stopped"


def test_between_two_steps_a_flow_is_straight() -> None:
    k, y = gram(10), torch.randn(10, dtype=F64).sign()
    path = train.kernel(k, y, loss=soft_hinge)
    first, second = itertools.islice(path, 4, 6)
    half = path.at((first.time + second.time) / 2)
    torch.testing.assert_close(half.outputs, (first.outputs + second.outputs) / 2)
    torch.testing.assert_close(half.outputs, k @ half.coefficients)
    assert path.at(first.time).step == first.step


@pytest.mark.parametrize("loss", [soft_hinge, cross_entropy])
def test_with_a_ridge_a_flow_ends_where_the_gradient_vanishes(loss: Loss) -> None:
    k, y, ridge = gram(6), torch.randn(6, dtype=F64).sign(), 0.5
    end = last(train.kernel(k, y, loss=loss, ridge=ridge))
    assert end.status == "finished" and bool((end.outputs[:, 0] * y < 1).any())
    leaf = end.outputs.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss.per_sample(leaf, y).sum(), leaf)
    torch.testing.assert_close(end.coefficients, -slope / ridge, rtol=1e-4, atol=1e-5)
