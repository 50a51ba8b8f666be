"""The reset test against a plain loop: sets of parameters back at their start, and nothing else changed."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regimes import control, measure, models
from regimes.core.error import UserError
from regimes.core.estimate import mean
from regimes.core.loss import cross_entropy, squared
from regimes.core.stream import generator

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = (X[:, 0] * X[:, 1] > 0).long() + (X[:, 2] > 1).long()
MORE = torch.randn(30, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def trained(*layers: nn.Module, steps: int = 30) -> tuple[nn.Module, dict[str, Any]]:
    """A network after some steps, and its state dict before them."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), *layers, nn.ReLU(), nn.Linear(8, 3)).double()
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(X), Y).backward()
        optimizer.step()
    return net, before


def plain(
    net: nn.Module,
    before: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    loss: bool = False,
    more: Tensor | None = None,
) -> float:
    """The error, or the cross-entropy, with the entries of the masks at their start, one number after another."""
    other = copy.deepcopy(net)
    for name, p in other.named_parameters():
        for i in range(p.numel()):
            if name in masks and bool(masks[name].reshape(-1)[i]):
                p.data.view(-1)[i] = before[name].reshape(-1)[i]
    other.eval()
    for norm in (sub for sub in other.modules() if isinstance(sub, nn.BatchNorm1d)):
        assert more is not None
        seen: list[Tensor] = []

        def keep(_norm: nn.Module, args: tuple[Tensor], seen: list[Tensor] = seen) -> None:
            seen.append(args[0])

        hook = norm.register_forward_pre_hook(keep)
        other(more)
        hook.remove()
        norm.running_mean, norm.running_var = seen[0].mean(0).detach(), seen[0].var(0).detach()
    out = other(X).detach()
    if loss:
        return float(nn.functional.cross_entropy(out, Y))
    return sum(int(row.argmax()) != int(y) for row, y in zip(out, Y, strict=True)) / len(Y)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("loss", [False, True])
def test_every_number_is_that_of_a_plain_loop(norm: bool, loss: bool) -> None:
    net, before = trained(*([nn.BatchNorm1d(8)] if norm else []))
    more = MORE if norm else None
    changes = measure.activity(net.state_dict(), before, module=net)
    active = changes.top(0.3)
    found = measure.reset_test(
        net,
        X,
        Y,
        origin=before,
        active=active,
        statistics=more,
        loss=cross_entropy if loss else None,
        draws=4,
        seed=3,
        batch_size=64,
    )

    def score(masks: Mapping[str, Tensor]) -> float:
        return plain(net, before, masks, loss, more)

    def drawn(masks: Mapping[str, Tensor], *names: str | int) -> dict[str, Tensor]:
        return one_draw(masks, generator(3, "reset", *names))

    layers = {name.partition(".")[0] for name in active.masks}
    groups = [
        {n: m for n, m in active.masks.items() if n.partition(".")[0] == layer} for layer in sorted(layers)
    ]
    random = [score(drawn(active.masks, "random", i)) for i in range(4)]
    layered = []
    for i in range(4):
        draw, masks = generator(3, "reset", "layered", i), {}
        for group in groups:
            masks |= one_draw(group, draw)
        layered.append(score(masks))
    everything = {name: torch.ones_like(mask) for name, mask in active.masks.items()}
    assert found.end == pytest.approx(score({}), rel=1e-12)
    assert found.start == pytest.approx(score(everything), rel=1e-12)
    assert found.active == pytest.approx(score(active.masks), rel=1e-12)
    assert found.least == pytest.approx(score(changes.bottom(0.3).masks), rel=1e-12)
    assert found.count == active.count and found.share == active.share
    excess = [found.active - each for each in layered]
    for one, scores in ((found.random, random), (found.layered, layered), (found.excess, excess)):
        wanted = mean(scores)
        assert (one.value, one.low, one.high, one.n) == pytest.approx(
            (wanted.value, wanted.low, wanted.high, 4)
        )
        assert "4 draws" in one.method


