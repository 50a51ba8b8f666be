"""Declared trainable, did not move: injected faults are found with their reason, healthy runs raise no alarm."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regimes import measure
from regimes.core.error import UserError

Make = Callable[[Any], Optimizer]


class Net(nn.Module):
    """Two hidden layers and a head, with a place to break the middle one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.break_b: Callable[[nn.Linear, Tensor], Tensor] = lambda b, x: b(x)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        return self.c(h + torch.tanh(self.break_b(self.b, h)))


def sgd(parameters: Any) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def adam(parameters: Any) -> Optimizer:
    return torch.optim.Adam(parameters, lr=0.01)


def step(net: nn.Module, optimizer: Optimizer, x: Any, scale: float = 1.0) -> None:
    """One step, with the gradients left where they are."""
    optimizer.zero_grad()
    (scale * net(x).square().mean()).backward()
    optimizer.step()


def under_no_grad(layer: nn.Linear, x: Tensor) -> Tensor:
    with torch.no_grad():
        return layer(x)


def late_thaw(net: Net, optimizer: Optimizer, x: Tensor) -> None:
    net.b.requires_grad_(False)
    loss = net(x).square().mean()
    net.b.requires_grad_(True)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def break_forward(net: Net, fault: str) -> None:
    """The faults that lie in the forward pass."""
    if fault == "gradient lost through detach":
        net.break_b = lambda b, h: b(h).detach()
    if fault == "gradient lost through no_grad":
        net.break_b = under_no_grad
    if fault == "weights used through .data":
        net.break_b = lambda b, h: nn.functional.linear(h, b.weight.data, b.bias.data)
    if fault == "layer that is not used":
        net.break_b = lambda b, h: h
    if fault == "gradient exactly zero":
        net.break_b = lambda b, h: 0.0 * b(h)
    if fault == "dead layer":
        net.break_b = lambda b, h: torch.relu(b(h) - 100)


def broken(net: Net, make: Make, fault: str) -> tuple[Optimizer, Callable[[], None]]:
    """The optimiser with a fault in the layer ``b``, or in how it is stepped, and what a step is."""
    x = torch.randn(8, 4)
    if fault == "frozen layer in the optimiser":
        net.b.requires_grad_(False)
    optimizer = make(net.parameters())
    if fault == "layer left out of the optimiser":
        optimizer = make([*net.a.parameters(), *net.c.parameters()])
    break_forward(net, fault)
    if fault == "learning rate 0":
        groups = [
            {"params": [*net.a.parameters(), *net.c.parameters()]},
            {"params": net.b.parameters(), "lr": 0.0},
        ]
        optimizer = make(groups)
    if fault == "replaced after the optimiser was made":
        net.b = nn.Linear(6, 6)
    if fault == "parameters made again after the optimiser was made":
        net.b.weight, net.b.bias = (nn.Parameter(p.detach().clone()) for p in net.b.parameters())
    if fault == "switched off after a first step":
        step(net, optimizer, x)
        net.b.requires_grad_(False)
    if fault == "frozen when the graph was recorded":
        return optimizer, lambda: late_thaw(net, optimizer, x)
    if fault == "updates below the last digit":
        net.b.to(torch.bfloat16)
        net.b.weight.data.fill_(1.0)
        net.b.bias.data.fill_(1.0)
        net.break_b = lambda b, h: 1e-3 * b(h.bfloat16()).float()
    if fault == "gradient of nan, steps skipped":
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)

        def skipped() -> None:
            optimizer.zero_grad()
            scaler.scale((net(x) * math.nan).sum()).backward()
            scaler.step(optimizer)
            scaler.update()

        return optimizer, skipped
    if fault == "step never called":
        return optimizer, lambda: net(x).square().mean().backward()
    if fault == "put back after each step":
        kept = copy.deepcopy(net.b.state_dict())
        return optimizer, lambda: (step(net, optimizer, x), net.b.load_state_dict(kept), None)[-1]
    return optimizer, lambda: step(net, optimizer, x)


