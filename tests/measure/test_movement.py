"""The distance from the start."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from regimes import control, measure, models
from regimes.core.error import UserError
from regimes.core.state import State
from regimes.core.tree import Flat, Layout


@given(st.floats(-3, 3), st.integers(0, 9))
def test_of_a_stretched_network(factor: float, seed: int) -> None:
    origin = State.of(models.mlp(3, 4, 2, bias=True, seed=seed)).origin
    now = {name: p * (1 + factor) for name, p in origin.items()}
    assert measure.movement(now, origin) == pytest.approx(abs(factor))
    layers = measure.movement(now, origin, by_layer=True)
    assert layers == pytest.approx({"0": abs(factor), "2": abs(factor), "4": abs(factor)})


def test_is_the_ratio_of_norms() -> None:
    origin = State.of(models.mlp(3, 4, 2)).origin
    layout = Layout(tuple(origin), tuple(tuple(p.shape) for p in origin.values()))
    start, now = layout.join(origin), torch.randn(layout.total, dtype=torch.float64)
    expected = float((now - start).norm() / start.norm())
    assert measure.movement(Flat(layout, now), origin) == pytest.approx(expected)


def test_from_zero() -> None:
    zero, one = {"a.bias": torch.zeros(2)}, {"a.bias": torch.ones(2)}
    assert measure.movement(zero, zero) == 0
    assert measure.movement(one, zero, by_layer=True) == {"a": math.inf}


def test_of_a_diverged_network_is_nan_in_a_row_and_named_elsewhere() -> None:
    for bad in (math.nan, math.inf):
        now, start = {"a": torch.full((2,), bad)}, {"a": torch.ones(2)}
        for pair, argument in (((now, start), "parameters"), ((start, now), "origin")):
            with pytest.raises(UserError, match=rf"`{argument}`: 'a': \[0\] is {bad}"):
                measure.movement(*pair)
        state = State.of(models.mlp(3, 4, 1))
        lost = State(state.module, {n: p * bad for n, p in state.parameters.items()}, state.origin)
        assert math.isnan(measure.Movement().look(lost)["dW"])


def test_names_the_mistake() -> None:
    one = torch.ones(1)
    cases: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("'b' is in `origin` alone, .* give module=", {"a": one}, {"a": one, "b": one}),
        (r"'a' has shape \(1,\), expected \(3,\)", {"a": torch.ones(3)}, {"a": one}),
        ("hold no parameters", {}, {}),
        ("that is 'module.a' under a wrapper", {"module.a": one}, {"a": one}),
        ("that is 'a' under a wrapper", {"a": one}, {"_orig_mod.a": one}),
        ("that is '0.b' under a wrapper", {"0._orig_mod.b": one}, {"0.b": one}),
    ]
    for message, now, start in cases:
        with pytest.raises(UserError, match=message):
            measure.movement(now, start)


def test_in_double_precision() -> None:
    """A step of a checkpoint in half precision is what it is, not what half precision makes of the difference."""
    start = {"a": torch.full((1000,), 0.1, dtype=torch.bfloat16)}
    now = {"a": torch.full((1000,), 0.3, dtype=torch.bfloat16)}
    expected = float((now["a"].double() - start["a"].double()).norm() / start["a"].double().norm())
    assert measure.movement(now, start) == pytest.approx(expected, rel=1e-12)


def test_probe_reads_the_state() -> None:
    state = State.of(models.mlp(3, 4, 1))
    assert measure.Movement().look(state) == {"dW": 0.0}


def trained(tied: bool = False) -> tuple[nn.Module, dict[str, Tensor], dict[str, float]]:
    """A network with a batch norm after some training, its state dict before, and its weight change by layer."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 3)).double()
    if tied:
        net[3].weight = net[0].weight
    before = copy.deepcopy(net.state_dict())
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(8, 3, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
    moved = {name: float((p.detach() - start[name]).norm()) for name, p in net.named_parameters()}
    sizes = {name: float(value.norm()) for name, value in start.items()}
    whole = math.hypot(*moved.values()) / math.hypot(*sizes.values())
    return net.eval(), before, {"": whole, "3.bias": moved["3.bias"] / sizes["3.bias"]}


@pytest.mark.parametrize("tied", [False, True])
def test_of_two_checkpoints_with_buffers(tied: bool) -> None:
    net, before, expected = trained(tied)
    assert measure.movement(net.state_dict(), before, module=net) == pytest.approx(expected[""])
    if not tied:  # without the module a tied parameter counts under each of its names
        assert measure.movement(net.state_dict(), before) == pytest.approx(expected[""])
    assert measure.movement(dict(net.named_parameters()), before, module=net) == pytest.approx(expected[""])
    for state in (State.of(net, before), State(net, net.state_dict(), before)):
        assert measure.Movement().look(state)["dW"] == pytest.approx(expected[""])
    layers = measure.movement(net.state_dict(), before, module=net, by_layer=True)
    assert set(layers) == ({"0", "1", "3"})


def test_what_is_frozen_has_not_moved() -> None:
    net, before, expected = trained()
    for name, p in net.named_parameters():
        p.requires_grad_(name == "3.bias")
    for origin in (before, {"3.bias": before["3.bias"]}):
        for now in (net.state_dict(), {"3.bias": net.state_dict()["3.bias"]}):
            assert measure.movement(now, origin, module=net) == pytest.approx(expected["3.bias"])
            assert measure.Movement().look(State(net, now, origin))["dW"] == pytest.approx(expected["3.bias"])
        assert measure.Movement().look(State.of(net, origin))["dW"] == pytest.approx(expected["3.bias"])


def test_every_measurement_takes_checkpoints() -> None:
    """A state dict before, the network after, batch norm and a frozen base: what the parameters alone would give."""
    net, before, _ = trained()
    x = torch.randn(5, 3, dtype=torch.float64)
    for frozen in ((), ("0.weight", "0.bias", "1.weight", "1.bias")):
        for name, p in net.named_parameters():
            p.requires_grad_(name not in frozen)
            if name in frozen:
                before[name] = p.detach().clone()
        origin = {name: before[name] for name, p in net.named_parameters() if p.requires_grad}
        plain = State(
            net, {name: p.detach() for name, p in net.named_parameters() if p.requires_grad}, origin
        )
        for probe in (measure.KernelDrift(x), measure.Gap(x), measure.Pattern(x)):
            expected = probe.fresh().look(plain)
            for state in (State.of(net, before), State(net, net.state_dict(), before)):
                assert probe.fresh().look(state) == pytest.approx(expected, rel=1e-12)
        expected = measure.gap(net, x, origin=origin)
        assert measure.gap(net, x, origin=before, parameters=net.state_dict()) == pytest.approx(expected)


def test_a_buffer_that_the_module_does_not_have_is_named() -> None:
    """The module is called with its own statistics, so those of the checkpoint have to be there."""
    net, before, _ = trained()
    x = torch.randn(5, 3, dtype=torch.float64)
    for look in (measure.KernelDrift(x).look, measure.Gap(x).look, measure.Pattern(x).look):
        with pytest.raises(UserError, match=r"the buffer '1\.running_mean' differs from that of the module"):
            look(State(net, before, before))


def test_names_of_wrappers_are_told() -> None:
    net, before, _ = trained()
    wrapped = {f"module.{name}": value for name, value in before.items()}
    for call in (
        lambda: State.of(net, wrapped),
        lambda: measure.gap(net, torch.zeros(2, 3, dtype=torch.float64), origin=wrapped),
        lambda: measure.movement(net.state_dict(), wrapped, module=net),
        lambda: measure.movement(net.state_dict(), wrapped),
    ):
        with pytest.raises(UserError, match=r"0\.\w+'.*; that is '(module\.)?0\.\w+' under a wrapper"):
            call()


def test_of_a_scaled_module_that_was_saved_whole() -> None:
    net = control.scale(models.mlp(3, 4, 1), 10.0)
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        for p in net.network.parameters():
            p.mul_(1.5)
    assert measure.movement(net.state_dict(), before, module=net) == pytest.approx(0.5)
    assert measure.Movement().look(State.of(net, before))["dW"] == pytest.approx(0.5)
