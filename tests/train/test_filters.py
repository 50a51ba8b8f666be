"""The filters of K steps and of damping: their definitions, where they agree, and how far apart they can be."""

from __future__ import annotations

import pytest
import torch

from regimes import train
from regimes.core.error import UserError

F64 = torch.float64


@pytest.mark.parametrize("steps", [0, 1, 2, 7, 1000])
def test_are_what_steps_and_a_damped_solve_fit(steps: int) -> None:
    """On a random least-squares problem, along each eigenvector."""
    generator = torch.Generator().manual_seed(steps)
    j = torch.randn(6, 9, generator=generator, dtype=F64)
    k, vectors = torch.linalg.eigh(j @ j.T / 6)
    y, lr, f = torch.randn(6, generator=generator, dtype=F64), 0.8 / float(k.max()), torch.zeros(6, dtype=F64)
    for _ in range(steps):
        f = f - lr * (j @ j.T / 6) @ (f - y)
    torch.testing.assert_close(vectors.T @ f, train.descent_filter(k, steps, lr) * (vectors.T @ y))
    damped = j @ j.T @ torch.linalg.solve(j @ j.T + 6 * 0.3 * torch.eye(6, dtype=F64), y)
    torch.testing.assert_close(vectors.T @ damped, train.damping_filter(k, 0.3) * (vectors.T @ y))


@pytest.mark.parametrize("steps", [1, 2, 10, 1000, 10**6])
def test_the_gap_is_below_its_bound_and_the_bound_vanishes_at_small_eigenvalues(steps: int) -> None:
    k = torch.logspace(-12, 0.30102, 400, dtype=F64)
    for lr in (1.0, 0.5, 0.01):
        descent, damping = train.descent_filter(k, steps, lr), train.damping_filter(k, 1 / (lr * steps))
        bound = train.filter_gap(k, steps, lr)
        assert bool(((descent - damping).abs() <= bound + 1e-12).all())
        below = lr * k <= 1
        assert bool((descent >= damping - 1e-12)[below].all()) and float(bound[below].max()) <= 0.5
        few = lr * k * steps < 1e-3
        torch.testing.assert_close(descent[few], damping[few], rtol=2e-3, atol=0)
        assert bool((bound[few] <= (lr * k * steps)[few] ** 2).all())


def test_small_shares_have_all_digits() -> None:
    k = torch.tensor([1e-18, 1e-12], dtype=F64)
    torch.testing.assert_close(train.descent_filter(k, 10, 1.0), 10 * k, rtol=1e-10, atol=0)


def test_mistakes() -> None:
    k = torch.tensor([0.1, 1.0])
    for call, names in (
        (lambda: train.descent_filter(k, 3, 2.5), "`lr`: got 2.5, above 2"),
        (lambda: train.descent_filter(k, -1, 0.5), "`steps`"),
        (lambda: train.descent_filter(torch.tensor([-1.0, 1.0]), 3, 0.5), "`spectrum`"),
        (lambda: train.descent_filter(torch.tensor([torch.inf]), 3, 0.5), "`spectrum`"),
        (lambda: train.damping_filter(k, 0.0), "`damping`"),
        (lambda: train.filter_gap(k, 0, 0.5), "`steps`"),
    ):
        with pytest.raises(UserError, match=names):
            call()
