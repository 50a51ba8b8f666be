"""A step of Gauss-Newton against one of SGD, and training by it at equal steps and at equal time.

    REGIMES_DATA=... python benchmarks/newton.py [--part step batches repeated] [--threads N] [--rounds R] [--steps T]

**step**: one call of ``GaussNewton.step`` over one step of SGD with momentum (forward, backward, update), on the same
batch, float32, side by side in every round; the median of the ratios of rounds. MLP 784-512-512-512-10, 128 samples;
CNN of three convolutions of 16, 32 and 32 channels, the last two of stride 2, and a read-out, 128 images of 28 x 28.
"products" takes ten of them. Goals: 6 (MLP) and 25 (CNN) for the full kernel.

**batches**: 10,000 images of Fashion-MNIST, an MLP 784-256-256-10, squared loss of one-hot targets, batches of 256 and
1024. Every method has four rates, or dampings, a factor of about 3 apart, and a rate that falls linearly to 0; the best
of the four by the training loss at the end is shown. Equal steps: T for all. Equal time: the first-order methods have
as many steps as fit into the seconds of T steps with the trace kernel, tuned again. One seed; accuracy on 2,000 others.

**repeated**: the same batch at each step, to a small loss. (a) A teacher of one hidden layer, 512 points of 8
dimensions in float64, a student of two layers of 64 tanh units; (b) 500 images of Fashion-MNIST, the MLP above. Seconds
until the training loss has fallen to 1/10, 1/100, ... of its start, of each method with the best of the four rates.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import cycle, islice, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from regimes import data, study, train
from regimes.core.loss import squared

RATES: Mapping[str, Sequence[float]] = {
    "SGD with momentum": (0.03, 0.1, 0.3, 1.0),
    "AdamW": (3e-4, 1e-3, 3e-3, 1e-2),
    "full": (0.01, 0.03, 0.1, 0.3),
    "trace": (0.01, 0.03, 0.1, 0.3),
}
FIRST = ("SGD with momentum", "AdamW")
Step = Callable[[Tensor, Tensor], object]


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """ReLU between linear layers."""
    layers = [each for a, b in pairwise(sizes) for each in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def cnn() -> nn.Sequential:
    """Three convolutions, the last two of stride 2."""
    channels = ((1, 16, 1), (16, 32, 2), (32, 32, 2))
    convolutions = [each for a, b, stride in channels for each in (nn.Conv2d(a, b, 3, stride, 1), nn.ReLU())]
    return nn.Sequential(nn.Unflatten(1, (1, 28, 28)), *convolutions, nn.Flatten(), nn.Linear(32 * 49, 10))


def half_square(outputs: Tensor, y: Tensor) -> Tensor:
    """The squared loss of ``regimes.core.loss``, as users of torch write it."""
    wanted = y if y.is_floating_point() else functional.one_hot(y, outputs.shape[1]).to(outputs.dtype)
    return (outputs.reshape(wanted.shape) - wanted).square().sum() / (2 * len(y))


def first_order(name: str, network: nn.Module, rate: float) -> tuple[Step, torch.optim.Optimizer]:
    """A step of SGD or AdamW."""
    parameters = list(network.parameters())
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(parameters, lr=rate, momentum=0.9)
        if name == "SGD with momentum"
        else torch.optim.AdamW(parameters, lr=rate)
    )

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        half_square(network(x), y).backward()
        optimizer.step()

    return step, optimizer


def stepper(
    name: Any, network: nn.Module, rate: float, adaptive: bool = False
) -> tuple[Step, torch.optim.Optimizer]:
    """A step of any method; the rate of Gauss-Newton is its damping."""
    if name in FIRST:
        return first_order(name, network, rate)
    optimizer = train.GaussNewton(
        network, loss=squared, damping=rate, kernel=name, adaptive=adaptive, max_products=10, tolerance=1e-9
    )
    # Not the method itself: a schedule puts its own in the place of it.
    return lambda x, y: optimizer.step(x, y), optimizer


def clock(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def steps(rounds: int) -> None:
    """A step over one of SGD."""
    print("\n| network | SGD, ms | full | trace | products |\n|---|---|---|---|---|")
    for label, network in (("MLP", mlp((784, 512, 512, 512, 10))), ("CNN", cnn())):
        x, y = torch.randn(128, 784), torch.randint(10, (128,))
        calls: dict[str, Callable[[], object]] = {}
        for name in ("SGD with momentum", "full", "trace", "products"):
            step, _ = stepper(name, copy.deepcopy(network), 1e-3 if name in FIRST else 1.0)
            calls[name] = partial(step, x, y)
        times = [{name: clock(call) for name, call in calls.items()} for _ in range(rounds + 2)][2:]
        sgd = statistics.median(each["SGD with momentum"] for each in times)
        cells = [
            f"{statistics.median(each[name] / each['SGD with momentum'] for each in times):.1f}"
            for name in ("full", "trace", "products")
        ]
        print(f"| {label} | {sgd * 1e3:.1f} | " + " | ".join(cells) + " |", flush=True)


def trained(
    name: str, start: nn.Module, rate: float, batches: Sequence[tuple[Tensor, Tensor]], count: int
) -> tuple[nn.Module, float]:
    """The network after so many steps at a rate that falls linearly, and the seconds of the steps."""
    network = copy.deepcopy(start)
    step, optimizer = stepper(name, network, rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 - t / count)
    seconds = 0.0
    for x, y in islice(cycle(batches), count):
        seconds += clock(partial(step, x, y))
        schedule.step()
    return network, seconds


def judged(network: nn.Module, task: data.Dataset) -> tuple[float, float]:
    """Training loss, test accuracy."""
    with torch.no_grad():
        loss = float(half_square(network(task.train.x), task.train.y))
        right = (network(task.test.x).argmax(1) == task.test.y).double().mean()
    return (loss if math.isfinite(loss) else math.inf), float(right)


def line(
    name: str,
    start: nn.Module,
    task: data.Dataset,
    batches: Sequence[tuple[Tensor, Tensor]],
    count: int,
    kind: str,
) -> float:
    """Print the best of the rates; the seconds that it took."""
    found = []
    for rate in RATES[name]:
        network, seconds = trained(name, start, rate, batches, count)
        found.append((*judged(network, task), seconds, rate))
    loss, right, seconds, rate = min(found)
    print(
        f"| {len(batches[0][1])} | {kind} | {name} | {count} | {seconds:.1f} | {rate:g} | {loss:.4f} | {right:.1%} |",
        flush=True,
    )
    return seconds


def in_batches(task: data.Dataset, count: int) -> None:
    """Equal steps, equal time."""
    print(
        "\n| batch | equal | method | steps | seconds | rate | training loss | test accuracy |\n"
        + "|---" * 8
        + "|"
    )
    torch.manual_seed(0)
    start = mlp((784, 256, 256, 10))
    for size in (256, 1024):
        order = torch.randperm(len(task.train.x), generator=torch.Generator().manual_seed(0))
        cut = len(order) // size * size
        batches = [(task.train.x[part], task.train.y[part]) for part in order[:cut].split(size)]
        seconds = {name: line(name, start, task, batches, count, "steps") for name in (*FIRST, "trace")}
        if size == 256:
            line("full", start, task, batches, count // 3, "steps (a third)")
        for name in FIRST:
            more = min(5000, round(count * seconds["trace"] / seconds[name]))
            line(name, start, task, batches, more, "time of trace")


def to_levels(name: str, start: nn.Module, rate: float, x: Tensor, y: Tensor, limit: float) -> list[float]:
    """Seconds until the loss is 1/10, 1/100, ... of its start."""
    network = copy.deepcopy(start)
    step, _ = stepper(name, network, rate, adaptive=True)
    with torch.no_grad():
        first = float(half_square(network(x), y))
    seconds, reached, count = 0.0, [], 0
    while seconds < limit and len(reached) < 6:
        seconds += clock(partial(step, x, y))
        count += 1
        if name in FIRST and count % 10:
            continue
        with torch.no_grad():
            loss = float(half_square(network(x), y))
        if not math.isfinite(loss):
            break
        while len(reached) < 6 and loss <= first * 10 ** -(len(reached) + 1):
            reached.append(seconds)
    return reached


def repeated(task: data.Dataset, limit: float) -> None:
    """One batch, to a small loss."""
    torch.manual_seed(0)
    x = torch.randn(512, 8, dtype=torch.float64)
    y = mlp((8, 16, 1)).double()(x).detach()
    y = y[:, 0] / y.std()
    tanh = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)).double()
    images = task.train.x[:500], task.train.y[:500]
    print(
        "\n| task | method | rate | " + " | ".join(f"1e-{k}" for k in range(1, 7)) + " |\n" + "|---" * 9 + "|"
    )
    for label, start, some in (("teacher", tanh, (x, y)), ("images", mlp((784, 256, 256, 10)), images)):
        for name in (*FIRST, "full", "trace"):
            if label == "teacher" and name == "trace":  # one output: the same
                continue
            if label == "images" and name == "full":
                continue
            found = [(to_levels(name, start, rate, *some, limit), rate) for rate in RATES[name]]
            times, rate = min(found, key=lambda each: (-len(each[0]), each[0][-1:]))
            cells = [f"{t:.2f} s" for t in times] + [f"over {limit:g} s"] * (6 - len(times))
            print(f"| {label} | {name} | {rate:g} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Print a table for each part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs="+", default=["step", "batches", "repeated"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--limit", type=float, default=8.0)
    parser.add_argument("--data", default=os.environ.get("REGIMES_DATA"))
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    print(f"threads {chosen.threads}, memory {'kept' if study.keep_memory() else 'not kept'}")
    if "step" in chosen.part:
        steps(chosen.rounds)
    if {"batches", "repeated"} & set(chosen.part):
        task = data.load(
            "fashion-mnist", directory=chosen.data, train=10_000, test=2_000, flat=True, dtype=torch.float32
        )
        if "batches" in chosen.part:
            in_batches(task, chosen.steps)
        if "repeated" in chosen.part:
            repeated(task, chosen.limit)


if __name__ == "__main__":
    main()
