"""A linearised module that keeps what does not hang on w: the same numbers, and never those of something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from regimes.control import Linearized, linearize
from regimes.control.held import HeldBatch
from regimes.core.batch import Inputs, feed, transform
from regimes.core.error import UserError
from tests.control.networks import F64, NETWORKS

# Of these an operation has no forward mode, or writes to what forward mode made.
STREAMED = {"in place", "weight norm", "cubic", "recurrent"}


def hold(linear: Linearized, x: Inputs) -> HeldBatch:
    if isinstance(x, Tensor):
        return linear.hold(x)
    return linear.hold(**x) if isinstance(x, dict) else linear.hold(*x)


def pulled(linear: Linearized, out: Tensor, u: Tensor) -> list[Tensor | None]:
    wanted = [p for p in linear.parameters() if p.requires_grad]
    return [*torch.autograd.grad(out, wanted, u, allow_unused=True)]


def same(linear: Linearized, held: Callable[[], Tensor], x: Inputs) -> None:
    """Value and gradient, each twice."""
    for _ in range(2):
        found, expected = held(), feed(linear, x)
        torch.testing.assert_close(found, expected)
        u = torch.randn_like(expected)
        for mine, theirs in zip(pulled(linear, found, u), pulled(linear, expected, u), strict=True):
            if mine is None or theirs is None:
                assert not any(each is not None and bool(each.any()) for each in (mine, theirs))
            else:
                torch.testing.assert_close(mine, theirs)


def move(linear: Linearized) -> None:
    with torch.no_grad():
        for p in linear.parameters():
            if p.requires_grad:
                p += 0.3 * torch.randn_like(p)


@pytest.mark.parametrize("name", NETWORKS)
def test_is_the_linearised_module(name: str) -> None:
    """At the anchor, away from it, further away, and around another anchor."""
    make, x, output = NETWORKS[name]
    torch.manual_seed(1)
    linear = linearize(make().to(F64), output=output)
    held = hold(linear, x)
    same(linear, held, x)
    move(linear)
    same(linear, held, x)
    linear.relinearize()
    move(linear)
    same(linear, held, x)
    assert bool(held.bytes) == (name not in STREAMED)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in STREAMED])
def test_what_it_will_keep_is_told_from_a_few_samples(name: str) -> None:
    make, x, output = NETWORKS[name]
    linear = linearize(make().to(F64), output=output)
    many = transform(x, lambda each: torch.cat([each] * 6)[: 5 * len(each)])
    told = linear.held_bytes(**many) if isinstance(many, dict) else linear.held_bytes(*listed(many))
    assert told == pytest.approx(hold(linear, many).bytes, rel=0.02)


def inner(linear: Linearized) -> Any:
    return linear.nonlinear


def anchored(linear: Linearized) -> Any:
    return linear.anchor


def listed(x: Any) -> tuple[Any, ...]:
    return (x,) if isinstance(x, Tensor) else tuple(x)


@pytest.mark.parametrize("name", ["relu", "images", "tokens"])
def test_what_it_keeps_is_what_stays_allocated(name: str) -> None:
    make, x, output = NETWORKS[name]
    linear = linearize(make().to(F64), output=output)
    many = transform(x, lambda each: torch.cat([each] * 200))
    hold(linear, many)()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        held = hold(linear, many)
    allocated = sum(each.self_cpu_memory_usage for each in seen.events() or [])
    assert held.bytes == pytest.approx(allocated, rel=0.05)


class Switch(nn.Module):
    """A network with all that can change: a slope, a buffer, a frozen parameter, a mode, hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 6), nn.BatchNorm1d(6).eval(), nn.Linear(6, 2)
        self.slope, self.gain = 0.1, nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.shift: Tensor
        self.register_buffer("shift", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.where(x.sum(1, keepdim=True) > 0, self.norm(self.first(x)), self.first(x))
        return self.last(nn.functional.leaky_relu(hidden, self.slope) * self.gain + self.shift)


def write_x(linear: Linearized, x: Tensor) -> None:
    x.numpy()[0] += 1.0  # behind torch's back


CHANGES: dict[str, Callable[[Linearized, Tensor], object]] = {
    "relinearize": lambda linear, x: linear.relinearize(),
    "a batch, in place": lambda linear, x: x.mul_(2),
    "a batch, with the same numbers": lambda linear, x: x.mul_(1),
    "a batch, in another order": lambda linear, x: x.data.copy_(x.flip(0)),
    "a batch, by numpy": write_x,
    "a batch, by data": lambda linear, x: x.data.add_(1),
    "a buffer": lambda linear, x: inner(linear).shift.add_(1),
    "a buffer, by data": lambda linear, x: inner(linear).shift.data.add_(1),
    "statistics": lambda linear, x: inner(linear).norm.running_var.mul_(3),
    "a frozen parameter": lambda linear, x: inner(linear).gain.data.add_(1),
    "an anchor, by data": lambda linear, x: anchored(linear).first.weight.data.add_(1),
    "a state": lambda linear, x: linear.load_state_dict(
        {name: 2 * value for name, value in linear.state_dict().items()}
    ),
    "an attribute": lambda linear, x: setattr(inner(linear), "slope", 0.7),
    "a hook": lambda linear, x: inner(linear).first.register_forward_hook(lambda m, i, out: 2 * out),
    "a dtype": lambda linear, x: (linear.float(), setattr(x, "data", x.float())),
}


@pytest.mark.parametrize("change", CHANGES)
def test_is_never_stale(change: str) -> None:
    """Each change, between calls, twice, and back to the same."""
    torch.manual_seed(0)
    linear = linearize(Switch().to(F64))
    x = torch.randn(6, 3, dtype=F64)
    held = linear.hold(x)
    linear.relinearize()  # which writes the same numbers
    same(linear, held, x)
    for _ in range(2):
        move(linear)
        same(linear, held, x)
        with torch.no_grad():
            CHANGES[change](linear, x)
            move(linear)
        same(linear, held, x)


def test_a_mode_that_changes_is_seen() -> None:
    linear = linearize(nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5).eval(), nn.Linear(4, 1)))
    held = linear.hold(torch.randn(5, 3))
    inner(linear)[1].train()
    with pytest.raises(UserError, match="draws random numbers"):
        held()


