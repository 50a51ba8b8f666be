"""Slow and plain: training with plans, by autograd and ``torch.optim`` on modules of one's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regimes import control
from regimes.core.loss import Loss

Layers = Callable[[int], Collection[str]]
Anchor = Callable[[int], bool]


def under(name: str, names: Collection[str]) -> bool:
    """Whether a parameter is among the names, or under one of them."""
    return any(name == each or name.startswith(f"{each}.") for each in names)


def stepped(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    loss: Loss,
    batches: Sequence[Tensor],
    *,
    lr: float,
    momentum: float,
    layers: Layers | None,
    anchor: Anchor | None,
) -> list[Tensor]:
    """The flat parameters before each step and at the end: torch.optim.SGD, ``relinearize`` and gradients of None."""
    network, alpha, origin = control.unscaled(module)
    rates = control.rates(network)
    start = (lambda points: 0.0) if origin is None else origin
    f = network if anchor is None else control.linearize(network)
    own = {name: p for name, p in f.named_parameters() if p.requires_grad}
    prefix = "" if network is module else "network."
    groups = [{"params": [p], "lr": lr * rates[name]} for name, p in own.items()]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum)
    path = []
    for step, index in enumerate(batches):
        if anchor is not None and step and anchor(step):
            assert isinstance(f, control.Linearized)
            f.relinearize()
        path.append(flat(own.values()))
        out = alpha * (f(x[index]).reshape(len(index), -1) - start(x[index]))
        optimizer.zero_grad(set_to_none=True)
        (loss.per_sample(out, y[index]).mean() / alpha**2).backward()
        for name, p in own.items():
            if layers is not None and not under(prefix + name, layers(step)):
                p.grad = None
        optimizer.step()
    return [*path, flat(own.values())]


def flat(tensors: Collection[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1).clone() for t in tensors])


@dataclass(frozen=True)
class Planned:
    """What the plain flow has after an accepted step."""

    time: float
    loss: float
    w: Tensor


class Linear:
    """f of a flat vector w; alpha (f(a) + J(a)(w - a) - f(w0)) once there is an anchor a."""

    def __init__(self, network: nn.Module, alpha: float, x: Tensor) -> None:
        self.names = [name for name, _ in network.named_parameters()]
        self.sizes = [p.numel() for p in network.parameters()]
        self.start = flat(list(network.parameters()))
        self._network, self._alpha, self._x = network, alpha, x
        self._shapes = [p.shape for p in network.parameters()]
        self._f0 = self._f(self.start).detach()
        self.anchor: Tensor | None = None

    def _f(self, w: Tensor) -> Tensor:
        parts = [part.view(shape) for part, shape in zip(w.split(self.sizes), self._shapes, strict=True)]
        return torch.func.functional_call(
            self._network, dict(zip(self.names, parts, strict=True)), (self._x,)
        )

    def __call__(self, w: Tensor) -> Tensor:
        """F(w), (n, c)."""
        if self.anchor is None:
            return self._alpha * (self._f(w) - self._f0)
        rows = torch.autograd.functional.jacobian(self._f, self.anchor)
        assert isinstance(rows, Tensor)
        return self._alpha * (self._f(self.anchor).detach() + rows @ (w - self.anchor) - self._f0)

    def mask(self, names: Collection[str]) -> Tensor:
        """Which entries these names stand for."""
        pairs = zip(self.names, self.sizes, strict=True)
        return torch.cat([torch.full((size,), under(name, names)) for name, size in pairs])


def planned_flow(
    network: nn.Module,
    alpha: float,
    x: Tensor,
    y: Tensor,
    loss: Loss,
    *,
    tau: float,
    layers: Layers,
    anchor: Anchor | None,
    steps: int,
) -> list[Planned]:
    """Adapted steps of F on loss / alpha^2, written out for one network."""
    f = Linear(network, alpha, x)

    def evaluate(w: Tensor) -> tuple[Tensor, float, Tensor]:
        leaf = w.clone().requires_grad_()
        out = f(leaf)
        value = loss.per_sample(out, y).mean()
        return out.detach(), value.item(), torch.autograd.grad(value / alpha**2, leaf)[0]

    w, v, dt, time = f.start, torch.zeros_like(f.start), 1.0, 0.0
    f.anchor = None if anchor is None else w
    out, value, g = evaluate(w)
    found = [Planned(0.0, value, w)]
    while len(found) <= steps:
        moves = f.mask(layers(len(found) - 1))
        e = math.exp(-dt / tau) if tau else 0.0
        new_v = torch.where(moves, e * v - (1 - e) * g, v)
        new_w = torch.where(moves, w + dt * new_v, w)
        new_out, new_value, new_g = evaluate(new_w)
        before, after = torch.where(moves, g, 0), torch.where(moves, new_g, 0)
        turned = float((before - after).square().sum() / (before.norm() * after.norm()))
        moved = float((new_out - out).abs().max())
        if not (turned < 1e-4 and moved < 0.1):
            dt /= 10
            continue
        w, v, out, value, g, time = new_w, new_v, new_out, new_value, new_g, time + dt
        if turned < 5e-5 and moved < 0.05:
            dt *= 1.1
        if anchor is not None and anchor(len(found)):
            f.anchor = w
            out, value, g = evaluate(w)
        found.append(Planned(time, value, w))
    return found