def one_draw(masks: Mapping[str, Tensor], draw: torch.Generator) -> dict[str, Tensor]:
    """As many entries at random, by a permutation of all of them."""
    places = [(name, i) for name, mask in masks.items() for i in range(mask.numel())]
    wanted = sum(int(mask.sum()) for mask in masks.values())
    found = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    for place in torch.randperm(len(places), generator=draw)[:wanted].tolist():
        name, i = places[place]
        found[name].view(-1)[i] = True
    return found


def test_none_is_the_end_and_all_is_the_start() -> None:
    for norm in ([], [nn.BatchNorm1d(8)]):
        net, before = trained(*norm)
        known: dict[str, Any] = {
            "origin": before,
            "statistics": MORE if norm else None,
            "loss": cross_entropy,
        }
        changes = measure.activity(net.state_dict(), before, module=net)
        none = measure.reset_test(net, X, Y, active=changes.top(0), draws=2, **known)
        assert none.active == none.least == none.end == none.random.value == none.layered.value
        every = measure.reset_test(net, X, Y, active=changes.top(1), draws=2, **known)
        assert every.active == every.least == every.start == every.random.value == every.layered.value
        assert every.end == none.end and every.start == none.start != every.end
        there = measure.reset_test(net, X, Y, parameters=before | dict(net.named_buffers()), draws=1, **known)
        assert there.end == there.active == there.start == pytest.approx(every.start, rel=1e-12)


def test_random_sets_keep_their_size_and_their_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    from regimes.measure import reset

    net, before = trained()
    active = measure.activity(net.state_dict(), before, module=net).top(0.2)
    sets: list[measure.ActiveSet] = []

    def score(_trial: Any, masks: Mapping[str, Tensor]) -> float:
        sets.append(measure.ActiveSet(masks, active.changes))
        return 0.0

    monkeypatch.setattr(reset._Trial, "score", score)
    measure.reset_test(net, X, Y, origin=before, active=active, draws=3)
    sizes = [one.count for one in sets if one.masks]
    assert sorted(sizes) == sorted([active.count] * 8 + [active.changes.total])
    assert sum(one.masks.keys() == active.masks.keys() and one.counts == active.counts for one in sets) >= 4
    different = {
        tuple(torch.cat([m.reshape(-1) for m in one.masks.values()]).tolist()) for one in sets if one.masks
    }
    assert len(different) == 9


class Noisy(nn.Module):
    """Draws random numbers in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = models.mlp(6, 8, 1, outputs=3, seed=0)
        self.norm = nn.BatchNorm1d(3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.inside(x)) + 0.1 * torch.randn(len(x), 3, dtype=x.dtype)


@pytest.mark.parametrize("train", [False, True])
def test_the_module_and_the_generators_stay_as_they_were_and_calls_agree(train: bool) -> None:
    net = Noisy().train(train)
    net.norm.momentum = 0.3
    before = {name: p.detach() + 0.1 for name, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    bits = {name: value.clone() for name, value in net.state_dict().items()}
    state, modes = torch.get_rng_state(), [sub.training for sub in net.modules()]
    with torch.autocast("cpu"):
        found = [
            measure.reset_test(net, X, Y, origin=before, statistics=MORE, draws=2, seed=5) for _ in range(2)
        ]
    other = measure.reset_test(net, X, Y, origin=before, statistics=MORE, draws=2, seed=6)
    assert found[0] == found[1] and found[0].end == other.end
    assert torch.equal(torch.get_rng_state(), state)
    assert [sub.training for sub in net.modules()] == modes and net.norm.momentum == 0.3
    assert all(torch.equal(value, bits[name]) for name, value in net.state_dict().items())
    assert all(p.grad is not None and bool((p.grad == 1).all()) for p in net.parameters())
    assert not any(sub._forward_pre_hooks or sub._forward_hooks for sub in net.modules())


class Named(nn.Module):
    """Takes its inputs by name, gives its outputs in a mapping, has a tied and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(6, 6).requires_grad_(False)
        self.one = nn.Linear(6, 6)
        self.two = nn.Linear(6, 6)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor, shift: float) -> dict[str, Tensor]:
        return {"logits": (self.two(self.one(self.base(x))) + shift)[:, 3]}


