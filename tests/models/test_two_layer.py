"""Two-layer networks: sums of neurons, their scalings, and homogeneity."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from regimes import measure, models
from regimes.core.error import UserError
from regimes.core.layer import is_stackable

X = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PLAIN = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "softplus": lambda z: functional.softplus(z, beta=5, threshold=1000),
}


def neurons(net: torch.nn.Module) -> tuple[Tensor, Tensor]:
    b, a = (p.detach() for p in net.parameters())
    return a[0], b


@pytest.mark.parametrize("activation", list(PLAIN))
@pytest.mark.parametrize(
    ("scaling", "factor"),
    [("1", 1.0), ("1/sqrt(m)", 12**-0.5), ("1/m", 1 / 12), (0, 1.0), (-0.25, 12**-0.25)],
)
def test_is_its_formula(scaling: str | float, factor: float, activation: str) -> None:
    net = models.two_layer(4, 12, scaling=scaling, activation=activation, tau=0.7, seed=2)
    a, b = neurons(net)
    wanted = sum(a[j] * PLAIN[activation](X @ b[j]) for j in range(12)) * factor
    torch.testing.assert_close(net(X)[:, 0].detach(), wanted)
    assert is_stackable(net)


def test_neurons_are_drawn_with_standard_deviation_tau() -> None:
    for tau in (0.1, 2.0):
        for part in neurons(models.two_layer(20, 5000, tau=tau)):
            assert part.std().item() == pytest.approx(tau, rel=5 / math.sqrt(2 * part.numel()))
            assert abs(part.mean().item()) < 5 * tau / math.sqrt(part.numel())


def test_tau_is_an_output_scale_of_tau_squared() -> None:
    """2-homogeneous: f(tau w, x) = tau^2 f(w, x), and the kernel grows with tau^2."""
    one, large = (models.two_layer(4, 12, scaling="1", tau=tau) for tau in (1.0, 3.0))
    torch.testing.assert_close(large(X), 9 * one(X))
    torch.testing.assert_close(measure.ntk(large, X), 9 * measure.ntk(one, X))


@pytest.mark.parametrize(("scaling", "power"), [("1", 1), ("1/sqrt(m)", 0), ("1/m", -1)])
def test_the_kernel_is_of_the_order_it_says(scaling: str, power: int) -> None:
    sizes = [
        float(measure.ntk(models.two_layer(4, m, scaling=scaling), X, reduce="trace").diagonal().mean())
        for m in (1000, 16000)
    ]
    assert math.log(sizes[1] / sizes[0], 16) == pytest.approx(power, abs=0.1)


def test_symmetric_neurons_come_in_pairs() -> None:
    a, b = neurons(models.two_layer(4, 12, symmetric=True))
    assert torch.equal(b[:6], b[6:]) and torch.equal(a[:6], -a[6:])


def test_the_seed_is_all_that_counts() -> None:
    state = torch.get_rng_state()
    one, same, other = models.two_layer(4, 12), models.two_layer(4, 12), models.two_layer(4, 12, seed=1)
    assert torch.equal(one(X), same(X)) and not torch.equal(one(X), other(X))
    assert torch.equal(torch.get_rng_state(), state)
    assert models.two_layer(4, 12, dtype=torch.float32)(X.float()).dtype == torch.float32


BAD: list[tuple[dict[str, Any], str]] = [
    ({"inputs": 0}, "`inputs`: got 0"),
    ({"width": 0}, "`width`: got 0"),
    ({"tau": 0.0}, r"`tau`: got 0\.0, expected a positive finite number"),
    ({"tau": math.nan}, "`tau`: got nan"),
    ({"scaling": "1/sqrt(n)"}, r"`scaling`: got '1/sqrt\(n\)', expected one of 1, .*mean '1/sqrt\(m\)'\?"),
    ({"scaling": math.inf}, "`scaling`: got inf, expected a finite power of m"),
    ({"scaling": True}, "`scaling`: got True"),
    ({"seed": "a"}, "`seed`: got 'a', expected a whole number"),
    ({"dtype": None}, "`dtype`: got None, expected a floating type"),
    ({"activation": "rely"}, "`activation`: got 'rely'.*did you mean 'relu'"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_a_bad_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        inspect.unwrap(models.two_layer)(**{"inputs": 4, "width": 12, **arguments})
