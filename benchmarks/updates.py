"""Is ``compare.how_many_feature_updates`` right? Its answers on seeds 0 to 4, held against seeds 5 to 9.

    REGIMES_DATA=... python benchmarks/updates.py [--tasks digits index fashion] [--data DIR] [--seeds 5]

**Tasks.** *digits*: 400 of the embedded 8 x 8 digits, a 64-64-10 MLP. *index*: a single-index teacher, the square of
one direction among 20, 600 samples, a 20-64-1 MLP from small weights, squared loss. *fashion*: 1,000 Fashion-MNIST
images, two convolutions of stride 2 and a read-out; left out without ``--data``. SGD, the rate that the tool finds, a
margin of 0.02; a function from seed to module, so that seeds differ in the start and the batches.

**Hindsight.** The same call at the same rate with seeds 5 to 9 and other held-out samples, of which the means are taken
for the truth. An answer U *holds* if U and all larger numbers tried lose less than the margin there, and is *least* if
the next smaller one loses more; "no" holds if the largest number tried loses more than the margin. "open" is neither
right nor wrong. Both answers are judged: against plain training at the same rate, and at its best.

Prints what the tool prints, and a table.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regimes import compare, data

Part = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Task:
    """What is asked: a module of each seed, training samples, two sets of held-out samples, settings."""

    module: Callable[[int], nn.Module]
    train: Part
    test: tuple[Part, Part]
    settings: dict[str, Any]


def dense(sizes: tuple[int, ...], scale: float = 1.0) -> Callable[[int], nn.Module]:
    """A fully connected network of ReLUs, its weights times a factor."""

    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        layers = [each for a, b in itertools.pairwise(sizes) for each in (nn.Linear(a, b), nn.ReLU())]
        network = nn.Sequential(*layers[:-1])
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(scale)
        return network

    return make


def convolutional(seed: int) -> nn.Module:
    """Two convolutions of stride 2."""
    torch.manual_seed(seed)
    first, second = nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(784, 10))


def halves(x: Tensor, y: Tensor) -> tuple[Part, Part]:
    """Two sets of held-out samples."""
    return (x[::2], y[::2]), (x[1::2], y[1::2])


def digits(_: str) -> Task:
    """Ten classes, easy."""
    found = data.load("digits", train=400, flat=True)
    x, x_test = (part.x.float() for part in (found.train, found.test))
    return Task(
        dense((64, 64, 10)),
        (x, found.train.y),
        halves(x_test, found.test.y),
        {"batch_size": 25, "epochs": 40, "margin": 0.02, "ladder": [1, 3, 10, 100]},
    )


def index(_: str) -> Task:
    """The square of one direction, which a linear model of random features needs many samples for."""
    x = torch.randn(4600, 20, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0].square() - 1) / 2**0.5
    settings = {"batch_size": 25, "epochs": 40, "margin": 0.02, "ladder": [1, 10, 100]}
    return Task(dense((20, 64, 1), 0.7), (x[:600], y[:600]), halves(x[600:], y[600:]), settings)


def fashion(directory: str) -> Task:
    """Ten kinds of clothes."""
    found = data.load("fashion-mnist", directory=directory, train=1000, test=4000)
    x, x_test = (part.x.float() for part in (found.train, found.test))
    settings = {"batch_size": 64, "epochs": 30, "margin": 0.02, "ladder": [1, 10, 100]}
    return Task(convolutional, (x, found.train.y), halves(x_test, found.test.y), settings)


TASKS = {"digits": digits, "index": index, "fashion": fashion}


def judged(answer: object, fresh: compare.FeatureUpdates, column: str) -> tuple[str, str]:
    """Whether an answer holds on fresh seeds, and what is lost there."""
    table = fresh.table[fresh.table["updates"] < fresh.steps]
    lost = dict(zip(table["updates"], table[column], strict=True))
    if answer == "open":
        return "-", "-"
    if answer == "no":
        most = max(lost)
        return ("holds" if lost[most] > fresh.margin else "wrong"), f"{lost[most]:.4f} at {most}"
    assert isinstance(answer, int)
    here = "holds" if all(loss < fresh.margin for each, loss in lost.items() if each >= answer) else "wrong"
    below = max((each for each in lost if each < answer), default=None)
    shown = f"{lost[answer]:.4f} at {answer}"
    if below is None:
        return f"{here}, least", shown
    least = "least" if not lost[below] < fresh.margin else "not least"
    return f"{here}, {least}", f"{shown}, {lost[below]:.4f} at {below}"


def main() -> None:
    """Print what the tool says of each task, and whether it holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--data", default=os.environ.get("REGIMES_DATA", ""))
    parser.add_argument("--seeds", type=int, default=5)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for name in chosen.tasks:
        if name == "fashion" and not Path(chosen.data or "none").is_dir():
            print("fashion: left out, without --data")
            continue
        task, began = TASKS[name](chosen.data), time.process_time()
        calls: list[compare.FeatureUpdates] = []
        for k, part in enumerate(task.test):
            settings = task.settings | ({"lr": calls[0].lr} if calls else {})
            seed = k * chosen.seeds
            calls.append(
                compare.how_many_feature_updates(
                    task.module, *task.train, *part, seeds=chosen.seeds, seed=seed, **settings
                )
            )
        took = time.process_time() - began
        print(f"{name}, seeds 0 to {chosen.seeds - 1}\n{calls[0]}\n", flush=True)
        print(f"{name}, the {chosen.seeds} after them\n{calls[1]}\n", flush=True)
        answers = ((calls[0].answer, "difference"), (calls[0].against_best, "best_difference"))
        for which, (answer, column) in zip(("same rate", "best rate"), answers, strict=True):
            verdict, lost = judged(answer, calls[1], column)
            lines.append(
                f"| {name} | {calls[0].steps} | {which} | {answer} | {verdict} | {lost} | {took:.0f} |"
            )
    print("| task | T | against plain training at | answer | on fresh seeds | lost there | CPU s |")
    print("|---|---|---|---|---|---|---|", *lines, sep="\n")


if __name__ == "__main__":
    main()
