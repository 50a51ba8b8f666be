"""Is ``compare.would_sampling_pay`` right? Its answers on seven tasks against longer runs with other seeds.

    REGIMES_DATA=... python benchmarks/sampling.py [--task NAME ...]

Each task is asked once, with 8 seeds. Then all layers and the sampled choices are trained three times as long, with 4
seeds of their own. The rule, written before the first run:

- in time, "no" is right if in the long runs no sampled choice errs less than all layers, on average, by the margin of
  0.01 or more; "yes" is right if one errs less, on average;
- in memory, "no" is right if in the long runs each sampled choice either needs more than 0.8 of the memory or errs more
  by the margin, on average; "yes" is right if one needs no more and errs less than that more;
- "open" is neither right nor wrong, and counts as not right.

Networks of convolutions or of linear layers for small images; SGD with momentum 0.9. From scratch: a fresh start for
each seed; digits from scratch, on which the rules of the answer were tried, are not among the tasks. Going on: a
network that knows one kind of images or classes, and 300 images of another. Digits are embedded; MNIST, Fashion-MNIST
and CIFAR-10 (images averaged to half their sides) are those of ``REGIMES_DATA``.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from regimes import compare, control, data

MARGIN, SAVING = 0.01, 0.2


@dataclass(frozen=True, eq=False)
class Task:
    """What is learnt from what, and what is tested."""

    source: nn.Module | Callable[[int], nn.Module]
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    lr: float
    epochs: int


@dataclass(frozen=True, eq=False)
class Images:
    """Images (n, c, h, w) and their classes."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor

    def of(self, classes: range) -> Images:
        """Some of the classes, counted from 0."""
        own, held = (torch.isin(y, torch.tensor(classes)) for y in (self.y, self.y_test))
        first = classes.start
        return Images(self.x[own], self.y[own] - first, self.x_test[held], self.y_test[held] - first)

    def part(self, train: int, test: int) -> Images:
        """The first images."""
        return Images(self.x[:train], self.y[:train], self.x_test[:test], self.y_test[:test])


def load(name: str, train: int = 4000, test: int = 3000) -> Images:
    """Images in float32, those of 28 and more pixels a side averaged to half of it."""
    found = (
        data.load(name, train=1200, test=500)
        if name == "digits"
        else data.load(name, directory=os.environ["REGIMES_DATA"], train=train, test=test)
    )
    x, x_test = found.train.x.float(), found.test.x.float()
    if x.shape[-1] >= 28:
        x, x_test = functional.avg_pool2d(x, 2), functional.avg_pool2d(x_test, 2)
    return Images(x, found.train.y, x_test, found.test.y)


