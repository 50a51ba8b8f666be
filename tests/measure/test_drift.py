"""Kernel drift, distance and alignment: definitions and invariances."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from regimes import control, measure, models
from regimes.core.error import UserError
from regimes.core.state import State
from regimes.core.tree import trainable
from regimes.measure import KernelDrift
from tests import reference


def psd(n: int, seed: int) -> Tensor:
    factor = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return factor @ factor.T


sizes, seeds = st.integers(2, 6), st.integers(0, 99)
factors = st.floats(1e-3, 1e3)


@given(sizes, seeds, factors)
def test_drift_and_distance(n: int, seed: int, factor: float) -> None:
    k, k0 = psd(n, seed), psd(n, seed + 100)
    assert measure.drift(k, k0) == pytest.approx(reference.drift(k, k0))
    assert measure.kernel_distance(k, k0) == pytest.approx(reference.kernel_distance(k, k0))
    assert measure.drift(k, k) == 0
    assert measure.drift(factor * k, factor * k0) == pytest.approx(measure.drift(k, k0))
    assert measure.drift(factor * k, k) == pytest.approx(abs(factor - 1), abs=1e-12)
    assert measure.kernel_distance(factor * k, k0) == pytest.approx(measure.kernel_distance(k, k0))
    assert measure.kernel_distance(k, k0) == pytest.approx(measure.kernel_distance(k0, k))
    assert measure.kernel_distance(factor * k, k) == pytest.approx(0, abs=1e-14)
    assert 0 <= measure.kernel_distance(k, k0) <= 1


@given(sizes, seeds, factors, st.integers(1, 3), st.booleans())
def test_alignment(n: int, seed: int, factor: float, c: int, centered: bool) -> None:
    k = psd(n, seed)
    y = torch.randn(n, c, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found = measure.alignment(k, y, centered=centered)
    assert found == pytest.approx(reference.alignment(k, y, centered))
    assert measure.alignment(factor * k, y / factor, centered=centered) == pytest.approx(found)
    assert -1e-12 <= found <= 1 + 1e-12
    assert measure.alignment(y @ y.T, y, centered=centered) == pytest.approx(1)
    if c == 1:
        assert measure.alignment(k, y[:, 0], centered=centered) == pytest.approx(found)


def test_alignment_with_classes_is_that_with_one_hot_rows() -> None:
    k, y = psd(4, 0), torch.tensor([0, 2, 1, 0])
    rows = torch.nn.functional.one_hot(y).double()
    assert measure.alignment(k, y) == pytest.approx(measure.alignment(k, rows))


def test_zero_kernels() -> None:
    zero, one = torch.zeros(2, 2), torch.eye(2)
    assert measure.drift(zero, zero) == 0
    assert measure.drift(one, zero) == math.inf
    assert math.isnan(measure.kernel_distance(one, zero))
    assert math.isnan(measure.drift(one * math.nan, one))


def test_names_the_mistake() -> None:
    with pytest.raises(UserError, match=r"`k`: got shape \(2, 2\), expected \(3, 3\)"):
        measure.drift(torch.eye(2), torch.eye(3))
    with pytest.raises(UserError, match='reduce="trace"'):
        inspect.unwrap(measure.alignment)(torch.zeros(2, 2, 3, 3), torch.ones(2))
    with pytest.raises(UserError, match="class indices"):
        measure.alignment(torch.eye(2), torch.tensor([-1, 1]))


@pytest.mark.parametrize("reduce", ["trace", "diagonal", "full"])
def test_probe_compares_with_the_origin(reduce: measure.Reduce) -> None:
    module = control.scale(models.mlp(3, 4, 2, outputs=2), alpha=2.0)
    start = State.of(module)
    moved = State(module, {name: p * 1.1 for name, p in start.parameters.items()}, start.origin, step=5)
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1, 0])
    probe = measure.KernelDrift(x, y, reduce=reduce)
    k0, k = (measure.ntk(module, x, reduce=reduce, parameters=s.parameters) for s in (start, moved))
    trace = measure.ntk(module, x, reduce="trace", parameters=moved.parameters)
    values = probe.look(moved)
    assert values["dK"] == pytest.approx(reference.drift(k, k0))
    assert values["kernel_distance"] == pytest.approx(reference.kernel_distance(k, k0))
    assert values["alignment"] == pytest.approx(measure.alignment(trace, y))
    at_start = probe.look(start)
    assert at_start["dK"] == 0
    assert at_start["alignment"] == values["alignment0"] == at_start["alignment0"]
    assert measure.KernelDrift(x).look(moved).keys() == {"dK", "kernel_distance"}


def test_the_kernel_of_a_law_is_that_of_its_dynamics() -> None:
    """Mean-field and muP are one flow in function space, so their kernels move alike; layer by layer they do not."""
    x = torch.randn(12, 6, dtype=torch.float64)
    moved = {}
    for law in (control.MEAN_FIELD, control.MUP):
        net = control.scale(models.mlp(6, 16, 2, law=law, seed=3), 1.0)
        origin = {n: p.detach().clone() for n, p in trainable(net).items()}
        speeds = control.rates(net)
        # the same small step of the flow: each parameter by rate times its gradient
        grads = torch.autograd.grad(net.network(x).sum(), list(trainable(net).values()))
        step = {n: origin[n] - 1e-3 * speeds[n] * g for (n, _), g in zip(origin.items(), grads, strict=True)}
        moved[law.name] = KernelDrift(x).look(State(net, step, origin))["dK"]
    assert moved["mean-field"] == pytest.approx(moved["mup"], rel=1e-9)
    assert moved["mup"] > 0


def test_a_bias_with_a_rate_of_its_own_is_refused() -> None:
    net = models.mlp(3, 4, 1, law=control.MUP, bias=True)
    with pytest.raises(UserError, match="bias=False"):
        KernelDrift(torch.ones(2, 3, dtype=torch.float64)).look(State.of(net))
