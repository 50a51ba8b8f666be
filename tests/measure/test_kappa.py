"""The inverse relative scale against closed forms, dense second derivatives, and its laws."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from regimes import control, measure, models
from regimes.core.error import UserError
from tests.measure.awkward import D, build

F64 = torch.float64


class Quadratic(nn.Module):
    """h_i(w) = w^T A_i w / 2 for the sample with number i: Dh has the rows A_i w, and D2h is A."""

    def __init__(self, a: Tensor) -> None:
        super().__init__()
        self.a = a
        self.w = nn.Parameter(torch.randn(a.shape[-1], dtype=F64))

    def forward(self, index: Tensor) -> Tensor:
        return torch.einsum("p,npq,q->n", self.w, self.a[index], self.w)[:, None] / 2


def of_norms(model: nn.Module, x: Tensor, y: Tensor, first: Tensor, second: float) -> float:
    """||h - y|| ||D2h|| / ||Dh||^2 with Dh written out."""
    distance = (model(x).detach() - y.reshape(len(x), -1)).norm()
    return float(distance) * second / float(torch.linalg.matrix_norm(first.detach(), 2)) ** 2


@pytest.mark.parametrize("p", [1, 4, 20])
def test_of_a_diagonal_quadratic_model(p: int) -> None:
    """||D2h(u, u)|| = ||sum_k u_k^2 d_k||: the longest d_k, and every other k is a local maximum."""
    d = torch.randn(6, p, dtype=F64)
    model, index, y = Quadratic(torch.diag_embed(d)), torch.arange(6), torch.randn(6, dtype=F64)
    expected = of_norms(model, index, y, d * model.w, float(d.norm(dim=0).max()))
    found = measure.kappa(model, index, y, starts=30)
    assert found.value == pytest.approx(expected, rel=1e-3)
    assert (found.error > 1e-3 * found.value) == (p > 1), "starts end in several maxima"


def test_of_one_quadratic_output() -> None:
    """With one output the operator norm is that of a symmetric matrix, which every start finds."""
    a = torch.randn(1, 12, 12, dtype=F64)
    a = (a + a.mT) / 2
    model, index, y = Quadratic(a), torch.zeros(1).long(), torch.randn(1, dtype=F64)
    second = float(torch.linalg.eigvalsh(a[0]).abs().max())
    found = measure.kappa(model, index, y, tolerance=1e-8)
    assert found.value == pytest.approx(of_norms(model, index, y, a[0] @ model.w[:, None], second), rel=1e-4)
    assert found.error < 1e-4 * found.value


class Bilinear(nn.Module):
    """h(x) = a (b . x)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(1, dtype=F64)), nn.Parameter(torch.randn(D, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.b * self.a


def test_of_a_bilinear_model() -> None:
    """D2h(u, u) = 2 u_a X u_b, at most ||X|| for a unit vector u; Dh = (X b, a X)."""
    model, x, y = Bilinear(), torch.randn(20, D, dtype=F64), torch.randn(20, dtype=F64)
    first = torch.cat([(x @ model.b)[:, None], model.a * x], 1)
    second = float(torch.linalg.matrix_norm(x, 2))
    expected = float((model(x).detach() - y).norm()) * second
    expected /= float(torch.linalg.matrix_norm(first.detach(), 2)) ** 2
    found = measure.kappa(model, x, y, tolerance=1e-7)
    assert found.value == pytest.approx(expected, rel=1e-4)
    assert found.error < 1e-2 * expected


def test_two_errors_reach_the_norm_where_most_starts_miss_it() -> None:
    """Over 50 seeds. D2h of a two-layer ReLU network falls apart by neurons: its norm is the largest of their parts."""
    net, x, y = models.two_layer(D, 20), torch.randn(6, D, dtype=F64), torch.randn(6, dtype=F64)
    b, a = (p.detach() for p in net.parameters())
    up = (x @ b.T > 0).double()
    second = max(float(torch.linalg.matrix_norm(x * side[:, None], 2)) for side in up.T) / 20**0.5
    by_b = ((a * up)[:, :, None] * x[:, None]).flatten(1)
    expected = of_norms(net, x, y, torch.cat([by_b, (x @ b.T).relu()], 1) / 20**0.5, second)
    found = [measure.kappa(net, x, y, seed=seed, tolerance=1e-3) for seed in range(50)]
    assert all(one.value < 1.01 * expected for one in found)
    assert sum(1.01 * one.value < expected for one in found) > 5, "some seeds miss the largest maximum"
    reach = sum(1.01 * one.value + 2 * one.error >= expected for one in found)
    assert reach >= 45, "95 of 100, less two standard errors of 50 trials"


def hessians(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Dh, (n c, p), and the second derivatives, (n c, p, p), number by number."""
    leaves = [p for p in module.parameters() if p.requires_grad]

    def flat(value: Tensor) -> Tensor:
        grads = torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True)
        return torch.cat([g.reshape(-1) for g in grads])

    with sdpa_kernel(SDPBackend.MATH):
        slopes = [flat(value) for value in module(x).reshape(-1)]
        second = [torch.stack([flat(entry).detach() for entry in slope]) for slope in slopes]
    return torch.stack(slopes).detach(), torch.stack(second)


NAMES = [
    "mlp", "tied", "two paths", "bare parameters", "attention", "images", "in place", "checkpoint", "partly frozen",
    "scaled", "batch norm in eval",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_lies_between_bounds_from_dense_second_derivatives(name: str) -> None:
    """The largest Hessian of one output is a lower bound; all of them as one matrix give an upper one."""
    module, x = build(name), torch.randn(2, D, dtype=F64)
    outputs = module(x).detach()
    y = torch.randn_like(outputs)
    first, second = hessians(module, x)
    factor = float((outputs - y).norm() / torch.linalg.matrix_norm(first, 2) ** 2)
    least = max(float(torch.linalg.matrix_norm(each, 2)) for each in second)
    most = min(
        float(torch.linalg.matrix_norm(second.flatten(0, 1), 2)),
        float(torch.linalg.matrix_norm(second.flatten(1), 2)),
    )
    found = measure.kappa(module, x, y, starts=4, tolerance=1e-6).value
    assert factor * least * (1 - 1e-3) <= found <= factor * most * (1 + 1e-3)


def test_falls_like_one_over_alpha() -> None:
    network, x, y = models.mlp(D, 8, 2), torch.randn(9, D, dtype=F64), torch.randn(9, dtype=F64)
    one, hundred = (measure.kappa(control.scale(network, alpha), x, y) for alpha in (1.0, 100.0))
    assert hundred.value == pytest.approx(one.value / 100) and hundred.error == pytest.approx(one.error / 100)


def test_without_centring_it_is_the_formula() -> None:
    """alpha h as a module of its own has kappa by the plain definition: factors of alpha cancel but one."""
    network, x, y = models.mlp(D, 8, 2), torch.randn(9, D, dtype=F64), torch.randn(9, dtype=F64)
    scaled = control.scale(network, 7.0, center=False)
    whole = nn.Sequential(scaled)  # not seen as scaled
    assert measure.kappa(scaled, x, y).value == pytest.approx(measure.kappa(whole, x, y).value)


def test_tau_squared_is_an_output_scale() -> None:
    x, y = torch.randn(9, D, dtype=F64), torch.randn(9, dtype=F64)
    values = [
        measure.kappa(models.two_layer(D, 12, scaling="1", tau=tau, symmetric=True), x, y).value
        for tau in (1.0, 10.0)
    ]
    assert values[1] == pytest.approx(values[0] / 100)


def test_wide_networks_are_lazy_under_one_scaling_and_not_under_the_other() -> None:
    x = torch.nn.functional.normalize(torch.randn(50, 10, dtype=F64))
    y = x[:, 0].relu()

    def at(m: int, scaling: str) -> float:
        return measure.kappa(models.two_layer(10, m, scaling=scaling), x, y, starts=2, tolerance=1e-3).value

    assert at(1600, "1/sqrt(m)") < at(100, "1/sqrt(m)") / 2
    assert at(1600, "1/m") > at(100, "1/m") / 2


def test_does_not_see_the_number_of_copies_of_the_data() -> None:
    """Mean or sum over samples is all one."""
    network, x, y = models.mlp(D, 8, 2, seed=1), torch.randn(5, D, dtype=F64), torch.randn(5, dtype=F64)
    once = measure.kappa(network, x, y, starts=6, tolerance=1e-7).value
    twice = measure.kappa(network, x.repeat(2, 1), y.repeat(2), starts=6, tolerance=1e-7).value
    assert twice == pytest.approx(once, rel=1e-3)


def test_classes_are_rows_of_one_hot_targets() -> None:
    network, x = models.mlp(D, 8, 1, 3), torch.randn(5, D, dtype=F64)
    classes = torch.tensor([0, 1, 1, 0, 1])
    rows = torch.nn.functional.one_hot(classes, 3).double()
    assert measure.kappa(network, x, classes) == measure.kappa(network, x, rows)


def test_parameters_take_the_place_of_those_of_the_module() -> None:
    network, x, y = models.mlp(D, 8, 2), torch.randn(5, D, dtype=F64), torch.randn(5, dtype=F64)
    other = models.mlp(D, 8, 2, seed=3)
    given = {name: p.detach() for name, p in other.named_parameters()}
    assert measure.kappa(network, x, y, parameters=given) == measure.kappa(other, x, y)


def test_output_picks_from_what_the_module_returns() -> None:
    class Both(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.inner(x), "hidden": x}

    network, x, y = models.mlp(D, 8, 2), torch.randn(5, D, dtype=F64), torch.randn(5, dtype=F64)
    found = measure.kappa(Both(network), x, y, output=lambda out: out["logits"])
    assert found.value == pytest.approx(measure.kappa(network, x, y).value)


def test_the_seed_is_all_that_counts() -> None:
    network, x, y = models.mlp(D, 8, 2), torch.randn(5, D, dtype=F64), torch.randn(5, dtype=F64)
    state = torch.get_rng_state()
    assert measure.kappa(network, x, y) == measure.kappa(network, x, y)
    assert torch.equal(torch.get_rng_state(), state)
    assert measure.kappa(network, x, y, seed=1).value == pytest.approx(
        measure.kappa(network, x, y).value, rel=0.05
    )
    assert all(p.grad is None for p in network.parameters())


def test_does_not_care_for_the_mode_around_it() -> None:
    network, x, y = models.mlp(D, 8, 2), torch.randn(5, D, dtype=F64), torch.randn(5, dtype=F64)
    expected = measure.kappa(network, x, y, starts=2)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert measure.kappa(network, x.clone(), y, starts=2) == expected


def test_is_zero_for_a_linear_model_and_for_one_that_fits() -> None:
    x = torch.randn(5, D, dtype=F64)
    linear = nn.Linear(D, 2).double()
    assert measure.kappa(linear, x, torch.randn(5, 2, dtype=F64)).value == 0
    network = models.mlp(D, 8, 2)
    assert measure.kappa(network, x, network(x).detach()) == measure.StochasticEstimate(0.0, 0.0)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"starts": 1}, "`starts`: got 1, expected a whole number of at least 2"),
    ({"tolerance": 0.0}, "`tolerance`: got 0.0"),
    ({"tolerance": "x"}, "`tolerance`: got 'x'"),
    ({"seed": -1}, "`seed`: got -1, expected a whole number of 0 or more"),
    ({"y": [0.0]}, "`y`: got list, expected a tensor of real numbers or classes"),
    ({"y": torch.tensor(0.0)}, r"`y`: got torch\.float32 \(\), expected a tensor"),
    ({"y": torch.zeros(0).long()}, r"`y`: got torch\.int64 \(0,\), expected a tensor"),
    (
        {"y": torch.zeros(5, 3, dtype=torch.complex64)},
        r"`y`: got torch\.complex64 \(5, 3\), expected a tensor",
    ),
    ({"y": torch.zeros(4, dtype=F64)}, r"`y`: got shape \(4,\), expected targets for outputs \(5, 3\)"),
    ({"y": torch.tensor([0, 1, 2, 3, 0])}, "`y`: got 5 class indices up to 3 with 5 samples and 3 outputs"),
    ({"y": torch.tensor([0, -1, 2, 1, 0])}, "`y`: got .* class indices"),
    ({"y": torch.full((5, 3), math.nan, dtype=F64)}, r"`y`: \[0, 0\] is nan"),
    ({"x": torch.zeros(0, D, dtype=F64)}, "`x`: .* at least one sample"),
    ({"parameters": {}}, "is missing"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_a_bad_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    every = {"x": torch.randn(5, D, dtype=F64), "y": torch.randn(5, 3, dtype=F64), **arguments}
    with pytest.raises(UserError, match=message):
        inspect.unwrap(measure.kappa)(models.mlp(D, 8, 1, 3), **every)


def test_a_model_without_slope_or_with_infinite_outputs_is_named() -> None:
    x, y = torch.randn(5, D, dtype=F64), torch.randn(5, dtype=F64)
    with pytest.raises(UserError, match="no output depends on a trainable parameter"):
        measure.kappa(build("constant"), x, y)
    with pytest.raises(UserError, match="no output depends on a trainable parameter"):
        measure.kappa(models.mlp(D, 8, 1).requires_grad_(False), x, y)
    with pytest.raises(UserError, match="`module`: has an operation without a second derivative"):
        measure.kappa(nn.Sequential(nn.Linear(D, 2), nn.Hardsigmoid(), nn.Linear(2, 1)).double(), x, y)
    network = models.mlp(D, 8, 1)
    with torch.no_grad():
        next(network.parameters()).fill_(math.inf)
    with pytest.raises(UserError, match="`module`: outputs"):
        measure.kappa(network, x, y)