def convolutions(x: Tensor, outputs: int = 10) -> Callable[[int], nn.Module]:
    """Three convolutions and two linear layers, from a seed."""
    channels, side = x.shape[1], x.shape[2]
    half = (side + 1) // 2
    quarter = (half + 1) // 2

    def made(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(
            *(nn.Conv2d(channels, 12, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(12, 24, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(24, 24, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(24 * quarter * quarter, 64), nn.ReLU(), nn.Linear(64, outputs)),
        )

    return made


def linear(x: Tensor) -> Callable[[int], nn.Module]:
    """Four linear layers, from a seed."""

    def made(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        sizes = [x[0].numel(), 128, 128, 128]
        hidden = [each for n, m in pairwise(sizes) for each in (nn.Linear(n, m), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(128, 10))

    return made


def knowing(net: nn.Module, images: Images, steps: int) -> nn.Module:
    """Trained on these images."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randint(len(images.x), (64,), generator=generator)
        optimizer.zero_grad()
        functional.cross_entropy(net(images.x[chosen]), images.y[chosen]).backward()
        optimizer.step()
    return net


def scratch(name: str, make: Callable[[Tensor], Callable[[int], nn.Module]]) -> Task:
    """From a fresh start."""
    images = load(name).part(600, 1000)
    return Task(make(images.x), images.x, images.y, images.x_test, images.y_test, 0.05, 20)


def going_on(known: Images, new: Images, outputs: int = 10) -> Task:
    """From a network that knows other images."""
    net = knowing(convolutions(known.x, outputs)(0), known, 500)
    new = new.part(300, 1000)
    return Task(copy.deepcopy(net), new.x, new.y, new.x_test, new.y_test, 0.02, 20)


def digits_permuted() -> Task:
    """Digits whose classes have other names."""
    images = load("digits")
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    return going_on(images, Images(images.x, order[images.y], images.x_test, order[images.y_test]))


def mnist_inverted() -> Task:
    """Black on white after white on black."""
    images, top = load("mnist"), float(load("mnist").x.max())
    return going_on(images, Images(top - images.x, images.y, top - images.x_test, images.y_test))


def fashion_new() -> Task:
    """Five kinds of clothes after five others."""
    images = load("fashion-mnist")
    return going_on(images.of(range(5)), images.of(range(5, 10)), 5)


def cifar_new() -> Task:
    """Five classes of photographs after five others."""
    images = load("cifar-10")
    return going_on(images.of(range(5)), images.of(range(5, 10)), 5)


TASKS: dict[str, Callable[[], Task]] = {
    "digits, permuted classes": digits_permuted,
    "CIFAR-10, new classes": cifar_new,
    "Fashion-MNIST, new classes": fashion_new,
    "MNIST, inverted": mnist_inverted,
    "Fashion-MNIST, linear, from scratch": lambda: scratch("fashion-mnist", linear),
    "MNIST, from scratch": lambda: scratch("mnist", convolutions),
    "CIFAR-10, from scratch": lambda: scratch("cifar-10", convolutions),
}


def asked(task: Task, epochs: int, seed: int, before: compare.Payoff | None = None) -> compare.Payoff:
    """The answer; of the sampled choices alone where it is asked again, at the same costs."""
    again: dict[str, control.Moves] | None = None
    if before is not None:
        top = before.costs.predict(control.Fixed(top=1)).ratio
        again = {
            "planned cut": before.costs.plan((1 + top) / 2),
            "uniform cut": control.UniformCut(),
            "one by one": control.CyclicBlocks(order="random"),
        }
    return compare.would_sampling_pay(
        task.source,
        task.x,
        task.y,
        task.x_test,
        task.y_test,
        optimizer=lambda p: torch.optim.SGD(p, lr=task.lr, momentum=0.9),
        epochs=epochs,
        seeds=8 if before is None else 4,
        seed=seed,
        margin=MARGIN,
        saving=SAVING,
        policies=again,
        costs=None if before is None else before.costs,
    )


def right(found: compare.Payoff, longer: compare.Payoff) -> tuple[bool, bool]:
    """Whether the answers are right, in time and in memory, by the rule above."""
    columns = (longer.table[name].tolist() for name in ("sampled", "difference", "memory"))
    rows = [(difference, memory) for sampled, difference, memory in zip(*columns, strict=True) if sampled]
    gains = any(difference <= -MARGIN for difference, _ in rows)
    better = any(difference < 0 for difference, _ in rows)
    saves = any(memory <= 1 - SAVING and difference < MARGIN for difference, memory in rows)
    time_right = {"yes": better, "no": not gains, "open": False}[found.time]
    return time_right, {"yes": saves, "no": not saves, "open": False}[found.memory]


def main() -> None:
    """Print the answers, the long runs, and how many are right."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", nargs="*", choices=list(TASKS), default=list(TASKS))
    chosen = parser.parse_args()
    if "REGIMES_DATA" not in os.environ:
        chosen.task = [name for name in chosen.task if name.startswith("digits")]
        print("REGIMES_DATA is not set: digits alone")
    torch.set_num_threads(1)
    counts = [0, 0]
    for name in chosen.task:
        began = time.process_time()
        task = TASKS[name]()
        found = asked(task, task.epochs, seed=0)
        middle = time.process_time()
        longer = asked(task, 3 * task.epochs, seed=100, before=found)
        judged = right(found, longer)
        counts = [count + one for count, one in zip(counts, judged, strict=True)]
        columns = ["ratio", "memory", "error", "difference"]
        print(f"{name}\n{found}\n\nThree times as long, other seeds:\n{longer.table[columns]}")
        said = [
            f"{what}: {answer}, {'right' if one else 'not right'}"
            for what, answer, one in zip(("time", "memory"), (found.time, found.memory), judged, strict=True)
        ]
        print(
            f"{'; '.join(said)}; {middle - began:.0f} s and {time.process_time() - middle:.0f} s\n",
            flush=True,
        )
    print(f"right in time: {counts[0]} of {len(chosen.task)}; in memory: {counts[1]} of {len(chosen.task)}")


if __name__ == "__main__":
    main()
