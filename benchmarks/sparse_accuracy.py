"""What is learnt when fewer layers are trained: test accuracy at equal time from scratch, and from few new images.

    python benchmarks/sparse_accuracy.py [--data NAME] [--task scratch few] [--seconds S ...] [--seeds N]

"scratch": a network of three convolutions and two linear layers is trained by SGD (momentum 0.9 and 0, two rates each,
the best of the four by its last accuracy, for each policy by itself), and tested after S seconds of processor time in
the loop; a policy with cheaper steps takes more of them.

"few": the same network, trained with all layers on all images, goes on with 100 new images for 150 steps: of
permuted classes (output), or inverted (input). Static sets of layers, the best of three rates.

Means over seeds with their standard errors. Digits are embedded; other data are those of ``REGIMES_DATA``.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from regimes import control, data

RATES = (0.005, 0.02, 0.05, 0.15)
LAYERS = 5
SAMPLED: Mapping[str, control.Moves | None] = {
    "all layers": None,
    "top two, all with p = 0.2": control.Cut(p=0.2, top=2),
    "top, all with p = 0.1": control.Cut(p=0.1, top=1),
    "uniform cut": control.UniformCut(),
    "one random layer": control.RandomLayers(count=1),
    "the top two": control.Fixed(top=2),
}
STATIC: Mapping[str, control.Moves] = {
    "all layers": control.Fixed(top=LAYERS),
    "the first": control.Fixed(bottom=1),
    "the first two": control.Fixed(bottom=2),
    "the last two": control.Fixed(top=2),
    "the last": control.Fixed(top=1),
}


@dataclass(frozen=True)
class Images:
    """Images and classes, to train and to test on."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor

    def part(self, n: int, seed: int) -> Images:
        """Some of the images to train on."""
        chosen = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(seed))[:n]
        return Images(self.x[chosen], self.y[chosen], self.test_x, self.test_y)


def load(name: str, train: int) -> Images:
    """Images (n, c, h, w) in float32."""
    found = data.load(name, train=train)
    return Images(found.train.x.float(), found.train.y, found.test.x.float(), found.test.y)


def network(x: Tensor, seed: int) -> nn.Sequential:
    """Three convolutions, two linear layers."""
    torch.manual_seed(seed)
    c, h, w = x.shape[1:]
    half = ((h + 1) // 2) * ((w + 1) // 2)
    return nn.Sequential(
        *(nn.Conv2d(c, 16, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(32 * half, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def accuracy(net: nn.Module, part: Images) -> float:
    """In percent, on the test images."""
    with torch.no_grad():
        return 100 * float((net(part.test_x).argmax(1) == part.test_y).double().mean())


def train(
    net: nn.Module,
    part: Images,
    moves: control.Moves | None,
    lr: float,
    momentum: float,
    stop: Callable[[int, float], bool],
    seed: int,
    seconds: Sequence[float] = (),
) -> list[float]:
    """Train until told to stop; the accuracies after these seconds of processor time in the loop, and at the end."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum)
    if moves is not None:
        control.LayerwiseSparse(net, optimizer, moves, example=part.x[:2], seed=seed)
    generator = torch.Generator().manual_seed(seed)
    found: list[float] = []
    spent, step = 0.0, 0
    while not stop(step, spent):
        began = time.process_time()
        chosen = torch.randint(len(part.x), (64,), generator=generator)
        optimizer.zero_grad()
        functional.cross_entropy(net(part.x[chosen]), part.y[chosen]).backward()
        optimizer.step()
        spent, step = spent + time.process_time() - began, step + 1
        while len(found) < len(seconds) and spent >= seconds[len(found)]:
            found.append(accuracy(net, part))
    return [*found, accuracy(net, part)]


def summary(values: Sequence[float]) -> str:
    """Mean and standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):6.1f} ({error:.1f})"


def scratch(images: Images, seconds: Sequence[float], seeds: int) -> None:
    """From a fresh start, at equal time."""
    print("from scratch; test accuracy after seconds of processor time: " + ", ".join(map(str, seconds)))
    for name, moves in SAMPLED.items():
        best: list[list[float]] = []
        for momentum in (0.9, 0.0):
            for lr in RATES[2:]:
                runs = [
                    train(
                        network(images.x, seed),
                        images,
                        moves,
                        lr if momentum else 5 * lr,
                        momentum,
                        lambda _, spent: spent >= seconds[-1],
                        seed,
                        seconds,
                    )
                    for seed in range(seeds)
                ]
                if not best or statistics.mean(r[-1] for r in runs) > statistics.mean(r[-1] for r in best):
                    best = runs
        print(
            f"{name:28s}" + "  ".join(summary([run[i] for run in best]) for i in range(len(seconds))),
            flush=True,
        )


def few(images: Images, seeds: int) -> None:
    """From a trained network, with 100 images of another kind."""
    flip = images.x.max()
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    shifts = {
        "permuted classes": lambda part: Images(part.x, order[part.y], part.test_x, order[part.test_y]),
        "inverted images": lambda part: Images(flip - part.x, part.y, flip - part.test_x, part.test_y),
    }
    starts = []
    for seed in range(seeds):
        start = network(images.x, seed)
        train(start, images, None, 0.05, 0.9, lambda step, _: step >= 600, seed)
        starts.append(start)
    for kind, shift in shifts.items():
        print(f"100 images, {kind}, 150 steps; test accuracy")
        for name, moves in STATIC.items():
            runs = [
                [
                    train(
                        copy.deepcopy(starts[seed]),
                        shift(images.part(100, seed)),
                        moves,
                        lr,
                        0.9,
                        lambda step, _: step >= 150,
                        seed,
                    )[-1]
                    for seed in range(seeds)
                ]
                for lr in RATES[:3]
            ]
            print(f"{name:28s}{summary(max(runs, key=statistics.mean))}", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="digits")
    parser.add_argument("--train", type=int, default=1200)
    parser.add_argument("--task", nargs="*", choices=["scratch", "few"], default=["scratch", "few"])
    parser.add_argument("--seconds", type=float, nargs="*", default=[0.5, 1.0, 2.0])
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    images = load(chosen.data, chosen.train)
    print(f"{chosen.data}: {len(images.x)} images of {tuple(images.x.shape[1:])}; {chosen.seeds} seeds")
    if "scratch" in chosen.task:
        scratch(images, chosen.seconds, chosen.seeds)
    if "few" in chosen.task:
        few(images, chosen.seeds)


if __name__ == "__main__":
    main()
