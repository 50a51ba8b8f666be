"""Activations: normalised, exact, and differentiable in every mode of torch."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from regimes.core.activation import ACTIVATIONS, Softplus

# torch itself calls what it has deprecated, the first time forward mode is used
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

SIGMA = Softplus()


def formula(x: Tensor) -> Tensor:
    return 1.404 / 5 * torch.logaddexp(5 * x, torch.zeros((), dtype=x.dtype))


@pytest.mark.parametrize(("name", "error"), [("softplus", 1e-3), ("relu", 1e-3), ("tanh", 1e-10)])
def test_the_second_moment_is_one(name: str, error: float) -> None:
    """E sigma(z)^2 = 1, z ~ N(0, 1), by quadrature; the published a = 1.404 has four digits."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(180)
    values = ACTIVATIONS[name]()(torch.tensor(nodes)).square()
    moment = float(values @ torch.tensor(weights)) / math.sqrt(2 * math.pi)
    assert moment == pytest.approx(1.0, abs=error)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_softplus_is_its_formula_everywhere(dtype: torch.dtype) -> None:
    """Among moderate entries alone, and beside large ones."""
    moderate = torch.linspace(-200, 7, 40001, dtype=dtype)
    both = torch.cat([moderate, torch.linspace(7, 1e4, 999, dtype=dtype)])
    for x in (moderate, both, both.view(10, 5, -1), both.view(8, 5125).mT):
        tolerance = 1e-13 if dtype == torch.float64 else 1e-6
        torch.testing.assert_close(SIGMA(x), formula(x), rtol=tolerance, atol=tolerance)
    assert float(SIGMA(torch.tensor(5e4, dtype=dtype))) == pytest.approx(1.404 * 5e4)


def test_bits_do_not_depend_on_the_company_of_an_entry() -> None:
    x = torch.empty(20000, dtype=torch.float64).uniform_(-10, 15.9)
    wild = torch.cat([x, torch.full((7,), 1e5, dtype=torch.float64)])
    assert torch.equal(SIGMA(x), SIGMA(wild)[: len(x)])
    assert torch.equal(SIGMA(x)[13:], SIGMA(x[13:].clone()))


def test_nan_and_infinity_stay() -> None:
    x = torch.tensor([math.nan, math.inf, -math.inf, 0.0], dtype=torch.float64)
    found = SIGMA(x)
    assert math.isnan(found[0]) and found[1] == math.inf and found[2] == 0
    assert SIGMA(torch.zeros(0, 3)).shape == (0, 3)


def test_first_and_second_derivatives() -> None:
    """In reverse, forward, reverse over reverse and forward over reverse mode."""
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(SIGMA, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(SIGMA, x)
    assert torch.autograd.gradgradcheck(SIGMA, x, check_fwd_over_rev=True)


def test_transforms_of_torch() -> None:
    x = torch.randn(6, 5, dtype=torch.float64)
    for dims in (0, 1):
        torch.testing.assert_close(torch.vmap(SIGMA, dims, dims)(x), formula(x))

    def total(sigma: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda v: (sigma(v) ** 2).sum()

    v = x[0]
    torch.testing.assert_close(torch.func.grad(total(SIGMA))(v), torch.func.grad(total(formula))(v))
    torch.testing.assert_close(torch.func.hessian(total(SIGMA))(v), torch.func.hessian(total(formula))(v))
    jacobians = [torch.func.vmap(torch.func.jacrev(sigma))(x) for sigma in (SIGMA, formula)]
    torch.testing.assert_close(*jacobians)
    products = [torch.func.jvp(sigma, (x,), (x.cos(),)) for sigma in (SIGMA, formula)]
    torch.testing.assert_close(*products)


def test_the_slope_does_not_overflow() -> None:
    x = torch.tensor([-1e4, -50.0, 50.0, 1e4], dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(SIGMA(x).sum(), x)
    torch.testing.assert_close(g, torch.tensor([0.0, 0.0, 1.404, 1.404], dtype=torch.float64))


@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_the_others_are_scaled_functions_of_torch(name: str) -> None:
    x = torch.randn(100, dtype=torch.float64)
    plain = {
        "relu": lambda x: math.sqrt(2) * functional.relu(x),
        "tanh": lambda x: 1.5925374197228312 * x.tanh(),
    }
    torch.testing.assert_close(ACTIVATIONS[name]()(x), plain[name](x))
