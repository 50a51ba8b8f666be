"""What is learnt within the same memory: fewer layers against checkpoints, LISA, BAdam and LoRA.

    python benchmarks/sparse_memory.py [--data NAME] [--task batch width] [--seconds S] [--seeds N] [--json]

The memory of a method is the most bytes that tensors hold at once over steps of all sets of layers that it takes:
weights, batch, activations, gradients and what the optimiser keeps, counted by what operations return, not estimated.
All methods are given the same bytes, spend what they save, and train for the same processor time in the loop.

"batch": a network of six convolutions and two linear layers that knows the first five classes is trained on 1000
images of the others. Each method takes the largest batch that fits (256 at most).

"width": a network of three hidden layers is trained from its start on 5000 images, 64 at a time. Each method takes the
largest width that fits; what the optimiser keeps is most of the memory.

AdamW throughout; of three rates the best on images that are neither trained nor tested on. Test accuracy in percent,
means over seeds with standard errors. Budgets are shares of what full training takes (batch 64; width 512).
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from _peak import peak_bytes
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from regimes import control, data

RATES = (3e-4, 1e-3, 3e-3)
RANK = 4
SHARES = (0.4, 1.0)
LARGEST = 256


@dataclass(frozen=True)
class Part:
    """Images (n, c, h, w) and classes."""

    x: Tensor
    y: Tensor

    def take(self, index: Tensor) -> Part:
        """Some of them."""
        return Part(self.x[index], self.y[index])


@dataclass(frozen=True)
class Task:
    """What is trained on, what chooses the rate, and what is reported."""

    train: Part
    valid: Part
    test: Part


class Checkpointed(nn.Sequential):
    """A sequence of blocks, each of which is run again in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        """As the blocks in turn."""
        for block in self:
            x = checkpoint(block, x, use_reentrant=False)  # pyright: ignore[reportAssignmentType]
        return x


