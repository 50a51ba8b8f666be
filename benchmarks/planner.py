"""What the planner says against what is measured: seconds of a step, bytes kept, and gradient variance at equal cost.

    python benchmarks/planner.py [--threads N] [--rounds R] [--part step variance] [--wall]

"step": each line is a network and a policy. ``measure.layer_costs`` predicts the mean step, then a loop with
``control.LayerwiseSparse`` is timed on the sets of layers that the policy takes, each with its share of the steps, in
rounds; printed are medians over the rounds, of a step and of its ratio to a full step in the same round, with the
errors of the prediction. Processor time, unless --wall. Bytes are those that hooks on saved tensors see, the mean over
the sets.

"variance": networks that learn the digits, at their start, after 100 steps, and where a trained one goes on with
permuted classes. ``LayerCosts.plan`` proposes the cut of least variance. Beside it are three policies that cost the
same by the same prediction: one probability for all layers but the top, every depth as likely as another (a uniform
cut), and the top with one other layer, whichever (as LISA draws them); the plan is made for what each of these costs,
half a full step for the first. The measured variance is the mean, over 8 other batches and 4000 draws of layers, of
|g' - g|^2, g' being the gradient of the layers that move, each times 1/p. Printed is how many times lower that of the
plan is.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from _peak import kept_bytes
from _sparse_networks import NETWORKS as SPARSE
from _sparse_networks import LastToken
from torch import Tensor, nn
from torch.nn import functional

from regimes import control, data, measure, models

SHARE = 0.5
BATCH = 64
CLOCK: dict[bool, Callable[[], float]] = {True: time.perf_counter, False: time.process_time}


def resnet() -> tuple[nn.Module, Tensor]:
    """A ResNet-18 of a quarter of the channels, 16 images of 3 x 32 x 32."""
    return models.resnet(width_factor=0.25, dtype=torch.float32), torch.randn(16, 3, 32, 32)


def drawn(name: str) -> tuple[nn.Module, Tensor]:
    """A network of ``benchmarks/sparse.py`` and a batch."""
    net, pool, batch = SPARSE[name][0]()
    return net, pool(batch)


NETWORKS: Mapping[str, tuple[Callable[[], tuple[nn.Module, Tensor]], list[str] | None]] = {
    **{name: (partial(drawn, name), ["?"]) for name in ("mlp", "cnn", "transformer")},
    "resnet": (resnet, None),
}
# Among so many steps a step is looked for at which a set of layers moves.
STEPS = 2000


@dataclass(frozen=True)
class Line:
    """One setting: what was predicted, and what was measured."""

    network: str
    policy: str
    predicted: measure.Prediction
    step: float
    ratio: float
    kept: float

    @property
    def errors(self) -> tuple[float, float, float]:
        """Relative errors of the step, of its ratio to a full one, and of the bytes."""
        found = self.predicted
        return (found.step / self.step - 1, found.ratio / self.ratio - 1, found.kept_mean / self.kept - 1)

    def __str__(self) -> str:
        found, (step, ratio, kept) = self.predicted, self.errors
        return (
            f"{self.network:12s}{self.policy:24s}{1e3 * found.step:9.2f}{1e3 * self.step:9.2f}{100 * step:7.1f}"
            f"{found.ratio:8.2f}{self.ratio:6.2f}{100 * ratio:7.1f}"
            f"{found.kept_mean / 2**20:9.2f}{self.kept / 2**20:8.2f}{100 * kept:6.1f}"
        )


def policies(costs: measure.LayerCosts) -> dict[str, control.Moves]:
    """What is predicted, by name."""
    n = len(costs.layers)
    ends = (costs.layers[0], costs.layers[-1])
    return {
        "all layers": control.Fixed(top=n),
        "top, all with p = 0.2": control.Cut(p=0.2),
        "uniform cut": control.UniformCut(),
        "as LISA: ends and one": control.RandomLayers(count=1, always=ends),
        "as BAdam: one by one": control.CyclicBlocks(),
        "planned: half a step": costs.plan(SHARE),
    }


def loop(moves: control.Moves, name: str, clock: Callable[[], float]) -> tuple[Callable[[], float], float]:
    """A function that runs the sets of layers of a policy and gives the mean seconds of a step; and the bytes kept."""
    torch.manual_seed(0)
    make, layers = NETWORKS[name]
    module, x = make()
    y = torch.randint(10, (len(x),))
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)
    policy = control.LayerwiseSparse(module, optimizer, moves, example=x[:2], layers=layers)
    steps_of = {policy.plan.places(at): at for at in reversed(range(STEPS))}
    sets = [
        (steps_of[moving], share)
        for moving, share in moves.shares(policy.plan.layers).items()
        if moving in steps_of
    ]
    seen = sum(share for _, share in sets)
    sets = [(at, share / seen) for at, share in sets]

    def mean_step() -> float:
        total = 0.0
        for at, share in sets:
            policy.step = at
            optimizer.zero_grad()
            began = clock()
            functional.cross_entropy(module(x), y).backward()
            optimizer.step()
            total += share * (clock() - began)
        return total

    def kept(at: int) -> int:
        policy.step = at
        return kept_bytes(module, lambda: functional.cross_entropy(module(x), y))

    return mean_step, sum(share * kept(at) for at, share in sets)


def steps(name: str, rounds: int, clock: Callable[[], float]) -> list[Line]:
    """A line for each policy."""
    torch.manual_seed(0)
    make, layers = NETWORKS[name]
    module, x = make()
    y = torch.randint(10, (len(x),))
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)
    costs = measure.layer_costs(
        module,
        [(x, y)],
        functional.cross_entropy,
        optimizer=optimizer,
        layers=layers,
        rounds=rounds,
        clock=clock,
    )
    print(f"{name}: {make.__doc__}\n{costs}\n", flush=True)
    chosen = policies(costs)
    loops = {policy: loop(moves, name, clock) for policy, moves in chosen.items()}
    full, _ = loops["all layers"]
    pairs: dict[str, list[tuple[float, float]]] = {policy: [] for policy in chosen}
    for turn in range(rounds + 1):
        for policy, (run, _) in loops.items():
            pair = full(), run()
            if turn:
                pairs[policy].append(pair)
    return [
        Line(
            name,
            policy,
            costs.predict(moves),
            statistics.median(step for _, step in pairs[policy]),
            statistics.median(step / whole for whole, step in pairs[policy]),
            loops[policy][1],
        )
        for policy, moves in chosen.items()
    ]


def learners() -> dict[str, tuple[Callable[[], nn.Module], list[str] | None]]:
    """Networks for images of 1 x 8 x 8, and what is one layer of them."""

    def convolution(n: int, m: int, stride: int = 1) -> nn.Module:
        return nn.Sequential(nn.Conv2d(n, m, 3, stride, 1, bias=False), nn.BatchNorm2d(m), nn.ReLU())

    def mlp() -> nn.Module:
        hidden = [nn.Sequential(nn.Linear(n, 256), nn.ReLU()) for n in (64, 256, 256, 256)]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(256, 10))

    def plain() -> nn.Module:
        sizes = ((1, 16, 1), (16, 32, 2), (32, 32, 1), (32, 32, 1))
        blocks = [nn.Sequential(nn.Conv2d(n, m, 3, s, 1), nn.ReLU()) for n, m, s in sizes]
        return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))

    def normed() -> nn.Module:
        blocks = [convolution(1, 16), convolution(16, 32), convolution(32, 64, 2), convolution(64, 64, 2)]
        return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))

    def rows() -> nn.Module:
        blocks = [nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True) for _ in range(4)]
        return nn.Sequential(nn.Flatten(1, 2), nn.Linear(8, 32), *blocks, LastToken(), nn.Linear(32, 10))

    def small_resnet() -> nn.Module:
        return models.resnet(channels=1, width_factor=0.125, dtype=torch.float32)

    return {
        "mlp of 5": (mlp, ["?"]),
        "4 convolutions": (plain, None),
        "4 with batch norm": (normed, ["?"]),
        "transformer on rows": (rows, ["?"]),
        "resnet-18, narrow": (small_resnet, None),
    }


def draw_batches(x: Tensor, y: Tensor, count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Batches at random."""
    generator = torch.Generator().manual_seed(seed)
    chosen = [torch.randint(len(x), (BATCH,), generator=generator) for _ in range(count)]
    return [(x[each], y[each]) for each in chosen]


