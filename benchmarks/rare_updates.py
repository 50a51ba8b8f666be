"""Layers that move with probability p: what their momentum should remember, and how large their steps may be.

    REGIMES_DATA=... python benchmarks/rare_updates.py [--network mlp cnn] [--optimizer momentum adam] [--seeds N]

2000 training and 2000 test images of Fashion-MNIST, batches of 64, ``Cut(p=0.1, top=1)``, 12 epochs. Each cell is the
mean test accuracy in percent over the seeds (of the start and of the draws of layers), with its standard error; "d"
counts the runs that diverged, which are taken as chance, 10 %. Rows: what becomes of the state of a layer while it does
not move ("keep" it, or let it "decay" as if its gradient had been 0), and what its steps are multiplied by: 1, 1/p, or
up to 1/p as the curvature allows (``by_curvature``). "all layers" is plain training.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from regimes import control, data

P = 0.1
RATES: Mapping[str, Sequence[float]] = {
    "momentum": (0.003, 0.01, 0.03, 0.1, 0.3),
    "adam": (3e-4, 1e-3, 3e-3, 1e-2),
}
WAYS: Mapping[str, dict[str, Any] | None] = {
    "all layers": None,
    **{
        f"{state}, {word}": {"state": state, **more}
        for state in ("keep", "decay")
        for word, more in {
            "1": {},
            "1/p": {"largest_factor": math.inf},
            "curvature": {"largest_factor": math.inf, "by_curvature": True},
        }.items()
    },
}


def mlp() -> nn.Sequential:
    """784-128-128-128-10."""
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()),
        *(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)),
    )


def cnn() -> nn.Sequential:
    """Three convolutions of stride 2 and a linear layer."""
    channels = (1, 8, 16, 32)
    parts = [
        each for n, m in pairwise(channels) for each in (nn.Conv2d(n, m, 3, stride=2, padding=1), nn.ReLU())
    ]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(32 * 16, 10))


NETWORKS: Mapping[str, Callable[[], nn.Sequential]] = {"mlp": mlp, "cnn": cnn}
Images = tuple[Tensor, Tensor]


def images(train: int = 2000, test: int = 2000) -> tuple[Images, Images]:
    """The images (n, 1, 28, 28), of mean 0 and entries of size 1, and their classes."""
    found = data.load("fashion-mnist", train=train, test=test, probe=1, norm=False, dtype=torch.float32)
    scale = found.train.x.std()
    return (found.train.x / scale, found.train.y), (found.test.x / scale, found.test.y)


def accuracy(
    network: str,
    kind: str,
    rate: float,
    more: dict[str, Any] | None,
    seed: int,
    sets: tuple[Images, Images],
    epochs: int,
) -> float:
    """Of one run, nan if it diverged."""
    torch.manual_seed(seed)
    net, ((x, y), (test_x, test_y)) = NETWORKS[network](), sets
    if kind == "momentum":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9)
    else:
        optimizer = torch.optim.AdamW(net.parameters(), lr=rate)
    if more is not None:
        control.LayerwiseSparse(net, optimizer, control.Cut(p=P, top=1), example=x[:2], seed=seed, **more)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(x[rows]), y[rows])
            if not math.isfinite(float(loss.detach())):
                return math.nan
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        out = net(test_x)
        end = float(functional.cross_entropy(net(x), y))
    return float((out.argmax(1) == test_y).float().mean()) if end < 2.4 else math.nan


def cell(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard error in percent, and how many diverged."""
    known = [100 * (0.1 if math.isnan(each) else each) for each in values]
    error = statistics.stdev(known) / math.sqrt(len(known)) if len(known) > 1 else math.nan
    return {"mean": statistics.mean(known), "error": error, "diverged": sum(map(math.isnan, values))}


def main() -> None:
    """Print a table for each network and optimiser."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", nargs="*", choices=list(NETWORKS), default=["mlp"])
    parser.add_argument("--optimizer", nargs="*", choices=list(RATES), default=list(RATES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    sets = images()
    for network in chosen.network:
        for kind in chosen.optimizer:
            rates = RATES[kind]
            print(f"{network}, {kind}, rate{'':14s}" + "".join(f"{rate:>16g}" for rate in rates), flush=True)
            for way, more in WAYS.items():
                cells = [
                    cell(
                        [
                            accuracy(network, kind, rate, more, seed, sets, chosen.epochs)
                            for seed in range(chosen.seeds)
                        ]
                    )
                    for rate in rates
                ]
                text = [
                    f"{each['mean']:6.1f} ({each['error']:.1f}) {each['diverged']:.0f}d" for each in cells
                ]
                print(f"{way:32s}" + "".join(f"{each:>16s}" for each in text), flush=True)
                if chosen.json:
                    print(json.dumps({"network": network, "optimizer": kind, "way": way, "cells": cells}))


if __name__ == "__main__":
    main()
