"""Trust ratio, gap and drift of the kernel, against their definitions and the kernel that is formed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from regimes import control, measure, models
from regimes.control.anchor.block import Findings
from regimes.control.anchor.look import Look, kernel_drift, probed, relative_gap, trust_ratio
from regimes.core.error import UserError
from regimes.core.stream import generator
from regimes.core.tree import trainable
from tests.control.networks import NETWORKS

F64 = torch.float64
ALL = control.Adaptive(trust=0.5, gap=1.0, drift=1.0, directions=5, seed=2)


def moved(module: nn.Module, size: float) -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(3)
    return {
        name: p.detach() + size * torch.randn(p.shape, generator=drawn, dtype=p.dtype)
        for name, p in trainable(module).items()
    }


def at(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in trainable(module).items()}


@pytest.mark.parametrize("outputs", [1, 2])
def test_are_their_definitions(outputs: int) -> None:
    """The drift is that of the kernels that are formed, along the directions of the rule's seed."""
    net = models.mlp(4, 6, 2, outputs=outputs, activation="tanh")
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(1), dtype=F64)
    a, w = at(net), moved(net, 0.3)
    found = Look(net, x, lambda out: out.square().mean(), ALL).reading(a, w)
    start = net(x).detach()
    linear = measure.linearized(net, x, origin=a, parameters=w).view_as(start)
    now = torch.func.functional_call(net, w, (x,)).detach()
    before, after, said = (float(each.square().mean()) for each in (start, now, linear))
    assert found.trust == pytest.approx(trust_ratio(before, after, said), rel=1e-9)
    assert found.gap == pytest.approx(float((now - linear).norm() / (now - start).norm()), rel=1e-9)
    k, k0 = (
        measure.ntk(net, x, parameters=p).permute(0, 2, 1, 3).reshape(2 * (start.numel(),)) for p in (w, a)
    )
    v = torch.randn((5, *start.shape), generator=generator(2, "anchor", "directions"), dtype=F64).flatten(1)
    assert found.drift == pytest.approx(float((v @ (k - k0)).norm() / (v @ k0).norm()), rel=1e-9)
    many = torch.randn((4000, start.numel()), generator=generator(0), dtype=F64)
    squares = [float((many @ m).square().sum()) / 4000 for m in (k - k0, k0)]
    assert (squares[0] / squares[1]) ** 0.5 == pytest.approx(measure.drift(k, k0), rel=0.05)


@pytest.mark.parametrize(
    "name", ["cubic", "tokens", "recurrent", "images", "tied", "batch norm in eval", "partly frozen"]
)
def test_any_network_that_can_be_linearised_is_looked_at(name: str) -> None:
    """Nothing has changed at the anchor, and the routes other than forward mode tell the same."""
    make, x, output = NETWORKS[name]
    torch.manual_seed(1)
    net = make().to(F64)
    look = Look(
        net, x, lambda out: out.square().mean(), control.Adaptive(trust=0.5, gap=1.0, drift=1.0), output
    )
    found = look.reading(at(net), at(net))
    assert found.trust == pytest.approx(1.0) and found.drift < 1e-12
    far = look.reading(at(net), moved(net, 0.2))
    assert all(map(math.isfinite, (far.trust, far.gap, far.drift))) and far.gap > 0
    assert far == look.reading(at(net), moved(net, 0.2))


def test_what_is_not_asked_for_is_not_computed() -> None:
    net = models.mlp(4, 6, 1)
    found = Look(net, torch.ones(2, 4, dtype=F64), lambda out: out.sum(), control.Adaptive(gap=1.0)).reading(
        at(net), at(net)
    )
    assert math.isnan(found.trust) and math.isnan(found.drift)


def test_the_ratio_says_whether_the_network_does_as_predicted() -> None:
    assert trust_ratio(1.0, 0.6, 0.5) == pytest.approx(0.8)
    assert trust_ratio(1.0, 1.2, 0.5) == pytest.approx(-0.4)
    assert trust_ratio(1.0, 1.0, 1.0) == 1.0
    assert trust_ratio(1.0, 1.2, 1.1) == pytest.approx(0.5) and trust_ratio(1.0, 1.05, 1.1) == 1.0
    assert trust_ratio(1.0, 1.1, 1.0) == 0.0
    assert math.isnan(trust_ratio(1.0, math.nan, 0.5)) and math.isnan(trust_ratio(1.0, 0.5, math.nan))


def test_ratios_of_nothing() -> None:
    one, none = torch.ones(2), torch.zeros(2)
    assert relative_gap(one, one, one) == 0.0 and relative_gap(one, one, none) == math.inf
    assert (
        kernel_drift(one, one) == 0.0
        and kernel_drift(one, none) == math.inf
        and kernel_drift(none, none) == 0.0
    )


def test_samples_are_drawn_once() -> None:
    rule = control.Adaptive(gap=1.0, samples=5)
    assert torch.equal(probed(20, rule), probed(20, rule)) and len(set(probed(20, rule).tolist())) == 5
    assert torch.equal(probed(4, rule), torch.arange(4))
    assert not torch.equal(probed(20, rule), probed(20, control.Adaptive(gap=1.0, samples=5, seed=1)))


def test_a_rule_ends_at_its_thresholds() -> None:
    rule = control.Adaptive(trust=0.5, gap=0.3, drift=0.2, every=4, least=3, most=20)
    assert (
        [n for n in range(25) if rule.looks(n)] == [3, 7, 11, 15, 19] and rule.ends(20) and not rule.ends(19)
    )
    for numbers, why in (
        ((0.5, 0.3, 0.2), None),
        ((0.4, 0.4, 0.0), "trust"),
        ((math.nan, 0.0, 0.0), "trust"),
        ((0.9, 0.4, 0.3), "gap"),
        ((0.9, 0.1, math.inf), "drift"),
    ):
        assert rule.says(Findings(*numbers)) == why


def test_rules_refuse_what_is_out_of_range() -> None:
    for make, match in (
        (lambda: control.Every(0), r"`steps`: got 0, expected 1 \(plain training\) or more"),
        (lambda: control.AtSteps([0]), r"`moments`: got \(0,\), expected numbers of steps from 1"),
        (lambda: control.AtSteps([4, 2]), "in rising order"),
        (lambda: control.AtSteps([2, 2]), "in rising order"),
        (lambda: control.Adaptive(), "`trust`: got None with no `gap` and no `drift`"),
        (lambda: control.Adaptive(trust=1.0), "`trust`: got 1, expected a number below 1"),
        (lambda: control.Adaptive(gap=0.0), "`gap`: got 0, expected a positive"),
        (lambda: control.Adaptive(gap=0.1, least=5, most=4), "`most`: got 4, expected 5 or more"),
    ):
        with pytest.raises(UserError, match=match):
            make()