FAULTS = {
    "frozen layer in the optimiser": "frozen",
    "layer left out of the optimiser": "left out",
    "gradient lost through detach": "no gradient",
    "gradient lost through no_grad": "no gradient",
    "weights used through .data": "no gradient",
    "layer that is not used": "no gradient",
    "gradient exactly zero": "zero gradient",
    "dead layer": "zero gradient",
    "learning rate 0": "rate 0",
    "replaced after the optimiser was made": "replaced",
    "parameters made again after the optimiser was made": "replaced",
    "switched off after a first step": "switched off",
    "frozen when the graph was recorded": "no gradient",
    "updates below the last digit": "rounding",
    "gradient of nan, steps skipped": "not finite",
    "step never called": "not stepped",
    "put back after each step": "not stepped",
}
EVERYWHERE = ("gradient of nan, steps skipped", "step never called")


@pytest.mark.parametrize("fault", FAULTS)
def test_an_injected_fault_is_found_with_its_reason(fault: str) -> None:
    for seed, make in enumerate((lambda p: torch.optim.SGD(p, lr=1e-3), sgd, adam)):
        torch.manual_seed(seed)
        net = Net()
        if fault == "updates below the last digit" and make is not sgd:
            make = lambda p: torch.optim.Adam(p, lr=1e-4)  # noqa: E731
        optimizer, one_step = broken(net, make, fault)
        before = copy.deepcopy(net.state_dict())
        for _ in range(3):
            one_step()
        found = measure.unmoved(net, before, optimizer)
        layers = "abc" if fault in EVERYWHERE else "b"
        assert [each.name for each in found] == [
            f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")
        ]
        # Plain SGD keeps nothing by which it could be told that there once was a gradient.
        unknown = FAULTS[fault] == "switched off" and not optimizer.state
        assert {each.why for each in found} == {"frozen" if unknown else FAULTS[fault]}
        assert found == measure.unmoved(net, before, [optimizer])


def test_a_fault_of_one_parameter_is_found_beside_another_that_moves() -> None:
    net = Net()
    net.break_b = lambda b, h: nn.functional.linear(h, b.weight.detach(), b.bias)
    optimizer, one_step = broken(net, sgd, "")
    before = copy.deepcopy(net.state_dict())
    one_step()
    (found,) = measure.unmoved(net, before, optimizer)
    assert (found.name, found.why) == ("b.weight", "no gradient")
    assert str(found).startswith("'b.weight' did not move: no gradient reached it: ")


def test_a_tied_parameter_that_is_frozen_under_another_name() -> None:
    embed, head = nn.Embedding(5, 3), nn.Linear(3, 5)
    head.weight = embed.weight
    embed.requires_grad_(False)
    net = nn.ModuleDict({"embed": embed, "head": head})
    before = copy.deepcopy(net.state_dict())
    optimizer = sgd(net.parameters())
    head(embed(torch.arange(5))).square().sum().backward()
    optimizer.step()
    (found,) = measure.unmoved(net, before, optimizer)
    assert (found.name, found.why, found.names) == ("embed.weight", "tied", ("embed.weight", "head.weight"))
    assert "embed.weight, head.weight" in str(found)
    (found,) = measure.unmoved(net, before, declared=["head.weight"])
    assert found.why == "tied" and measure.unmoved(net, before) == []


def test_what_is_declared_counts_whatever_it_requires() -> None:
    net = Net()
    net.b.requires_grad_(False)
    optimizer = sgd(p for p in net.parameters() if p.requires_grad)
    before = copy.deepcopy(net.state_dict())
    step(net, optimizer, torch.randn(8, 4))
    assert measure.unmoved(net, before, optimizer) == []
    found = measure.unmoved(net, before, optimizer, declared=["b.weight", "a.weight"])
    assert [(each.name, each.why) for each in found] == [("b.weight", "switched off")]
    kept = {name: value for name, value in before.items() if not name.startswith("b")}
    assert measure.unmoved(net, kept, optimizer, declared=["b.weight"]) == found


def test_with_cleared_gradients_the_state_of_the_optimiser_tells_or_nothing_does() -> None:
    for make, why in ((adam, "no gradient"), (lambda p: torch.optim.SGD(p, lr=0.1), "cleared")):
        net = Net()
        net.break_b = lambda b, h: b(h).detach()
        optimizer, one_step = broken(net, make, "")
        before = copy.deepcopy(net.state_dict())
        one_step()
        optimizer.zero_grad()
        assert {each.why for each in measure.unmoved(net, before, optimizer)} == {why}


