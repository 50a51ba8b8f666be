"""Intervals over probe points: their definition, their invariances, and that they cover the truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from regimes import measure, models
from regimes.core.error import UserError
from regimes.core.estimate import Estimate, delete_one
from regimes.core.state import State
from tests import reference

Statistic = Callable[[Tensor, Tensor], float]


def psd(n: int, seed: int, c: int = 0) -> Tensor:
    """A kernel (n, n), or (n, n, c, c)."""
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(n * max(c, 1), n, dtype=torch.float64, generator=generator)
    whole = factor @ factor.T
    return whole.view(n, c, n, c).permute(0, 2, 1, 3) if c else whole


def ends(found: Estimate) -> list[float]:
    return [found.value, found.low, found.high]


def by_definition(statistic: Statistic, scale: str, k: Tensor, k0: Tensor) -> Estimate:
    """The statistic again and again, each time without one point."""
    n = len(k)
    rest = [[j for j in range(n) if j != i] for i in range(n)]
    without = [statistic(k[keep][:, keep], k0[keep][:, keep]) for keep in rest]
    return delete_one(statistic(k, k0), np.array(without), scale=scale, level=0.9)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("c", [0, 2])
@pytest.mark.parametrize("n", [4, 7])
def test_of_a_drift_is_the_jackknife_over_pairs_of_points(n: int, c: int) -> None:
    k, k0 = psd(n, 0, c), psd(n, 1, c)
    cases = ((measure.drift, reference.paired_drift), (measure.kernel_distance, reference.paired_distance))
    for fast, slow in cases:
        assert ends(fast(k, k0, interval=0.9)) == pytest.approx(
            ends(by_definition(slow, "log", k, k0)), rel=1e-9
        )


@pytest.mark.parametrize("centered", [False, True])
def test_of_an_alignment_is_the_jackknife_over_pairs_of_points(centered: bool) -> None:
    k = psd(8, 0) + 3
    for y in (torch.randn(8, dtype=torch.float64) + 1, torch.tensor([0, 1, 2, 1, 0, 2, 2, 1])):
        rows = y[:, None] if y.is_floating_point() else torch.nn.functional.one_hot(y).double()
        slow = partial(reference.paired_alignment, centered=centered)
        found = measure.alignment(k, y, centered=centered, interval=0.9)
        assert ends(found) == pytest.approx(ends(by_definition(slow, "fisher", k, rows @ rows.T)), rel=1e-8)


@settings(max_examples=20)
@given(st.integers(5, 8), st.integers(0, 99), st.floats(1e-3, 1e3))
def test_neither_order_nor_size_matters(n: int, seed: int, factor: float) -> None:
    k, k0 = psd(n, seed), psd(n, seed + 100)
    y = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    mixed, mixed0 = factor * k[order][:, order], factor * k0[order][:, order]
    for statistic in (measure.drift, measure.kernel_distance):
        found, again = statistic(k, k0, interval=0.95), statistic(mixed, mixed0, interval=0.95)
        assert ends(again) == pytest.approx(ends(found), rel=1e-6)
        assert found.n == n and 0 <= found.low <= found.value <= found.high
    for centered in (False, True):
        found, again = (
            measure.alignment(each, labels, centered=centered, interval=0.95)
            for each, labels in ((k, y), (mixed, y[order]))
        )
        assert ends(again) == pytest.approx(ends(found), rel=1e-6, abs=1e-9)
        assert -1 <= found.low <= found.value <= found.high <= 1


def test_the_diagonal_does_not_count() -> None:
    """A kernel that has moved on its diagonal alone has not moved between points."""
    k = psd(6, 0)
    moved = k + 5 * torch.eye(6, dtype=torch.float64)
    assert measure.drift(moved, k) > 0.1
    assert ends(measure.drift(moved, k, interval=0.95)) == [0, 0, 0]
    one = torch.eye(6, dtype=torch.float64)
    for undefined in (partial(measure.kernel_distance, one, k), partial(measure.alignment, one, k[0])):
        with pytest.raises(UserError, match="is 0 between different points"):
            undefined(interval=0.95)
    assert measure.drift(k, one, interval=0.95).value == math.inf


def test_names_the_mistake() -> None:
    k = psd(6, 0)
    for level in (0.0, 1.0, 95.0, math.nan, True):
        with pytest.raises(UserError, match=r"`interval`: got .*(0\.95|number)"):
            measure.drift(k, k, interval=level)
    with pytest.raises(UserError, match="`k` is not symmetric, expected a kernel of points with themselves"):
        measure.drift(k.triu(), k, interval=0.95)
    for few in (k[:3, :3], k[:4, :3]):
        with pytest.raises(UserError, match="expected a kernel of at least 4 points with themselves"):
            measure.drift(few, few, interval=0.95)
    with pytest.raises(UserError, match="expected a kernel of at least 5 points"):
        measure.alignment(k[:4, :4], torch.randn(4), centered=True, interval=0.95)


def test_probes_have_their_ends_beside_them() -> None:
    net, x = models.mlp(3, 8, 1), torch.randn(9, 3, dtype=torch.float64)
    y, start = x[:, 0].sign(), State.of(net)
    state = State(
        net, {n: p + 0.1 * torch.randn_like(p) for n, p in start.parameters.items()}, start.origin, step=1
    )
    k0, k = (measure.ntk(net, x, reduce="trace", parameters=s.parameters) for s in (start, state))
    values = measure.KernelDrift(x, y, interval=0.9).look(state)
    for name, found in (
        ("dK", measure.drift(k, k0, interval=0.9)),
        ("kernel_distance", measure.kernel_distance(k, k0, interval=0.9)),
        ("alignment", measure.alignment(k, y, interval=0.9)),
        ("alignment0", measure.alignment(k0, y, interval=0.9)),
    ):
        assert [values[f"{name}{end}"] for end in ("", "_low", "_high")] == pytest.approx(ends(found))
    found = measure.gap(net, x, origin=state.origin, parameters=state.parameters, interval=0.9)
    values = measure.Gap(x, interval=0.9).look(state)
    assert [values[name] for name in ("gap", "gap_low", "gap_high")] == pytest.approx(ends(found))
    assert set(measure.KernelDrift(x, y).look(state)) == {"dK", "kernel_distance", "alignment", "alignment0"}
    assert set(measure.Gap(x).look(state)) == {"gap"}


def test_of_a_gap_is_the_jackknife_over_samples() -> None:
    net, x, origin = network(0.3)
    x = x[:7]
    found = measure.gap(net, x, origin=origin, interval=0.9)
    without = [measure.gap(net, torch.cat([x[:i], x[i + 1 :]]), origin=origin) for i in range(7)]
    assert found.value == measure.gap(net, x, origin=origin) and found.n == 7
    assert ends(found) == pytest.approx(
        ends(delete_one(found.value, np.array(without), scale="log", level=0.9))
    )
    start = measure.gap(net, x, origin=origin, parameters=origin, interval=0.9)
    assert ends(start) == [0, 0, 0]


# Coverage: the truth is what all points give; of so many that a probe, drawn without replacement, is a few per cent.
_POINTS = 2500


@cache
def network(step: float) -> tuple[nn.Module, Tensor, dict[str, Tensor]]:
    """A network that has moved, inputs, and where it started."""
    torch.manual_seed(1)
    net = models.mlp(4, 24, 1, activation="relu", bias=True)
    origin = {name: p.detach().clone() for name, p in net.named_parameters()}
    with torch.no_grad():
        for p in net.parameters():
            p.add_(step * torch.randn_like(p))
    return net, torch.randn(_POINTS, 4, dtype=torch.float64), origin


@cache
def kernels(step: float) -> tuple[Tensor, Tensor, Tensor]:
    net, x, origin = network(step)
    y = (x[:, 0] * x[:, 1] + 0.3 * x[:, 0]).sign()
    along = y + 0.5 * x[:, 2]
    k0 = measure.ntk(net, x, reduce="trace", parameters=origin)
    return measure.ntk(net, x, reduce="trace") + torch.outer(along, along), k0, y


def covered(found: list[Estimate], truth: float) -> float:
    return float(np.mean([one.low <= truth <= one.high for one in found]))


def probes(n: int, draws: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    return [torch.randperm(_POINTS, generator=generator)[:n] for _ in range(draws)]


@pytest.mark.parametrize(
    ("step", "n", "draws"),
    [
        (0.5, 48, 150),
        *(pytest.param(s, n, 400, marks=pytest.mark.slow) for s in (0.05, 0.5) for n in (32, 64, 128)),
    ],
)
def test_intervals_of_kernels_cover_the_truth(step: float, n: int, draws: int) -> None:
    k, k0, y = kernels(step)
    statistics: dict[str, Callable[[Tensor, Tensor, Tensor], Estimate]] = {
        "drift": lambda k, k0, _: measure.drift(k, k0, interval=0.95),
        "distance": lambda k, k0, _: measure.kernel_distance(k, k0, interval=0.95),
        "alignment": lambda k, _, y: measure.alignment(k, y, interval=0.95),
        "centred": lambda k, _, y: measure.alignment(k, y, centered=True, interval=0.95),
    }
    parts = [(k[i][:, i], k0[i][:, i], y[i]) for i in probes(n, draws)]
    for name, statistic in statistics.items():
        truth = statistic(k, k0, y).value
        share = covered([statistic(*part) for part in parts], truth)
        assert 0.90 <= share <= 0.98, (name, share)


def test_the_bare_numbers_are_biased_by_their_diagonal() -> None:
    """Why the intervals leave it out: the mean over probes is far from the truth, by the standard of the interval."""
    k, _, y = kernels(0.5)
    parts = [(k[i][:, i], y[i]) for i in probes(48, 100)]
    truth = measure.alignment(k, y, interval=0.95).value
    bare = np.mean([measure.alignment(part, labels) for part, labels in parts])
    pairs = np.mean([measure.alignment(part, labels, interval=0.95).value for part, labels in parts])
    assert abs(pairs - truth) < abs(bare - truth) / 3


@pytest.mark.parametrize(
    ("n", "draws"),
    [(48, 150), *(pytest.param(n, 400, marks=pytest.mark.slow) for n in (32, 64, 128))],
)
def test_intervals_of_gaps_cover_the_truth(n: int, draws: int) -> None:
    net, x, origin = network(0.5)
    truth = measure.gap(net, x, origin=origin)
    found = [measure.gap(net, x[i], origin=origin, interval=0.95) for i in probes(n, draws)]
    assert 0.90 <= covered(found, truth) <= 0.98