def test_a_buffer_that_changes_at_each_call() -> None:
    """Statistics that a batch norm gathers, once it is told to: nothing is kept."""
    linear = linearize(Switch().to(F64))
    x = torch.randn(6, 3, dtype=F64)
    held = linear.hold(x)
    inner(linear).norm.train()
    before = inner(linear).norm.running_mean.clone()
    same(linear, held, x)
    assert not held.bytes and not torch.equal(inner(linear).norm.running_mean, before)


def test_a_parameter_that_is_frozen_or_thawed_later() -> None:
    linear = linearize(Switch().to(F64))
    x = torch.randn(6, 3, dtype=F64)
    held = linear.hold(x)
    inner(linear).first.weight.requires_grad_(False)
    same(linear, held, x)
    inner(linear).first.weight.requires_grad_(True)
    same(linear, held, x)
    inner(linear).gain.requires_grad_(True)
    with pytest.raises(UserError, match="was frozen when the module was linearised"):
        held()


def test_trains_as_the_linearised_module_does() -> None:
    """Adam over two anchors; with closures of the loss that take second derivatives by w."""
    paths = []
    for keeps in (False, True):
        torch.manual_seed(3)
        linear = linearize(nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).to(F64))
        x, y = torch.randn(8, 3, dtype=F64), torch.randn(8, 2, dtype=F64)
        held = linear.hold(x) if keeps else lambda linear=linear, x=x: linear(x)
        optimizer = torch.optim.Adam(linear.parameters(), lr=0.05)
        for step in range(20):
            if step == 10:
                linear.relinearize()
            optimizer.zero_grad()
            ((held() - y) ** 4).mean().backward()
            optimizer.step()
        loss = ((held() - y) ** 4).mean()
        first = torch.autograd.grad(loss, list(linear.parameters()), create_graph=True)
        torch.stack([each.square().sum() for each in first]).sum().backward()
        paths.append([each for p in linear.parameters() for each in (p.detach(), p.grad)])
    for mine, theirs in zip(*paths, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_without_gradients_and_in_inference_mode() -> None:
    linear, x = linearize(nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))), torch.randn(8, 3)
    with torch.inference_mode():
        inside = linear.hold(x)
        assert not inside().requires_grad
        made = torch.randn(8, 3)
        of_inference = linear.hold(made)
    held = linear.hold(x)
    move(linear)
    torch.testing.assert_close(of_inference(), linear(made.clone()))
    for each in (held, inside):
        same(linear, each, x)
        with torch.no_grad():
            assert not each().requires_grad
            torch.testing.assert_close(each(), linear(x))
        with torch.inference_mode():
            torch.testing.assert_close(each(), linear(x))


def test_refuses_what_it_could_not_see_or_differentiate() -> None:
    linear = linearize(nn.Linear(3, 1))
    with pytest.raises(UserError, match="requires grad"):
        linear.hold(torch.randn(4, 3, requires_grad=True))
    with pytest.raises(UserError, match="object"):
        linear.hold(object())
    with pytest.raises(UserError, match="is nan"):
        linear.hold(torch.full((4, 3), float("nan")))
    x = torch.randn(4, 3)
    held = linear.hold(x)
    x.requires_grad_()
    with pytest.raises(UserError, match="requires grad"):
        held()
