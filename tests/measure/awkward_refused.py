"""Modules that look at the numbers of the samples, couple the samples, or are random."""

from __future__ import annotations

import math
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from tests.measure.awkward_case import Case, D, Net, matrix, normal, tokens

__all__ = ["BRANCHING", "COUPLED", "UNSEPARABLE"]


def layers(hidden: int = 3, outputs: int = 2) -> dict[str, nn.Module]:
    return {"a": nn.Linear(D, hidden), "b": nn.Linear(hidden, hidden), "out": nn.Linear(hidden, outputs)}


# A branch on the numbers of the samples: two samples in one batch cannot go two ways


class Branching(nn.Module):
    """A branch on the number of a feature."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out, self.scale = nn.Linear(D, 3), nn.Linear(3, 1), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).tanh()
        h = torch.stack([row * self.scale if row[0].item() > 0 else row for row in h])
        return self.out(h)


def by_truth(net: Any, x: Tensor) -> Tensor:
    return net.out(net.a(x) if (x > 0).all() else net.a(x).tanh())


def by_comparison(net: Any, x: Tensor) -> Tensor:
    h = net.a(x)
    return net.out(max(h.sum(), h.sum() * 2) * h)


def by_largest(net: Any, x: Tensor) -> Tensor:
    """The number is whole; what it was computed from is not."""
    h = net.a(x).tanh()
    return net.out(h)[:, : 1 + int(h[0].argmax() > 5)]


def by_count(net: Any, x: Tensor) -> Tensor:
    h = net.a(x)
    for _ in range(h[0].argmax()):
        h = net.b(h).tanh()
    return net.out(h)


def by_float(net: Any, x: Tensor) -> Tensor:
    return net.out(net.a(x) * math.exp(-float(x.square().sum())))


def by_list(net: Any, x: Tensor) -> Tensor:
    scales = [1.0 if value > 0 else 2.0 for value in x[:, 0].tolist()]
    return net.out(net.a(x) * x.new_tensor(scales)[:, None])


def of_floats_among_tokens(net: Any, ids: Tensor, weights: Tensor) -> Tensor:
    h = net.words(ids).mean(1)
    return net.out(h if weights.sum().item() > 0 else h * 2)


def ids_and_weights(n: int) -> dict[str, Any]:
    return {"ids": tokens(2, 5)(n), "weights": normal(2)(n)}


BRANCHING: dict[str, Case] = {
    "branching": Case(Branching),
    "branching inside": Case(lambda: nn.Sequential(nn.Linear(D, D), Branching(), nn.Tanh())),
    "branching by truth": Case(lambda: Net(by_truth, **layers())),
    "branching by comparison": Case(lambda: Net(by_comparison, **layers())),
    "branching by largest": Case(lambda: Net(by_largest, **layers())),
    "branching by count": Case(lambda: Net(by_count, **layers())),
    "branching by float": Case(lambda: Net(by_float, **layers())),
    "branching by list": Case(lambda: Net(by_list, **layers())),
    "branching by floats among tokens": Case(
        lambda: Net(of_floats_among_tokens, words=nn.Embedding(5, 3), out=nn.Linear(3, 2)), ids_and_weights
    ),
}
"""Refused by the name of the submodule that looks."""


# What a sample gives in a batch is not what it gives alone: exact for each alone, or refused


def centred(net: Any, x: Tensor) -> Tensor:
    return net.out(net.a(x - x.mean(0) / 2).tanh())


def centred_inside(net: Any, x: Tensor) -> Tensor:
    h = net.a(x)
    return net.out((h - h.mean(0) / 2).tanh())


def softmax_over_batch(net: Any, x: Tensor) -> Tensor:
    return net.out(net.a(x).softmax(0) * net.b(net.a(x)))


def divided(net: Any, x: Tensor) -> Tensor:
    return net.out(net.a(x).tanh() / len(x))


def alone_or_not(net: Any, x: Tensor) -> Tensor:
    h = net.a(x)
    return net.out(h if len(x) == 1 else h.tanh())


def first_of_batch(net: Any, x: Tensor) -> Tensor:
    return net.out((net.a(x) + net.a(x)[:1]).tanh())


def noisy(net: Any, x: Tensor) -> Tensor:
    """The same noise at every call; which of it a sample meets is up to its place."""
    noise = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    return net.out(net.a(x + noise).tanh())


def numbered(net: Any, x: Tensor) -> Tensor:
    """A weight for each place in the batch."""
    return net.out((net.a(x) * net.gains[: len(x), None]).tanh())


def experts(net: Any, x: Tensor) -> Tensor:
    """Each expert sees the samples that chose it."""
    best = net.gate(x).argmax(1)
    out = x.new_zeros(len(x), 2)
    for k, expert in enumerate(net.experts):
        chosen = best == k
        out[chosen] = expert(x[chosen]).tanh()
    return out


def by_positions(net: Any, x: Tensor) -> Tensor:
    h = net.a(x)
    where = (x[:, 0] > 0).nonzero()[:, 0]
    return net.out(h.index_add(0, where, net.b(h[where]).tanh()))


def through_numpy(net: Any, x: Tensor) -> Tensor:
    gains = torch.from_numpy(abs(x.detach().numpy()).sum(1))
    return net.out(net.a(x).tanh() * gains[:, None])


def weight_for_two(net: Any, x: Tensor) -> Tensor:
    """A weight for each two places in the batch."""
    return net.out((net.a(x) * net.gains[torch.arange(len(x)) // 2, None]).tanh())


def third_neighbour(net: Any, x: Tensor) -> Tensor:
    """Samples meet where there are more than two."""
    h = net.a(x)
    return net.out((h - h.roll(2, 0) / 3).tanh())


def another_way_when_many(net: Any, x: Tensor) -> Tensor:
    h = net.a(x)
    return net.out(h.sin() if len(x) > 2 else h.tanh())


def by_number_of_positive(net: Any, x: Tensor) -> Tensor:
    """A number read off a shape."""
    return net.out(net.a(x).tanh() * (1 + len((x[:, 0] > 0).nonzero())))


def signs_through_numpy(net: Any, x: Tensor) -> Tensor:
    signs = torch.from_numpy(numpy.sign(x[:, :1].detach().numpy()))
    return net.out((net.a(x) * (signs * net.gain)).tanh())


def first_two_alike(n: int) -> Tensor:
    """Two samples with a negative number in front, then others with a positive one."""
    x = normal(D)(n)
    x[:, 0] = torch.arange(n) - 1.5
    return x


def listed() -> nn.Module:
    """A parameter that is also kept in a plain list, and used from there."""
    net = Net(lambda net, x: net.out((x @ net.kept[0].T + net.a.bias).tanh()), kept=[], **layers()).double()
    net.kept.append(net.a.weight)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    return net


def kept(net: Any, x: Tensor) -> Tensor:
    """A weight computed at the first call and kept, with its graph."""
    if net.known is None:
        net.known = net.a.weight / net.a.weight.detach().norm()
    return net.out(functional.linear(x, net.known).tanh())


COUPLED: dict[str, Case] = {
    "centred over the batch": Case(lambda: Net(centred, **layers())),
    "centred inside": Case(lambda: Net(centred_inside, **layers())),
    "softmax over the batch": Case(lambda: Net(softmax_over_batch, **layers())),
    "divided by the size of the batch": Case(lambda: Net(divided, **layers())),
    "another way when alone": Case(lambda: Net(alone_or_not, **layers())),
    "first of the batch": Case(lambda: Net(first_of_batch, **layers())),
    "the same noise at every call": Case(lambda: Net(noisy, **layers())),
    "a weight for each place": Case(lambda: Net(numbered, gains=matrix(9), **layers())),
    "experts by mask": Case(
        lambda: Net(experts, gate=nn.Linear(D, 2), experts=nn.ModuleList([nn.Linear(D, 2) for _ in range(2)]))
    ),
    "positions of positive samples": Case(lambda: Net(by_positions, **layers())),
    "through numpy": Case(lambda: Net(through_numpy, **layers())),
    "a weight for each two places": Case(lambda: Net(weight_for_two, gains=matrix(9), **layers())),
    "third neighbour": Case(lambda: Net(third_neighbour, **layers())),
    "another way when many": Case(lambda: Net(another_way_when_many, **layers())),
    "number of positive samples": Case(lambda: Net(by_number_of_positive, **layers()), first_two_alike),
    "signs through numpy": Case(
        lambda: Net(signs_through_numpy, gain=matrix(3), **layers()), first_two_alike
    ),
    "experts by mask, the first two alike": Case(lambda: Net(by_positions, **layers()), first_two_alike),
    "kept in a list": Case(listed),
    "kept from an earlier call": Case(lambda: Net(kept, known=None, **layers())),
    "embedding scaled by frequency": Case(
        lambda: nn.Sequential(nn.Embedding(3, 2, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(8, 2)),
        tokens(4, 3),
    ),
}
"""Never silently wrong."""


# Layers of torch that couple the samples or are random as they stand


def with_layer(layer: nn.Module, *shape: int) -> nn.Module:
    return nn.Sequential(nn.Linear(D, math.prod(shape)), nn.Unflatten(1, shape), layer, nn.Flatten())


class Drops(nn.Module):
    """Dropout without a layer for it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(D, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(functional.dropout(x, 0.5))


def spectral_in_train() -> nn.Module:
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(D, 3)), nn.Linear(3, 1))


