"""Weights that several layers share, that one layer uses several times, or that are used beside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from regimes import control
from tests.measure.awkward_case import Case, D, Net, matrix, normal, tokens

__all__ = ["CASES", "Tied"]


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, 2)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.b(self.a(x).tanh()).tanh())


class TwoPaths(nn.Module):
    """One layer that two names lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(D, D)
        self.b = nn.Sequential(self.a, nn.Tanh())
        self.out = nn.Linear(D, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.b(self.a(x).tanh()))


def two_layers(hidden: int = 3, outputs: int = 2) -> dict[str, nn.Module]:
    return {"a": nn.Linear(D, hidden), "out": nn.Linear(hidden, outputs)}


def reused(net: Any, x: Tensor) -> Tensor:
    return net.out(net.a(net.a(x).tanh()).tanh())


def functional_use(net: Any, x: Tensor) -> Tensor:
    """By its layer, and once more by itself."""
    return net.out(functional.linear(net.a(x).tanh(), net.a.weight.T))


def only_functional(net: Any, x: Tensor) -> Tensor:
    """What the layer gives is thrown away."""
    net.a(x)
    return net.out(functional.linear(x * 2, net.a.weight).tanh())


def bias_in_output(net: Any, x: Tensor) -> Tensor:
    return net.out(net.a(x).tanh()) + net.a.bias.square().sum()


def in_time(net: Any, x: Tensor) -> Tensor:
    h = x.new_zeros(len(x), 3)
    for step in x.unbind(1):
        h = (net.a(step) + net.b(h)).tanh()
    return net.out(h)


def two_resolutions(net: Any, x: Tensor) -> Tensor:
    fine, coarse = net.a(x).tanh(), net.a(functional.avg_pool2d(x, 2)).tanh()
    return net.out(torch.cat([fine.flatten(1), coarse.flatten(1)], 1))


def shared_bias() -> nn.Module:
    net = nn.Sequential(
        nn.Linear(D, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Conv1d(1, 3, 1), nn.Flatten()
    )
    net[4].bias = net[2].bias = net[0].bias
    net.insert(4, nn.Unflatten(1, (1, 3)))
    return net


def tied_head() -> nn.Module:
    net = nn.Sequential(
        nn.Embedding(5, 3), nn.Linear(3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6, 3), nn.Linear(3, 5)
    )
    net[5].weight = net[0].weight
    return net


def autoencoder(net: Any, x: Tensor) -> Tensor:
    h = functional.linear(x, net.w, net.b).tanh()
    return functional.linear(h, net.w.T, net.c)


def siamese(net: Any, x: Tensor) -> Tensor:
    """The rows of a layer are those of the batch twice over."""
    left, right = net.a(torch.cat([x, x.square()])).tanh().chunk(2)
    return net.out(left * right)


def repeated(net: Any, x: Tensor) -> Tensor:
    """Three rows for each sample."""
    rows = x.repeat_interleave(3, 0) * net.scales.repeat(len(x))[:, None]
    return net.out(net.a(rows).tanh().view(len(x), -1))


def antithetic(net: Any, x: Tensor) -> Tensor:
    """The batch three times over, as rows."""
    rows = (net.scales[:, None, None] * x).flatten(0, 1)
    return net.out(net.a(rows).tanh().view(3, len(x), -1).mean(0))


CASES: dict[str, Case] = {
    "tied": Case(Tied),
    "reused": Case(lambda: Net(reused, **two_layers(D))),
    "two paths": Case(TwoPaths),
    "functional": Case(lambda: Net(functional_use, **two_layers(D))),
    "only functional": Case(lambda: Net(only_functional, **two_layers())),
    "bias as parameter": Case(lambda: Net(bias_in_output, **two_layers(3, 1))),
    "reused in time": Case(
        lambda: Net(in_time, a=nn.Linear(2, 3), b=nn.Linear(3, 3, bias=False), out=nn.Linear(3, 2)),
        normal(3, 2),
    ),
    "conv at two resolutions": Case(
        lambda: Net(two_resolutions, a=nn.Conv2d(1, 2, 2), out=nn.Linear(20, 2)), normal(1, 4, 4)
    ),
    "shared bias": Case(shared_bias),
    "tied head": Case(tied_head, tokens(2, 5)),
    "scaled and tied": Case(lambda: control.scale(Tied(), alpha=2.0)),
    "autoencoder": Case(lambda: Net(autoencoder, w=matrix(3, D), b=matrix(3), c=matrix(D))),
    "siamese": Case(lambda: Net(siamese, **two_layers())),
    "rows per sample": Case(lambda: Net(repeated, a=nn.Linear(D, 2), scales=matrix(3), out=nn.Linear(6, 2))),
    "batches as rows": Case(lambda: Net(antithetic, scales=matrix(3), **two_layers())),
}