def test_inputs_by_name_tied_and_frozen_parameters_and_a_loss() -> None:
    torch.manual_seed(0)
    net = Named().double()
    before = {name: p.detach() + torch.randn_like(p) for name, p in net.named_parameters() if p.requires_grad}
    y = 1.0 - 2.0 * (Y > 0)
    call: dict[str, Any] = {
        "origin": before,
        "output": lambda out: out["logits"],
        "loss": squared,
        "draws": 2,
    }
    found = measure.reset_test(net, {"x": X, "shift": 0.5}, y.double(), **call)
    assert found.share * 48 == pytest.approx(found.count) and found.count == 1
    other = copy.deepcopy(net)
    other.load_state_dict({**other.state_dict(), **before, "two.weight": before["one.weight"]})
    for module, value in ((net, found.end), (other, found.start)):
        out = module(X, 0.5)["logits"].detach()
        assert value == pytest.approx(float((out - y).square().mean() / 2), rel=1e-12)


def test_of_scaled_and_linearised_modules_with_batch_norm() -> None:
    """The statistics of what is subtracted, and those inside a linearisation, are no part of the weights."""
    net = trained(nn.BatchNorm1d(8))[0]
    scaled = control.scale(copy.deepcopy(net).eval(), 3.0)
    with torch.no_grad():
        for p in scaled.network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0), dtype=p.dtype))
    start = {f"network.{name}": p.detach() for name, p in net.named_parameters()}
    found = measure.reset_test(scaled, X, Y, origin=start, statistics=MORE, loss=cross_entropy, draws=1)
    renewed = copy.deepcopy(scaled).eval()
    assert isinstance(renewed.network, nn.Sequential)
    hidden, norm = renewed.network[0](MORE).detach(), renewed.network[1]
    norm.running_mean, norm.running_var = hidden.mean(0), hidden.var(0)
    with torch.no_grad():
        wanted = nn.functional.cross_entropy(renewed(X), Y)
    assert found.end == pytest.approx(float(wanted), rel=1e-12)
    linear = control.linearize(net.eval())
    origin = {name: p.detach() + 0.1 for name, p in linear.named_parameters() if p.requires_grad}
    without = measure.reset_test(linear, X, Y, origin=origin, loss=cross_entropy, draws=1)
    with torch.no_grad():
        wanted = nn.functional.cross_entropy(linear(X), Y)
    assert without.end == pytest.approx(float(wanted), rel=1e-12)


def test_a_draw_that_is_not_finite_makes_the_interval_nan() -> None:
    net, before = trained()
    before["0.weight"][0, 0] = 1e300
    found = measure.reset_test(
        net,
        1e10 * X,
        Y,
        origin=before,
        loss=cross_entropy,
        draws=3,
        active=measure.activity(net.state_dict(), before, module=net).bottom(0.9),
    )
    assert math.isfinite(found.end) and math.isnan(found.random.value) and math.isnan(found.random.low)


def test_names_the_mistake() -> None:
    net, before = trained()
    normed, before_normed = trained(nn.BatchNorm1d(8), steps=1)
    other = measure.activity({"nope": torch.ones(2)}, {"nope": torch.ones(2)}).top()
    cases: list[tuple[str, nn.Module, dict[str, Any]]] = [
        ("`statistics`: got None, but the module has BatchNorm1d", normed, {"origin": before_normed}),
        ("`statistics`: got shape", normed, {"origin": before_normed, "statistics": X[:0]}),
        (
            r"`active`: got 'nope' of shape \(2,\), which is no parameter",
            net,
            {"origin": before, "active": other},
        ),
        ("`draws`: got 0", net, {"origin": before, "draws": 0}),
        ("`batch_size`: got 0", net, {"origin": before, "batch_size": 0}),
        ("`level`", net, {"origin": before, "level": 2.0}),
        (r"`origin`: got 'nope'", net, {"origin": {"nope": torch.ones(1)}}),
    ]
    for message, module, more in cases:
        with pytest.raises(UserError, match=message):
            measure.reset_test(module, X, Y, **more)
    with pytest.raises(UserError, match=r"`y`: got torch.int64 \(3,\) for outputs"):
        measure.reset_test(net, X, Y[:3], origin=before)
