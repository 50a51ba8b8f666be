"""The factors of the curvature, and solutions by them, also where a network is as sure as numbers allow."""

from __future__ import annotations

import itertools

import mpmath
import pytest
import torch
from torch import Tensor

from regimes.core.loss import CrossEntropy, Squared, cross_entropy, squared
from regimes.train.newton.curvature import Curvature, curvature_of
from regimes.train.newton.solve import by_factor, by_products
from tests.train.newton import dense
from tests.train.newton.dense import F64

SIZES = (0.1, 1.0, 30.0, 300.0)


def drawn(size: float, n: int, c: int) -> tuple[Tensor, Tensor]:
    """Logits of that size, and targets: right and wrong ones."""
    y = torch.randint(c, (n,)) if c > 1 else torch.randn(n, dtype=F64).sign()
    return size * torch.randn(n, c, dtype=F64), y


def factor(curvature: Curvature) -> Tensor:
    """S, (n c, m), column by column."""
    n, c = curvature.slope.shape
    m = len(curvature.whitened(torch.eye(n * c, dtype=F64))[1])
    return torch.stack([curvature.coloured(row).flatten() for row in torch.eye(m, dtype=F64)], 1)


@pytest.mark.parametrize("size", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("c", [1, 2, 3])
def test_the_factor_is_that_of_the_curvature(c: int, size: float) -> None:
    """S S^T = H, S h = g, S^T K S, and H v; c = n among the sizes."""
    outputs, y = drawn(size, 3, c)
    k = torch.randn(3 * c, 3 * c, dtype=F64)
    k = k @ k.T
    losses: tuple[Squared | CrossEntropy, ...] = (squared, cross_entropy)
    for loss in losses:
        wanted = y if loss is cross_entropy else torch.randn(3, c, dtype=F64)
        found = curvature_of(loss, outputs, wanted)
        g, h = dense.curvature(loss, outputs, wanted)
        s = factor(found)
        white, right = found.whitened(k.clone())
        v = torch.randn(3, c, dtype=F64)
        for one, other in (
            (found.slope.flatten(), g),
            (s @ s.T, h),
            (s @ right, g),
            (white, s.T @ k @ s),
            (found.times(v).flatten(), h @ v.flatten()),
        ):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def exact(outputs: Tensor, y: Tensor, k: Tensor, damping: float) -> Tensor:
    """u with (H K + n lambda) u = g, in 900 digits."""
    with mpmath.workdps(900):
        n, c = outputs.shape
        g, h = mpmath.zeros(n * c, 1), mpmath.zeros(n * c)
        for i in range(n):
            e = [mpmath.exp(mpmath.mpf(float(f))) for f in outputs[i]]
            p = [each / mpmath.fsum(e) for each in e]
            for a in range(c):
                g[i * c + a] = p[a] - (1 if a == int(y[i]) else 0)
                for b in range(c):
                    h[i * c + a, i * c + b] = (p[a] if a == b else 0) - p[a] * p[b]
        matrix = h * mpmath.matrix(k.tolist()) + n * mpmath.mpf(damping) * mpmath.eye(n * c)
        return torch.tensor([float(each) for each in mpmath.lu_solve(matrix, g)], dtype=F64)


@pytest.mark.parametrize("damping", [1e-1, 1e-6, 1e-12])
@pytest.mark.parametrize("size", SIZES)
def test_a_sure_network_and_little_damping(size: float, damping: float) -> None:
    """Against 900 digits, in the norm of the step, u . K u; Woodbury's form loses what the damping is small by."""
    outputs, y = drawn(size, 3, 3)
    j = torch.randn(9, 12, dtype=F64)
    k = j @ j.T
    expected = exact(outputs, y, k, damping)
    found = by_factor(k.clone(), curvature_of(cross_entropy, outputs, y), damping).u.flatten()
    step = j.T @ expected
    assert float((j.T @ found - step).norm()) <= 1e-7 * float(step.norm())


def test_conjugate_gradients_stop_where_they_are_told() -> None:
    """By the number of products, each of which lowers the quadratic model; and by the residual."""
    outputs, y = drawn(1.0, 6, 3)
    j = torch.randn(18, 30, dtype=F64)
    k, curvature = j @ j.T, curvature_of(cross_entropy, outputs, y)
    g, h = dense.curvature(cross_entropy, outputs, y)
    matrix, gradient = j.T @ h @ j + 6 * 0.01 * torch.eye(30, dtype=F64), j.T @ g

    def value(limit: int) -> float:
        found = by_products(lambda v: (k @ v.flatten()).view_as(v), curvature, 0.01, 1e-9, limit)
        assert found.products <= limit
        step = -j.T @ found.u.flatten()
        return float(gradient @ step + step @ matrix @ step / 2)

    values = [value(limit) for limit in range(1, 12)]
    assert all(b < a for a, b in itertools.pairwise(values))
    found = by_products(lambda v: (k @ v.flatten()).view_as(v), curvature, 0.01, 1e-3, 100)
    left = j.T @ (g - (h @ k + 0.06 * torch.eye(18, dtype=F64)) @ found.u.flatten())
    assert float(left.norm() / gradient.norm()) == pytest.approx(found.residual, rel=1e-6)
    assert found.residual <= 1e-3


def test_the_damping_rises_until_a_batch_can_be_solved() -> None:
    """A kernel with a negative eigenvalue of rounding size, and no damping to speak of."""
    k = torch.diag(torch.tensor([1.0, -1e-9, 1.0], dtype=F64))
    found = by_factor(k.clone(), curvature_of(squared, torch.ones(3, 1, dtype=F64), torch.zeros(3, 1)), 1e-11)
    assert found.raised == 2 and found.damping == pytest.approx(1e-9)
