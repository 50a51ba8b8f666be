"""Starts of one seed: independent from size to size, shared where networks are compared in pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regimes import control, data, models
from regimes.report.fit import power_law

F64 = torch.float64
FLAT, IMAGES = torch.ones(1, 3, dtype=F64), torch.ones(1, 1, 9, 9, dtype=F64)
Network = tuple[Callable[..., nn.Module], dict[str, Any]]


def mlp(**sizes: Any) -> Network:
    return models.mlp, {"inputs": 3, "width": 8, "depth": 2, **sizes}


def two_layer(**sizes: Any) -> Network:
    return models.two_layer, {"inputs": 3, "width": 8, **sizes}


def cnn(**sizes: Any) -> Network:
    return models.cnn, {"channels": 1, "width": 4, "kernel": 3, **sizes}


def vgg(**sizes: Any) -> Network:
    return models.vgg, {"channels": 1, "outputs": 1, "size": 9, "width_factor": 1 / 32, **sizes}


def resnet(**sizes: Any) -> Network:
    return models.resnet, {"channels": 1, "outputs": 1, "width_factor": 1 / 32, **sizes}


# Two networks of different sizes, an input of both, and how many seeds.
SIZES: dict[str, tuple[Network, Network, Tensor, int]] = {
    "mlp, width": (mlp(), mlp(width=16), FLAT, 500),
    "mlp, depth": (mlp(depth=1), mlp(), FLAT, 500),
    "mlp, outputs": (mlp(), mlp(outputs=2), FLAT, 500),
    "two layers": (two_layer(), two_layer(width=16), FLAT, 500),
    "kinds": (two_layer(), mlp(depth=1, activation="relu"), FLAT, 500),
    "cnn": (cnn(), cnn(width=8), IMAGES, 300),
    "vgg": (vgg(), vgg(width_factor=1 / 16), IMAGES, 100),
    "resnet": (resnet(), resnet(width_factor=1 / 16), IMAGES, 60),
}


def weights(network: nn.Module) -> list[Tensor]:
    return [p.detach() for p in network.parameters() if p.dim() > 1]


def corner(large: Tensor, small: Tensor) -> Tensor:
    """The entries of the larger that have the indices of the smaller."""
    return large[tuple(slice(size) for size in small.shape)]


@pytest.mark.parametrize("name", list(SIZES))
def test_sizes_are_uncorrelated(name: str) -> None:
    """Entries at equal places, in the order they are drawn and in the order of the rows; and outputs."""
    *networks, x, seeds = SIZES[name]
    pairs = [[build(**sizes, seed=seed) for build, sizes in networks] for seed in range(seeds)]
    said = torch.stack([torch.stack([net(x)[0, 0].detach() for net in pair]) for pair in pairs])
    assert abs(float(torch.corrcoef(said.T)[0, 1])) < 4.5 / seeds**0.5
    for first, second in zip(*(weights(net) for net in pairs[0]), strict=False):
        size = min(first.numel(), second.numel())
        prefix = torch.stack([first.reshape(-1)[:size], second.reshape(-1)[:size]])
        shape = torch.Size(map(min, first.shape, second.shape))
        rows = torch.stack([corner(each, torch.empty(shape)).reshape(-1) for each in (first, second)])
        for both in (prefix, rows):
            assert not (both[0] == both[1]).any()
            if both.shape[1] > 20:
                assert abs(float(torch.corrcoef(both)[0, 1])) < 4.5 / both.shape[1] ** 0.5


PAIRED: dict[str, tuple[Network, Network]] = {
    "law": (mlp(), mlp(law=control.MUP)),
    "activation": (mlp(), mlp(activation="relu")),
    "bias": (mlp(), mlp(bias=True)),
    "law of a cnn": (cnn(), cnn(law=control.STANDARD)),
    "padding": (cnn(), cnn(padding=2)),
    "tau": (two_layer(), two_layer(tau=0.01)),
    "scaling": (two_layer(), two_layer(scaling="1/m")),
    "gain": (vgg(), vgg(gain=1.3)),
    "norm": (resnet(), resnet(norm="group")),
}


@pytest.mark.parametrize("name", list(PAIRED))
def test_a_start_is_shared_where_pairs_are_compared(name: str) -> None:
    """Up to a factor for each layer."""
    for first, second in zip(
        *(weights(build(**sizes, seed=5)) for build, sizes in PAIRED[name]), strict=True
    ):
        torch.testing.assert_close(second / second.std(), first / first.std())


def test_a_task_and_its_student_share_no_draw() -> None:
    task, other = data.teacher(3, units=8, train=8, test=8), data.teacher(4, units=8, train=8, test=8)
    student = weights(models.two_layer(3, 8))[0]
    rows = [task.b, task.dataset.train.x, task.dataset.test.x, task.sample(8, seed=0).x, student]
    directions = torch.cat([row / row.norm(dim=1, keepdim=True) for row in rows])
    overlap = (directions @ directions.T).fill_diagonal_(0).abs()
    assert float(overlap.max()) < 1 - 1e-6
    assert not torch.isin(task.dataset.train.x, other.dataset.train.x).any()
    # a seed beyond 32 bits was once the fresh points of another task
    assert not torch.equal(
        data.teacher(3, seed=3 * 2**32).dataset.train.x[:5], data.teacher(3).sample(5, seed=1).x
    )


def test_intervals_of_a_slope_over_widths_cover_it() -> None:
    """The curve of each network is tilted by how far its first hidden layer is from its mean square, which is 1.

    Were the starts of one seed nested from width to width, the tilts would go together, and the interval, which takes
    networks as independent, would hold the exponent in 61 % of the cases.
    """
    widths, seeds, repetitions = (32, 40, 48, 64), 2, 400
    x, networks = np.geomspace(1.0, 100.0, 3), len(widths) * seeds
    groups, places = np.repeat(np.arange(networks), len(x)), np.tile(x, networks)
    hits = 0
    for r in range(repetitions):
        hidden = [
            models.mlp(3, h, 1, activation="tanh", seed=seeds * r + s)[:2](FLAT)
            for h in widths
            for s in range(seeds)
        ]
        tilts = np.array([z.square().mean().item() - 1 for z in hidden])
        law = power_law(places, places ** (0.1 * tilts[groups] - 1.0), groups=groups)
        hits += law.low <= -1.0 <= law.high
    assert abs(hits / repetitions - 0.95) < 3.5 * (0.95 * 0.05 / repetitions) ** 0.5