def train(net: nn.Module, x: Tensor, y: Tensor, count: int) -> None:
    """Steps of SGD with momentum."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    for inputs, targets in draw_batches(x, y, count, seed=1):
        optimizer.zero_grad()
        functional.cross_entropy(net(inputs), targets).backward()
        optimizer.step()


def variance(
    net: nn.Module, plan: control.LayerPlan, moves: control.Moves, batches: list[tuple[Tensor, Tensor]]
) -> float:
    """The mean of |g' - g|^2 over batches and draws of layers."""
    chances = torch.tensor(moves.probabilities(plan.layers), dtype=torch.float64)
    draws = torch.zeros(4000, len(chances), dtype=torch.float64)
    for step, row in enumerate(draws):
        row[list(moves.moving(plan.layers, 1, step))] = 1.0
    weights = (draws / chances - 1).square().mean(0)
    own = dict(net.named_parameters())
    total = 0.0
    for x, y in batches:
        loss = functional.cross_entropy(net(x), y)
        for weight, names in zip(weights.tolist(), plan.parameters, strict=True):
            grads = torch.autograd.grad(loss, [own[name] for name in names], retain_graph=True)
            total += weight * sum(float(grad.double().square().sum()) for grad in grads)
    return total / len(batches)


def equal(costs: measure.LayerCosts, ratio: float) -> control.Cut:
    """One probability for all but the top, at the same predicted cost."""
    top = costs.predict(control.Fixed(top=1)).ratio
    return control.Cut(p=min(1.0, max(0.0, (ratio - top) / (1 - top))))