class LowRank(nn.Module):
    """A frozen layer and a correction of low rank beside it (Hu et al. 2021, LoRA)."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down: nn.Module
        if isinstance(layer, nn.Linear):
            self.down = nn.Linear(layer.in_features, RANK, bias=False)
            self.up: nn.Linear | nn.Conv2d = nn.Linear(RANK, layer.out_features, bias=False)
        else:
            self.down = nn.Conv2d(
                layer.in_channels,
                RANK,
                layer.kernel_size,  # pyright: ignore[reportArgumentType]
                layer.stride,  # pyright: ignore[reportArgumentType]
                layer.padding,  # pyright: ignore[reportArgumentType]
                bias=False,
            )
            self.up = nn.Conv2d(RANK, layer.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """The layer, and the correction."""
        return self.layer(x) + self.up(self.down(x))


def low_rank(net: nn.Sequential) -> nn.Sequential:
    """All layers but the last with corrections; the last one is trained as it is."""
    for block in list(net)[:-1]:
        for name, layer in list(block.named_children()):
            if isinstance(layer, nn.Linear | nn.Conv2d):
                setattr(block, name, LowRank(layer))
    return net


@dataclass(frozen=True)
class Method:
    """How a network is trained.

    Attributes:
        moves: which layers move; None for all.
        prepare: what is done to the network first.
        state: of the optimiser, for layers that rest.
    """

    moves: Callable[[tuple[str, ...]], control.Moves] | None = None
    prepare: Callable[[nn.Sequential], nn.Sequential] = lambda net: net
    state: str = "keep"

    def loop(self, net: nn.Sequential, x: Tensor, lr: float, seed: int) -> Loop:
        """A loop over a copy of the network, as it begins."""
        torch.manual_seed(seed)
        module = self.prepare(copy.deepcopy(net))
        optimizer = torch.optim.AdamW((p for p in module.parameters() if p.requires_grad), lr=lr)
        policy = None
        if self.moves is not None:
            layers = control.layer_plan(module, control.UniformCut(), example=x[:2], layers=["?"]).layers
            settings: dict[str, Any] = {"state": self.state, "seed": seed, "layers": ["?"]}
            policy = control.LayerwiseSparse(module, optimizer, self.moves(layers), example=x[:2], **settings)
        return Loop(module, optimizer, policy)


@dataclass(frozen=True)
class Loop:
    """A network with what trains it."""

    module: nn.Sequential
    optimizer: torch.optim.Optimizer
    policy: control.LayerwiseSparse | None

    def step(self, x: Tensor, y: Tensor) -> None:
        """One step."""
        self.optimizer.zero_grad()
        functional.cross_entropy(self.module(x), y).backward()
        self.optimizer.step()

    def steps(self) -> Iterator[int]:
        """For each set of layers a step at which it moves, twice over."""
        if self.policy is None:
            yield from (0, 1)
            return
        found = [self.policy.plan.places(step) for step in range(1000)]
        firsts = sorted({each: found.index(each) for each in reversed(found)}.values())
        yield from firsts * 2

    def peak(self, x: Tensor, y: Tensor) -> int:
        """The most bytes at once over these steps."""

        def run() -> None:
            for step in self.steps():
                if self.policy is not None:
                    self.policy.step = step
                self.step(x, y)

        return peak_bytes(run, [*self.module.parameters(), *self.module.buffers(), x, y])

    def accuracy(self, part: Part) -> float:
        """In percent."""
        with torch.no_grad():
            return 100 * float((self.module(part.x).argmax(1) == part.y).double().mean())


METHODS: Mapping[str, Method] = {
    "all layers": Method(),
    "all layers, checkpoints": Method(prepare=lambda net: Checkpointed(*net)),
    "the top two": Method(lambda layers: control.Fixed(top=2)),
    "top two, all with p = 0.25": Method(lambda layers: control.Cut(p=0.25, top=2)),
    "LISA": Method(lambda layers: control.RandomLayers(count=1, always=(layers[0], layers[-1]), interval=5)),
    "BAdam": Method(lambda layers: control.CyclicBlocks(interval=20), state="drop"),
    "LoRA": Method(prepare=low_rank),
}


def convolutional(images: Tensor, seed: int) -> nn.Sequential:
    """Six convolutions, two linear layers, by blocks."""
    torch.manual_seed(seed)
    c, h, w = images.shape[1:]
    channels, strides = (c, 16, 16, 16, 32, 32, 32), (1, 1, 1, 2, 1, 2)
    blocks = [
        nn.Sequential(nn.Conv2d(n, m, 3, stride, padding=1), nn.GELU())
        for (n, m), stride in zip(pairwise(channels), strides, strict=True)
    ]
    size = 32 * ((h + 3) // 4) * ((w + 3) // 4)
    return nn.Sequential(
        *blocks, nn.Sequential(nn.Flatten(), nn.Linear(size, 64), nn.GELU()), nn.Linear(64, 10)
    )


def connected(images: Tensor, width: int, seed: int) -> nn.Sequential:
    """Three hidden layers, by blocks."""
    torch.manual_seed(seed)
    size = images[0].numel()
    return nn.Sequential(
        nn.Sequential(nn.Flatten(), nn.Linear(size, width), nn.GELU()),
        nn.Sequential(nn.Linear(width, width), nn.GELU()),
        nn.Sequential(nn.Linear(width, width), nn.GELU()),
        nn.Linear(width, 10),
    )


def train(loop: Loop, part: Part, batch: int, seconds: float, seed: int) -> int:
    """Train for a time of the processor; how many steps it was."""
    generator = torch.Generator().manual_seed(seed)
    spent, steps = 0.0, 0
    while spent < seconds:
        began = time.process_time()
        chosen = torch.randint(len(part.x), (batch,), generator=generator)
        loop.step(part.x[chosen], part.y[chosen])
        spent, steps = spent + time.process_time() - began, steps + 1
    return steps


def best(
    make: Callable[[int], nn.Sequential], method: Method, task: Task, batch: int, seconds: float, seeds: int
) -> dict[str, Any]:
    """Test accuracy by seed at the rate that is best on the validation images, on average over seeds."""
    found: dict[float, list[tuple[float, float, int]]] = {}
    for seed in range(seeds):
        start = make(seed)
        for lr in RATES:
            loop = method.loop(start, task.train.x, lr, seed)
            steps = train(loop, task.train, batch, seconds, seed)
            found.setdefault(lr, []).append((loop.accuracy(task.valid), loop.accuracy(task.test), steps))
    lr = max(found, key=lambda lr: statistics.mean(valid for valid, _, _ in found[lr]))
    tests = [test for _, test, _ in found[lr]]
    error = statistics.stdev(tests) / len(tests) ** 0.5 if len(tests) > 1 else float("nan")
    steps = statistics.mean(steps for *_, steps in found[lr])
    return {"accuracy": statistics.mean(tests), "error": error, "lr": lr, "steps": steps}


def largest(sizes: Sequence[int], peak: Callable[[int], int], budget: float) -> int | None:
    """The largest of ascending sizes whose peak is within the budget, by bisection."""
    low, high = -1, len(sizes)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if peak(sizes[middle]) <= budget else (low, middle)
    return None if low < 0 else sizes[low]


def by_batch(name: str, seconds: float, seeds: int) -> list[dict[str, Any]]:
    """The largest batch that fits."""
    loaded = data.load(name)
    own, other = (Part(part.x.float(), part.y) for part in (loaded.train, loaded.test))
    known = own.take((own.y < 5).nonzero()[:5000, 0])
    new, test = own.take((own.y >= 5).nonzero()[:, 0]), other.take((other.y >= 5).nonzero()[:2000, 0])
    held = min(1000, len(new.x) // 4)
    task = Task(
        new.take(torch.arange(held, min(held + 1000, len(new.x)))), new.take(torch.arange(held)), test
    )
    starts: list[nn.Sequential] = []
    for seed in range(seeds):
        loop = METHODS["all layers"].loop(convolutional(known.x, seed), known.x, 1e-3, seed)
        train(loop, known, 64, 4 * seconds, seed)
        starts.append(loop.module)

    def peak(method: Method, batch: int) -> int:
        return method.loop(starts[0], task.train.x, 1e-3, 0).peak(known.x[:batch].clone(), known.y[:batch])

    whole = peak(METHODS["all layers"], 64)
    rows = []
    for share in SHARES:
        for key, method in METHODS.items():
            batch = largest(range(1, LARGEST + 1), lambda size, own=method: peak(own, size), share * whole)
            row: dict[str, Any] = {"share": share, "MiB": share * whole / 2**20, "method": key, "size": batch}
            if batch is not None:
                row |= {"peak": peak(method, batch) / 2**20}
                row |= best(lambda seed: starts[seed], method, task, batch, seconds, seeds)
            rows.append(row)
            print(show(row), flush=True)
    return rows


def by_width(name: str, seconds: float, seeds: int) -> list[dict[str, Any]]:
    """The largest width that fits."""
    loaded = data.load(name)
    own, test = (Part(part.x.float(), part.y) for part in (loaded.train, loaded.test))
    held = min(1000, len(own.x) // 4)
    task = Task(
        own.take(torch.arange(held, min(held + 5000, len(own.x)))), own.take(torch.arange(held)), test
    )

    def peak(method: Method, width: int) -> int:
        loop = method.loop(connected(own.x, width, 0), own.x, 1e-3, 0)
        return loop.peak(own.x[:64].clone(), own.y[:64])

    whole = peak(METHODS["all layers"], 512)
    rows = []
    for share in SHARES:
        for key, method in METHODS.items():
            if key == "LoRA":  # it goes on from a trained network
                continue
            width = largest(range(16, 2049, 16), lambda size, own=method: peak(own, size), share * whole)
            row: dict[str, Any] = {"share": share, "MiB": share * whole / 2**20, "method": key, "size": width}
            if width is not None:
                row |= {"peak": peak(method, width) / 2**20}
                make = lambda seed, width=width: connected(own.x, width, seed)  # noqa: E731
                row |= best(make, method, task, 64, seconds, seeds)
            rows.append(row)
            print(show(row), flush=True)
    return rows


def show(row: Mapping[str, Any]) -> str:
    """One line of the table."""
    start = f"{row['MiB']:8.1f}  {row['method']:28s}"
    if row["size"] is None:
        return f"{start}{'does not fit':>12s}"
    return (
        f"{start}{row['size']:7d}{row['peak']:9.1f}{row['steps']:8.0f}{row['lr']:9.0e}"
        f"{row['accuracy']:8.1f} ({row['error']:.1f})"
    )


def main() -> None:
    """Print a table for each task."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="digits")
    parser.add_argument("--task", nargs="*", choices=["batch", "width"], default=["batch", "width"])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for task in chosen.task:
        print(
            f"{chosen.data}, the largest {task} that fits; {chosen.seconds:g} s of training, {chosen.seeds} seeds."
        )
        print(f"{'MiB':>8s}  {'':28s}{task:>7s}{'peak':>9s}{'steps':>8s}{'rate':>9s}{'accuracy':>9s}")
        rows = (by_batch if task == "batch" else by_width)(chosen.data, chosen.seconds, chosen.seeds)
        if chosen.json:
            print(json.dumps(rows))


if __name__ == "__main__":
    main()