def test_without_an_optimiser_the_gradients_tell() -> None:
    net = Net()
    net.break_b = lambda b, h: b(h).detach()
    before = copy.deepcopy(net.state_dict())
    net(torch.randn(8, 4)).sum().backward()
    found = measure.unmoved(net, before)
    assert [each.why for each in found] == ["not stepped"] * 2 + ["no gradient"] * 2 + ["not stepped"] * 2


def test_two_optimisers_one_of_which_is_never_stepped() -> None:
    net = Net()
    first, second = sgd([*net.a.parameters(), *net.c.parameters()]), adam(net.b.parameters())
    before = copy.deepcopy(net.state_dict())
    step(net, first, torch.randn(8, 4))
    assert [(each.name, each.why) for each in measure.unmoved(net, before, [first, second])] == [
        ("b.weight", "not stepped"),
        ("b.bias", "not stepped"),
    ]


def test_toggled_after_compile() -> None:
    """What was compiled with a frozen layer: this version of torch compiles again, so that the layer moves."""
    net = Net()
    net.b.requires_grad_(False)
    compiled: Any = torch.compile(net, backend="eager")
    x, optimizer = torch.randn(8, 4), sgd(net.parameters())
    step(compiled, optimizer, x)
    before = copy.deepcopy(net.state_dict())
    step(compiled, optimizer, x)
    assert {each.why for each in measure.unmoved(net, before, optimizer)} == {"frozen"}
    net.b.requires_grad_(True)
    step(compiled, optimizer, x)
    assert measure.unmoved(net, before, optimizer) == []


def test_names_the_mistake() -> None:
    net = Net()
    before = copy.deepcopy(net.state_dict())
    lost = {**before, "b.bias": before["b.bias"] * math.nan}
    cases: list[tuple[str, dict[str, Any]]] = [
        ("`before`: 'a.weight' shares its memory with the module", {"before": net.state_dict()}),
        ("`before`: 'c.bias' is missing", {"before": {n: v for n, v in before.items() if n != "c.bias"}}),
        ("`before`: 'a.bias' has shape", {"before": {**before, "a.bias": torch.ones(2)}}),
        (
            "`before`: 'a.bias' is of torch.float64",
            {"before": {**before, "a.bias": before["a.bias"].double()}},
        ),
        (r"`before`: 'b.bias': \[0\] is nan", {"before": lost}),
        (
            "`declared`: got 'b.weigth', .*did you mean 'b.weight'",
            {"before": before, "declared": ["b.weigth"]},
        ),
        ("`optimizer`: got 3, expected", {"before": before, "optimizer": 3}),
    ]
    for message, arguments in cases:
        with pytest.raises(UserError, match=message):
            measure.unmoved(net, **arguments)
    with torch.no_grad():
        net.a.weight[0, 1] = math.inf
    with pytest.raises(UserError, match=r"`module`: 'a.weight': \[0, 1\] is inf"):
        measure.unmoved(net, before)


class Split(nn.Module):
    """A layer here, one on another device, an empty parameter and a complex one."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.here, self.there = nn.Linear(3, 4), nn.Linear(4, 2).to(device)
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.phase = nn.Parameter(torch.ones(4, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        h = (self.here(x) * self.phase).real
        return self.there(h.to(self.there.weight.device)).to(x.device)


def test_of_several_devices_empty_and_complex_parameters(device: torch.device) -> None:
    net = Split(device)
    before = {name: value.cpu() for name, value in copy.deepcopy(net.state_dict()).items()}
    optimizer, x = sgd(net.parameters()), torch.randn(8, 3)
    for _ in range(2):
        step(net, optimizer, x)
    assert measure.unmoved(net, before, optimizer) == []
    changes = measure.activity(net.state_dict(), before, module=net)
    assert changes.total == 16 + 10 + 4 and sum(
        one.moved for one in changes.layers.values()
    ) == pytest.approx(1)
    for origin in (before, copy.deepcopy(net.state_dict())):
        found = measure.reset_test(net, x, torch.arange(8) % 2, origin=origin, active=changes.top(1), draws=1)
        assert found.active == found.start == found.random.value
    with torch.no_grad():
        net.phase.copy_(before["phase"].to(net.phase.device))
    (still,) = measure.unmoved(net, before, optimizer)
    assert (still.name, still.why) == ("phase", "not stepped")