def lower(
    net: nn.Module, layers: list[str] | None, x: Tensor, y: Tensor, clock: Callable[[], float]
) -> tuple[list[float], str]:
    """How many times lower the variance of the plan is, against each; and its probabilities at half a step."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    costs = measure.layer_costs(
        net,
        draw_batches(x, y, 5, seed=2),
        functional.cross_entropy,
        optimizer=optimizer,
        layers=layers,
        clock=clock,
    )
    plan = control.layer_plan(net, control.UniformCut(), example=x[:2], layers=layers)
    others = draw_batches(x, y, 8, seed=3)
    rivals = (
        equal(costs, SHARE),
        control.UniformCut(),
        control.RandomLayers(count=1, always=[costs.layers[-1]]),
    )
    found = []
    for rival in rivals:
        planned = costs.plan(costs.predict(rival).ratio)
        found.append(variance(net, plan, rival, others) / variance(net, plan, planned, others))
    chances = costs.plan(SHARE).probabilities(costs.layers)
    few = chances if len(chances) < 8 else (*chances[:: len(chances) // 5], chances[-1])
    shown = " ".join(f"{p:.2f}" for p in few)
    return found, f"p = {shown}"


def variances(clock: Callable[[], float]) -> None:
    """A line for each network at each time."""
    print(
        f"\ntimes lower is the variance of the plan, at equal cost; its p at {SHARE} of a step from the bottom up"
    )
    print(f"{'':42s}{'than one p':>12s}{'uniform cut':>13s}{'random layer':>14s}")
    digits = data.load("digits", train=1200)
    x, y = digits.train.x.float(), digits.train.y
    permuted = torch.randperm(10, generator=torch.Generator().manual_seed(1))[y]
    every = []
    for name, (make, layers) in learners().items():
        torch.manual_seed(0)
        net = make()
        for when, count, targets in (
            ("at the start", 0, y),
            ("after 100 steps", 100, y),
            ("new classes", 300, permuted),
        ):
            train(net, x, y, count)
            found, said = lower(net, layers, x, targets, clock)
            every.append(found)
            print(
                f"{name:22s}{when:20s}{found[0]:12.2f}{found[1]:13.2f}{found[2]:14.2f}   {said}", flush=True
            )
    for what, column in zip(("one p", "uniform cut", "random layer"), zip(*every, strict=True), strict=True):
        many = sum(each >= 1.5 for each in column)
        print(f"than {what}: median {statistics.median(column):.2f}, 1.5 or more in {many} of {len(column)}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--part", nargs="*", choices=["step", "variance"], default=["step", "variance"])
    parser.add_argument("--wall", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    clock = CLOCK[chosen.wall]
    if "step" in chosen.part:
        lines = [line for name in NETWORKS for line in steps(name, chosen.rounds, clock)]
        print(f"{'':36s}{'ms: predicted, measured, %':>25s}{'ratio, %':>21s}{'MiB kept, %':>23s}")
        print("\n".join(map(str, lines)))
        for place, what in enumerate(("step", "ratio", "bytes")):
            errors = [abs(line.errors[place]) for line in lines]
            print(
                f"{what}: median error {100 * statistics.median(errors):.1f} %, largest {100 * max(errors):.1f} %"
            )
    if "variance" in chosen.part:
        variances(clock)


if __name__ == "__main__":
    main()
