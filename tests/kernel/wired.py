"""Random networks of a second grammar: layers on rows, wired as a random graph, some shared, merged or normed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from tests.measure.awkward_case import F64

__all__ = ["Wired", "changed", "wired"]

SIZES = (1, 2, 3)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sine": torch.sin,
    "gelu": functional.gelu,
    "softplus": functional.softplus,
    "in place": lambda h: h.sin().mul_(2.0).add_(h),
}


class LowRank(nn.Module):
    """(W + s B A) x + b, merged at each call."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.randn(outputs))
        self.a, self.b = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(outputs, 2))
        self.s = 0.5

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight + self.s * (self.b @ self.a), self.bias)


class Multiplied(nn.Module):
    """m W x, with the factor on the weight or on the outcome."""

    def __init__(self, inputs: int, outputs: int, inside: bool) -> None:
        super().__init__()
        self.weight, self.m, self.inside = nn.Parameter(torch.randn(outputs, inputs)), 0.7, inside

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.m * self.weight).T if self.inside else self.m * (x @ self.weight.T)


class Attention(nn.Module):
    """Self-attention on a row of t tokens of width 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens = nn.Linear(width, 2 * width)
        self.attention = nn.MultiheadAttention(2, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x).unflatten(1, (-1, 2))
        return self.attention(h, h, h, need_weights=False)[0].mean(2)


class Convolved(nn.Module):
    """A convolution with groups along a row of d positions and 2 channels; back to d."""

    def __init__(self, groups: int, kernel: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 2, kernel, padding="same")
        self.second = nn.Conv1d(2, 2, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x[:, None]).tanh()).sum(1)


class Looked(nn.Module):
    """Rows of a table, by the sign of the first entry."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(3, width)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.table((x[:, 0].detach() > 0).long())


def layer_of(rng: Random, inputs: int, outputs: int) -> nn.Module:
    """A layer from rows to rows; one that keeps the width follows a linear one."""
    base: nn.Module = rng.choice(
        [
            lambda: nn.Linear(inputs, outputs, bias=rng.random() < 0.7),
            lambda: LowRank(inputs, outputs),
            lambda: parametrizations.weight_norm(nn.Linear(inputs, outputs)),
            lambda: Multiplied(inputs, outputs, rng.random() < 0.5),
        ]
    )()
    kind = rng.randrange(9)
    if kind == 0:
        return nn.Sequential(base, nn.PReLU(rng.choice([1, outputs])))
    if kind == 1 and outputs > 1:
        return nn.Sequential(base, rng.choice([nn.LayerNorm, nn.RMSNorm])(outputs))
    if kind == 2:
        return nn.Sequential(base, nn.GroupNorm(1, outputs) if outputs > 1 else nn.Tanh())
    if kind == 3:
        return nn.Sequential(base, Attention(outputs))
    if kind == 4:
        return nn.Sequential(base, Convolved(rng.choice([1, 2]), rng.choice([1, 3])))
    if kind == 5:
        return nn.Sequential(base, Looked(outputs))
    return base


@dataclass(frozen=True)
class Step:
    """One node of the graph.

    Attributes:
        layer: the number of the layer.
        sources: the nodes whose outcomes it is given, side by side or added up.
        act: the name of its activation.
        residual: whether what it is given is added to the outcome.
    """

    layer: int
    sources: tuple[int, ...]
    act: str
    residual: bool


class Wired(nn.Module):
    """A random graph of layers; a layer may stand in several nodes.

    Attributes:
        inputs: of a sample.
        t: a temperature.
    """

    def __init__(self, rng: Random) -> None:
        super().__init__()
        self.inputs, width, outputs = (rng.choice(SIZES) for _ in range(3))
        self.t = 1.0
        made = [layer_of(rng, width, width) for _ in range(rng.randint(1, 3))]
        if len(made) > 1 and rng.random() < 0.4 and all(type(m) is nn.Linear for m in made[:2]):
            made[1].weight = made[0].weight
        self.layers = nn.ModuleList([nn.Linear(self.inputs, width), *made])
        self.head = layer_of(rng, width, outputs) if rng.random() < 0.3 else nn.Linear(width, outputs)
        self.steps = [
            Step(
                1 + rng.randrange(len(made)),
                tuple(sorted(rng.sample(range(k + 1), min(k + 1, rng.randint(1, 2))))),
                rng.choice(list(ACTIVATIONS)),
                rng.random() < 0.4,
            )
            for k in range(rng.randint(0, 4))
        ]
        self.joined = nn.Linear(2 * width, width) if rng.random() < 0.5 else None

    def forward(self, x: Tensor) -> Tensor:
        nodes = [self.layers[0](x)]
        for step in self.steps:
            given = [nodes[k] for k in step.sources]
            if len(given) == 2 and self.joined is not None:
                h = self.joined(torch.cat(given, 1))
            else:
                h = given[0] if len(given) == 1 else given[0] + given[1]
            out = ACTIVATIONS[step.act](self.layers[step.layer](h))
            nodes.append(out + h if step.residual else out)
        out = self.head(nodes[-1])
        return out if self.t == 1 else out / self.t


def wired(seed: int) -> tuple[Wired, Random]:
    """The network of a seed in float64, some of its parameters frozen; and what draws the rest of its case."""
    rng = Random(seed)
    torch.manual_seed(seed)
    net = Wired(rng).to(F64)
    for p in net.layers.parameters():
        p.requires_grad_(rng.random() < 0.85)
    return net, rng


Output = Callable[[Any], Tensor]


def changed(net: Wired, rng: Random) -> Output | None:
    """Something about the network is changed; what picks its outputs from now on."""

    def hooked() -> None:
        place: Any = rng.choice([net.head, *net.layers])
        place.register_forward_hook(lambda layer, given, out: out + 0.5 * out.sin())

    def rescaled() -> None:
        for part in net.modules():
            if isinstance(part, LowRank):
                part.s = -1.5
            elif isinstance(part, Multiplied):
                part.m = 2.0
        net.t = 0.5

    def rewired() -> None:
        for k, step in enumerate(net.steps):
            net.steps[k] = Step(step.layer, step.sources, "sine", not step.residual)
        net.t = 3.0

    def frozen() -> None:
        for p in net.layers.parameters():
            p.requires_grad_(not p.requires_grad)

    def moved() -> None:
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(1.5)

    factor = rng.choice([0.5, 2.0])
    output = rng.choice([lambda out: out * factor, lambda out: (factor * out).tanh(), lambda out: out[:, :1]])
    what = rng.choice([hooked, rescaled, rewired, frozen, moved, None])
    if what is None:
        return output
    what()
    return None
