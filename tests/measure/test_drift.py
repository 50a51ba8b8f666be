"""Kernel drift, distance and alignment: definitions and invariances."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from regimes import control, measure, models
from regimes.core.error import UserError
from regimes.core.estimate import Estimate
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
    for name, pair in (("k0", (one, zero)), ("k", (zero, one))):
        with pytest.raises(UserError, match=f"`{name}`: is 0 everywhere"):
            measure.kernel_distance(*pair)
    for centered in (False, True):
        with pytest.raises(UserError, match=r"`k`: is .*, so that it has no direction"):
            measure.alignment(zero, torch.tensor([1.0, -1.0]), centered=centered)
        with pytest.raises(UserError, match=r"`y`: is .*, so that it has no direction"):
            measure.alignment(one, torch.zeros(2), centered=centered)


@pytest.mark.parametrize("size", [0.1, 0.7, 1e8, 1e-300])
def test_what_centring_leaves_of_a_constant_is_no_direction(size: float) -> None:
    """The mean of n equal numbers differs from them by a last digit, which has an alignment of its own."""
    y = torch.randn(7, dtype=torch.float64)
    with pytest.raises(UserError, match="`y`: is the same for all samples"):
        measure.alignment(psd(7, 0), torch.full((7,), size, dtype=torch.float64), centered=True)
    with pytest.raises(UserError, match="`k`: is constant"):
        measure.alignment(torch.full((7, 7), size, dtype=torch.float64), y, centered=True)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_named(bad: float) -> None:
    k, broken = psd(3, 0), psd(3, 0)
    broken[1, 2] = bad
    calls: list[tuple[str, Callable[[], object]]] = [
        ("k", lambda: measure.drift(broken, k)),
        ("k0", lambda: measure.drift(k, broken)),
        ("k", lambda: measure.kernel_distance(broken, k)),
        ("k0", lambda: measure.kernel_distance(k, broken)),
        ("k", lambda: measure.alignment(broken, torch.ones(3))),
        ("y", lambda: measure.alignment(k, broken)),
    ]
    for name, call in calls:
        with pytest.raises(UserError, match=rf"`{name}`: \[1, 2\] is {bad}, expected finite numbers"):
            call()


@pytest.mark.parametrize("factor", [1e-300, 1e-200, 1e200, 1e300])
def test_the_size_of_kernels_does_not_matter(factor: float) -> None:
    """Nor do squares that overflow, or vanish."""
    k, k0 = psd(6, 0) / 99, psd(6, 1) / 99
    y = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for level in (None, 0.9):
        for statistic in (measure.drift, measure.kernel_distance):
            expected = statistic(k, k0, interval=level)
            assert ends(statistic(factor * k, factor * k0, interval=level)) == pytest.approx(ends(expected))
        for centered in (False, True):
            expected = measure.alignment(k, y, centered=centered, interval=level)
            found = measure.alignment(factor * k, y * 1e-200, centered=centered, interval=level)
            assert ends(found) == pytest.approx(ends(expected))
    huge = torch.full((2, 2), 1.7e308, dtype=torch.float64)
    assert measure.drift(-huge, huge) == pytest.approx(2)


def ends(found: float | Estimate) -> list[float]:
    return [found.value, found.low, found.high] if isinstance(found, Estimate) else [found]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_kernels_of_less_precision_are_taken_as_they_are(dtype: torch.dtype) -> None:
    k, k0 = (200 * psd(4, seed).to(dtype) for seed in (0, 1))
    y = torch.tensor([0, 1, 1, 0])
    assert measure.drift(k, k0) == pytest.approx(reference.drift(k.double(), k0.double()), rel=1e-2)
    assert measure.kernel_distance(k, k0) == pytest.approx(
        reference.kernel_distance(k.double(), k0.double()), rel=1e-2
    )
    rows = torch.nn.functional.one_hot(y).double()
    assert measure.alignment(k, y) == pytest.approx(reference.alignment(k.double(), rows), rel=1e-2)


def test_names_the_mistake() -> None:
    with pytest.raises(UserError, match=r"`k`: got shape \(2, 2\), expected \(3, 3\)"):
        measure.drift(torch.eye(2), torch.eye(3))
    with pytest.raises(UserError, match='reduce="trace"'):
        inspect.unwrap(measure.alignment)(torch.zeros(2, 2, 3, 3), torch.ones(2))
    with pytest.raises(UserError, match="class indices"):
        measure.alignment(torch.eye(2), torch.tensor([-1, 1]))
    for empty in (torch.zeros(0, 0), torch.zeros(0)):
        with pytest.raises(UserError, match=r"`k`: got .*\(0,.*expected a kernel"):
            measure.drift(empty, empty)
    for y in (torch.zeros(2, 0), torch.zeros(2, 2, 2), torch.zeros(2, dtype=torch.complex64)):
        with pytest.raises(UserError, match="`y`: got"):
            inspect.unwrap(measure.alignment)(torch.eye(2), y)


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


def test_nan_in_a_row_is_a_member_that_has_diverged() -> None:
    module, x = models.mlp(3, 4, 1, activation="relu"), torch.randn(6, 3, dtype=torch.float64)
    y = x[:, 0].sign()
    start = State.of(module)
    for broken in (math.nan, math.inf, 1e300):
        lost = State(module, {n: p * broken for n, p in start.parameters.items()}, start.origin, step=1)
        for interval in (None, 0.95):
            values = KernelDrift(x, y, interval=interval).look(lost)
            assert math.isnan(values["dK"]) and math.isnan(values["kernel_distance"])
            assert math.isnan(values["alignment"]) and math.isfinite(values["alignment0"])
    silent = State(module, {n: p * 0 for n, p in start.parameters.items()}, start.origin, step=1)
    values = KernelDrift(x, y).look(silent)
    assert values["dK"] == pytest.approx(1) and math.isnan(values["kernel_distance"])
    assert math.isnan(values["alignment"])


class Both(nn.Module):
    """Two inputs and a mapping for an output."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = models.mlp(3, 4, 1, outputs=2)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"logits": self.inner(left + right)}


def test_several_inputs_and_a_mapping_of_outputs() -> None:
    module, x = Both(), torch.randn(6, 3, dtype=torch.float64)
    start = State.of(module)
    moved = State(module, {n: p * 1.1 for n, p in start.parameters.items()}, start.origin, step=1)
    now, then = (
        {name.removeprefix("inner."): p for name, p in each.items()}
        for each in (moved.parameters, moved.origin)
    )
    plain = State(module.inner, now, then)
    expected = KernelDrift(2 * x).look(plain)
    for pair in ((x, x), {"right": x, "left": x}):
        probe = KernelDrift(pair, output=lambda out: out["logits"])
        assert probe.look(moved) == pytest.approx(expected, rel=1e-12)