def attention_with_dropout() -> nn.Module:
    layer = nn.TransformerEncoderLayer(2, 1, 3, dropout=0.1, batch_first=True)
    return nn.Sequential(nn.Unflatten(1, (2, 2)), layer, nn.Flatten())


class Gumbel(nn.Module):
    """Noise that torch draws in another way than all other noise."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.gumbel_softmax(self.a(x))


UNSEPARABLE: dict[str, tuple[Case, str]] = {
    "batch norm": (Case(lambda: with_layer(nn.BatchNorm1d(3), 3)), r"'2' \(BatchNorm1d\) couples.*eval"),
    "batch norm of images": (
        Case(lambda: with_layer(nn.BatchNorm2d(1), 1, 2, 2)),
        r"'2' \(BatchNorm2d\) couples.*GroupNorm",
    ),
    "batch norm without statistics": (
        Case(lambda: with_layer(nn.BatchNorm1d(3, track_running_stats=False), 3).eval()),
        r"'2' \(BatchNorm1d\) couples",
    ),
    "frozen batch norm": (
        Case(lambda: with_layer(nn.BatchNorm1d(3).requires_grad_(False), 3)),
        r"'2' \(BatchNorm1d\) couples.*eval",
    ),
    "instance norm with statistics": (
        Case(lambda: with_layer(nn.InstanceNorm1d(2, track_running_stats=True), 2, 3)),
        r"'2' \(InstanceNorm1d\).*eval",
    ),
    "dropout": (Case(lambda: with_layer(nn.Dropout(0.1), 3)), r"'2' \(Dropout\) is random.*eval"),
    "dropout of channels": (
        Case(lambda: with_layer(nn.Dropout1d(0.1), 2, 2)),
        r"'2' \(Dropout1d\) is random.*eval",
    ),
    "alpha dropout": (
        Case(lambda: with_layer(nn.AlphaDropout(0.1), 3)),
        r"'2' \(AlphaDropout\) is random.*eval",
    ),
    "random slopes": (Case(lambda: with_layer(nn.RReLU(), 3)), r"'2' \(RReLU\) is random.*eval"),
    "dropout of attention": (Case(attention_with_dropout), r"is random.*eval"),
    "dropout in a function": (Case(Drops), r"random.*eval"),
    "noise of Gumbel": (Case(Gumbel), r"random"),
    "spectral norm in train mode": (Case(spectral_in_train), r"'0.*eval"),
}
"""Refused by name, with the way out."""
