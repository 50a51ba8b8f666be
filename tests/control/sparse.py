"""What the tests of layer-wise sparse training share: modules, loops, and rules of optimisers written by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regimes import control, models
from regimes.control.layers.order import outputs_of
from regimes.core.batch import feed, transform

__all__ = [
    "CUT",
    "MODULES",
    "RULES",
    "SETTINGS",
    "X",
    "assert_same",
    "batches",
    "compare",
    "loss_of",
    "optimiser",
    "plain",
    "train",
]

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
CUT = control.Cut(p=0.4, top=1)
SETTINGS: Mapping[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "momentum": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}),
    "adam": (torch.optim.Adam, {"lr": 0.01}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
}


class Skips(nn.Module):
    """Connections around layers, batch norm, and a head tied to what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.norm = nn.Linear(3, 4), nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4)
        self.b, self.last = nn.Linear(4, 4), nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).tanh()
        h = h + self.norm(self.a(h)).tanh()
        return self.last(self.b(h).tanh() + h) @ self.first.weight.T


MODULES: Mapping[str, Callable[[], nn.Module]] = {
    "mlp": lambda: models.mlp(3, 5, 3, seed=1),
    "skips": lambda: Skips().double(),
    "scaled": lambda: control.scale(models.mlp(3, 5, 2, seed=1, activation="tanh"), 2.0),
    "linearised": lambda: control.linearize(models.mlp(3, 5, 2, seed=1, activation="tanh")),
}


def _sgd(
    p: Tensor, g: Tensor, state: dict[str, Any], lr: float, momentum: float = 0, weight_decay: float = 0
) -> None:
    g = g + weight_decay * p
    state["v"] = momentum * state.get("v", 0.0) + g
    p -= lr * state["v"]


def _adam(p: Tensor, g: Tensor, state: dict[str, Any], lr: float, weight_decay: float = 0) -> None:
    p *= 1 - lr * weight_decay
    t = state["t"] = state.get("t", 0) + 1
    state["m"] = 0.9 * state.get("m", 0.0) + 0.1 * g
    state["s"] = 0.999 * state.get("s", 0.0) + 0.001 * g * g
    p -= lr * state["m"] / (1 - 0.9**t) / ((state["s"] / (1 - 0.999**t)).sqrt() + 1e-8)


def _idle(state: dict[str, Any]) -> None:
    """A step with gradient 0 of what has a state, without a step of the weights."""
    for name, factor in (("v", 0.9), ("m", 0.9), ("s", 0.999)):
        if name in state:
            state[name] = factor * state[name]
    if "t" in state:
        state["t"] += 1


RULES: Mapping[str, Callable[..., None]] = {"sgd": _sgd, "momentum": _sgd, "adam": _adam, "adamw": _adam}


def loss_of(outputs: Any) -> Tensor:
    """A number that depends on all that a module returns."""
    parts = [each for each in outputs_of(outputs) if each.is_floating_point()]
    return torch.stack([(each - 0.3).square().mean() for each in parts]).sum()


def batches(x: Any, steps: int, pieces: int = 1) -> Iterator[list[Any]]:
    """For each step its batches."""
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        shifts = torch.randn(pieces, generator=generator, dtype=torch.float64)
        yield [
            transform(x, lambda t, s=s: t + 0.1 * s.to(t.dtype) if t.is_floating_point() else t.clone())
            for s in shifts
        ]


def plain(
    module: nn.Module,
    moving: Callable[[int], frozenset[str]],
    data: Sequence[Sequence[Any]],
    rule: Callable[..., None],
    settings: Mapping[str, Any],
    scale: Callable[[str], float] = lambda _: 1.0,
    state: str | None = None,
) -> None:
    """The same by hand: all gradients, and a step of those that move and have one. Velocities decay in between."""
    decays = settings.get("momentum") if state is None else state == "decay"
    own = {name: p for name, p in module.named_parameters() if p.requires_grad}
    states: dict[str, dict[str, Any]] = {name: {} for name in own}
    for step, pieces in enumerate(data):
        total: dict[str, Tensor] = {}
        for x in pieces:
            loss = loss_of(feed(module, x))
            grads = torch.autograd.grad(loss, list(own.values()), allow_unused=True)
            for name, g in zip(own, grads, strict=True):
                if g is not None:
                    total[name] = total.get(name, 0.0) + g.to_dense()
        with torch.no_grad():
            for name in own.keys() - moving(step) if decays else ():
                _idle(states[name])
            for name in moving(step) & total.keys():
                before = own[name].clone()
                rule(own[name], total[name], states[name], **settings)
                own[name].copy_(before + scale(name) * (own[name] - before))


def train(module: nn.Module, optimizer: torch.optim.Optimizer, data: Sequence[Sequence[Any]]) -> None:
    """A plain loop that accumulates gradients."""
    for pieces in data:
        optimizer.zero_grad()
        for x in pieces:
            loss_of(feed(module, x)).backward()
        optimizer.step()


def assert_same(one: nn.Module, other: nn.Module, tolerance: float = 1e-12) -> None:
    """Equal parameters and buffers."""
    theirs = other.state_dict()
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, theirs[name], rtol=tolerance, atol=tolerance)


def optimiser(name: str, module: nn.Module, **more: Any) -> torch.optim.Optimizer:
    kind, settings = SETTINGS[name]
    return kind(module.parameters(), **settings, **more)  # pyright: ignore[reportCallIssue]


def compare(
    make: Callable[[], nn.Module],
    x: Any,
    moves: control.Moves,
    kind: str,
    steps: int = 7,
    pieces: int = 1,
    **more: Any,
) -> None:
    """The policy in a loop against the plain definition."""
    module, other = make(), make()
    other.load_state_dict(module.state_dict())
    data = list(batches(x, steps, pieces))
    optimizer = optimiser(kind, module)
    policy = control.LayerwiseSparse(module, optimizer, moves, example=x, seed=2, **more)
    train(module, optimizer, data)
    assert policy.step == steps
    factors = dict(zip(policy.plan.layers, policy.plan.probabilities, strict=True))
    cap = more.get("largest_factor", 1.0)
    names = dict(zip(policy.plan.layers, policy.plan.parameters, strict=True))
    scale = {
        each: min(1 / factors[layer], cap) if factors[layer] else 1.0
        for layer in names
        for each in names[layer]
    }
    plain(other, policy.plan, data, RULES[kind], SETTINGS[kind][1], scale.__getitem__, more.get("state"))
    assert_same(module, other)
