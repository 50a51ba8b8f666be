"""A kernel as a linear map: operators, and kernels that are none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from torch import Tensor

from regimes import train
from regimes.core.error import UserError
from regimes.core.loss import Loss, cross_entropy, soft_hinge, squared
from tests.train.kernels import F64, flat, gram


@pytest.mark.parametrize("ridge", [0.0, 0.2])
def test_an_operator_is_as_good_as_the_kernel(ridge: float) -> None:
    k, y = gram(12, 3), torch.arange(12) % 3
    operator = aslinearoperator(flat(k).numpy())
    for loss in (squared, cross_entropy):
        dense, other = (train.kernel(each, y, loss=loss, ridge=ridge) for each in (k, operator))
        for t in (0.0, 1.0, 50.0, *((math.inf,) if loss is squared else ())):
            torch.testing.assert_close(other.at(t).outputs, dense.at(t).outputs, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(
                other.at(t).coefficients, dense.at(t).coefficients, rtol=1e-5, atol=1e-5
            )
            assert other.at(t).predict(k).shape == (12, 3)


class Counted(LinearOperator):
    """A matrix that counts its products."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__(np.dtype(np.float64), tuple(matrix.shape))
        self.matrix, self.products = matrix.numpy(), 0

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        self.products += 1
        return self.matrix @ x


def test_conjugate_gradients_need_few_products() -> None:
    """As many as the roots of the condition number say, and no more than different eigenvalues."""
    n = 200
    q = torch.linalg.qr(torch.randn(n, n, dtype=F64))[0]
    y = torch.randn(n, dtype=F64)
    for values, most in ((torch.linspace(1, 4, n), 40), (torch.arange(n) % 5 + 1.0, 10)):
        k = (q * values.double()) @ q.T
        operator = Counted((k + k.T) / 2)
        path = train.kernel(operator, y)
        for t in (1.0, 100.0, math.inf):
            torch.testing.assert_close(
                path.at(t).outputs, train.kernel(k, y).at(t).outputs, rtol=1e-6, atol=1e-6
            )
        assert operator.products <= most


def test_too_few_products_are_enough_for_early_times_only() -> None:
    n = 60
    q = torch.linalg.qr(torch.randn(n, n, dtype=F64))[0]
    k = (q * torch.logspace(0, -6, n, dtype=F64)) @ q.T
    y = torch.randn(n, dtype=F64)
    path = train.kernel(aslinearoperator(((k + k.T) / 2).numpy()), y, max_steps=12)
    torch.testing.assert_close(path.at(5.0).outputs, train.kernel(k, y).at(5.0).outputs, rtol=1e-6, atol=1e-6)
    with pytest.raises(
        UserError, match=r"`max_steps`: 12 products .* residual of .* at t = inf, expected 1e-08"
    ):
        path.at(math.inf)


def test_a_singular_operator() -> None:
    k, y = gram(5).repeat(2, 2), torch.randn(10, dtype=F64)
    path = train.kernel(aslinearoperator(k.numpy()), torch.cat([y[:5], y[:5]]))
    torch.testing.assert_close(path.at(math.inf).outputs[:5, 0], y[:5], rtol=1e-6, atol=1e-6)
    still = train.kernel(aslinearoperator(k.numpy()), y, start=y)
    assert torch.equal(still.at(math.inf).outputs[:, 0], y)


def test_a_kernel_that_is_none_is_refused_by_how_much() -> None:
    values = torch.tensor([1.0, 0.5, -0.25], dtype=F64)
    q = torch.linalg.qr(torch.randn(3, 3, dtype=F64))[0]
    k = (q * values) @ q.T
    y = torch.ones(3, dtype=F64)
    negative = (
        r"`kernel`: is not positive semi-definite: its smallest eigenvalue is -2\.5e-01 times its largest"
    )
    for loss in (squared, soft_hinge):
        with pytest.raises(UserError, match=negative):
            train.kernel((k + k.T) / 2, y, loss=loss)
    with pytest.raises(UserError, match=negative):
        train.kernel(aslinearoperator(((k + k.T) / 2).numpy()), q @ y).at(1.0)
    skew = gram(3)
    skew[0, 1] += 0.5 * skew.abs().max()
    with pytest.raises(UserError, match=r"`kernel`: is not symmetric, by 5\.0e-01 of its largest entry"):
        train.kernel(skew, y)
    lopsided = gram(40) + torch.triu(torch.randn(40, 40, dtype=F64))
    with pytest.raises(UserError, match="`kernel`: is not symmetric, by"):
        train.kernel(aslinearoperator(lopsided.numpy()), torch.randn(40, dtype=F64)).at(1.0)


@pytest.mark.parametrize("loss", [soft_hinge, cross_entropy])
def test_an_operator_that_is_no_kernel_starts_no_flow(loss: Loss) -> None:
    """A flow uphill looks like one: the operator is looked at before it is used."""
    k, y = gram(12), torch.randn(12, dtype=F64).sign()
    skew = k + torch.triu(k, 1)
    negative = k - 0.5 * torch.linalg.eigvalsh(k)[-1] * torch.eye(12, dtype=F64)
    wrong = [(skew, "is not symmetric, by"), (negative, "is not positive semi-definite: its smallest")]
    for matrix, message in [*wrong, (k * math.nan, "its product with finite numbers is not finite")]:
        with pytest.raises(UserError, match=f"`kernel`: {message}"):
            next(iter(train.kernel(aslinearoperator(matrix.numpy()), y, loss=loss)))
    operator = Counted(k)
    path = train.kernel(operator, y, loss=loss, max_steps=0)
    for _ in range(3):
        list(path)
    assert operator.products <= 12 + 3


def test_rounding_is_no_mistake() -> None:
    """Kernels of less rank than points, in single precision."""
    for seed in range(5):
        features = torch.randn(60, 7, generator=torch.Generator().manual_seed(seed))
        k = features @ features.T
        state = train.kernel(k, torch.randn(60, generator=torch.Generator().manual_seed(seed))).at(math.inf)
        assert float(state.coefficients.abs().max()) < 10
    with pytest.raises(UserError, match="beyond rounding"):
        train.kernel(k - 0.01 * k.diagonal().max() * torch.eye(60), torch.ones(60))


def test_an_operator_in_single_precision_is_solved_as_far_as_its_digits_go() -> None:
    """Its small eigenvalues are rounding: early times need none of them, the end needs all, and says so."""
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(120, 120, generator=generator, dtype=torch.float64))
    values = 120 * torch.arange(1.0, 121, dtype=torch.float64) ** -3
    k = (basis * values) @ basis.T
    single = k.float().numpy()
    operator = LinearOperator((120, 120), matvec=lambda v: single @ v.astype(np.float32), dtype=np.float32)  # pyright: ignore[reportCallIssue]
    y = torch.randn(120, generator=generator, dtype=torch.float64)
    exact, path = train.kernel(k, y), train.kernel(operator, y)
    for t in (1.0, 10.0, 100.0):
        here, there = exact.at(t).outputs, path.at(t).outputs
        assert float((here - there).norm()) <= 1e-3 * float(here.norm())
    with pytest.raises(UserError, match="double precision"):
        path.at(math.inf)
