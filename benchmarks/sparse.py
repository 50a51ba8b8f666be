"""What it saves to train fewer layers: forward, backward, step, and the activations kept, against full training.

    python benchmarks/sparse.py [--threads N] [--rounds R] [--network NAME ...] [--json]

Each line is a policy. Its cost is the mean over the sets of layers that its plan takes, each with its share of 2000
steps, each timed in every round beside a step of full training; printed are medians over the rounds, of times and of
the ratio to full training in the same round. "kept" is the share of the bytes that the forward pass saves for the
backward pass, by hooks on saved tensors (each storage once, without parameters): the mean over the sets, and the
largest. "plain freezing" is ``requires_grad_(False)`` on all but the top, without a policy: what it differs by from
"the top" is the cost of the policy.

The sets of "LISA" are those of its paper (the first and the last layer, and one more), of "BAdam" one layer after
another; the optimisers, and what they keep, are not compared. A step takes as many samples as another: how much is
learnt from it is another question (docs/train-fewer-layers.md).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from regimes import control

STEPS = 2000


def mlp() -> tuple[nn.Module, Tensor]:
    """784-512-512-512-512-10, 128 samples."""
    sizes = [784, 512, 512, 512, 512]
    hidden = [each for n, m in pairwise(sizes) for each in (nn.Linear(n, m), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(512, 10)), torch.randn(128, 784)


def cnn() -> tuple[nn.Module, Tensor]:
    """Four convolutions with batch norm and a linear layer, 64 images of 3 x 32 x 32."""
    channels = [3, 32, 64, 128, 128]
    blocks = [
        nn.Sequential(
            nn.Conv2d(n, m, 3, stride=1 if n == 3 else 2, padding=1, bias=False), nn.BatchNorm2d(m), nn.ReLU()
        )
        for n, m in pairwise(channels)
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)), torch.randn(
        64, 3, 32, 32
    )


class LastToken(nn.Module):
    """What is known at the last place, (n, places, d) to (n, d)."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, d)."""
        return x[:, -1]


def transformer() -> tuple[nn.Module, Tensor]:
    """An embedding, four encoder layers of 128 features, a linear layer; 16 texts of 64 tokens."""
    blocks = [nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True) for _ in range(4)]
    return nn.Sequential(nn.Embedding(1000, 128), *blocks, LastToken(), nn.Linear(128, 10)), torch.randint(
        1000, (16, 64)
    )


NETWORKS: Mapping[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "mlp": mlp,
    "cnn": cnn,
    "transformer": transformer,
}
# A layer is a block of the sequence.
LAYERS = ["?"]


def policies(layers: tuple[str, ...]) -> dict[str, control.Moves]:
    """What is compared, by name."""
    return {
        **{f"top, all with p = {p}": control.Cut(p=p, top=1) for p in (0.1, 0.2, 0.45)},
        "uniform cut": control.UniformCut(),
        "as LISA: ends and one": control.RandomLayers(count=1, always=(layers[0], layers[-1])),
        "as BAdam: one by one": control.CyclicBlocks(),
        "the top": control.Fixed(top=1),
    }


@dataclass(frozen=True)
class Cost:
    """Seconds of a step by its parts, and the bytes that its forward pass keeps."""

    forward: float
    backward: float
    step: float
    kept: float

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return self.forward + self.backward + self.step


@dataclass(frozen=True)
class Case:
    """A loop whose step is timed: one set of layers."""

    module: nn.Module
    x: Tensor
    y: Tensor
    optimizer: torch.optim.Optimizer
    policy: control.LayerwiseSparse | None = None

    def measure(self, at: int = 0) -> Cost:
        """One step, as that of this number."""
        if self.policy is not None:
            self.policy.step = at
        self.optimizer.zero_grad()
        with torch.no_grad():  # whatever ran before, the weights are in the cache now
            self.module(self.x)
        began = time.perf_counter()
        loss = functional.cross_entropy(self.module(self.x), self.y)
        forward = time.perf_counter()
        loss.backward()
        backward = time.perf_counter()
        self.optimizer.step()
        ended = time.perf_counter()
        return Cost(forward - began, backward - forward, ended - backward, 0.0)

    def kept(self, at: int = 0) -> int:
        """Bytes that the forward pass saves."""
        if self.policy is not None:
            self.policy.step = at
        own = {
            each.untyped_storage().data_ptr() for each in (*self.module.parameters(), *self.module.buffers())
        }
        held: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in own:
                held[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = functional.cross_entropy(self.module(self.x), self.y)
        assert loss.requires_grad
        return sum(each.untyped_storage().nbytes() for each in held.values())


def case(name: str, moves: control.Moves | None, frozen: bool = False) -> Case:
    """A loop with a policy, without one, or with all but the last layer frozen by hand."""
    torch.manual_seed(0)
    module, x = NETWORKS[name]()
    assert isinstance(module, nn.Sequential)
    if frozen:
        module[:-1].requires_grad_(False)
    optimizer = torch.optim.SGD((p for p in module.parameters() if p.requires_grad), lr=1e-3, momentum=0.9)
    policy = None
    if moves is not None:
        policy = control.LayerwiseSparse(module, optimizer, moves, example=x[:2], layers=LAYERS)
    return Case(module, x, torch.randint(10, (len(x),)), optimizer, policy)


def sets(one: Case) -> list[tuple[int, float]]:
    """For each set of layers that moves a step at which it does, and its share of all steps."""
    if one.policy is None:
        return [(0, 1.0)]
    found = [one.policy.plan.places(step) for step in range(STEPS)]
    return [(found.index(each), count / STEPS) for each, count in Counter(found).items()]


def mean(costs: list[tuple[float, Cost]]) -> Cost:
    """The mean over the sets, by their shares."""
    parts = [asdict(cost) for _, cost in costs]
    shares = [share for share, _ in costs]
    return Cost(
        **{key: sum(s * part[key] for s, part in zip(shares, parts, strict=True)) for key in parts[0]}
    )


def run(name: str, rounds: int) -> list[dict[str, float | str]]:
    """A line for each policy."""
    full = case(name, None)
    module, x = NETWORKS[name]()
    layers = control.layer_plan(module, control.UniformCut(), example=x[:2], layers=LAYERS).layers
    cases = {key: case(name, moves) for key, moves in policies(layers).items()}
    cases["plain freezing"] = case(name, None, frozen=True)
    whole = full.kept()
    times: dict[str, list[tuple[Cost, Cost]]] = {key: [] for key in cases}
    for turn in range(rounds + 1):
        for key, one in cases.items():
            pair = full.measure(), mean([(share, one.measure(at)) for at, share in sets(one)])
            if turn:  # the first round warms up
                times[key].append(pair)
    lines = []
    for key, one in cases.items():
        kept = [(share, one.kept(at)) for at, share in sets(one)]
        ratios = {
            part: statistics.median(getattr(a, part) / getattr(b, part) for a, b in times[key])
            for part in ("forward", "backward", "step", "total")
        }
        lines.append(
            {
                "network": name,
                "policy": key,
                **{part: 1e3 * statistics.median(getattr(b, part) for _, b in times[key]) for part in ratios},
                **{f"{part}_ratio": ratio for part, ratio in ratios.items()},
                "kept_mean": sum(share * size for share, size in kept) / whole,
                "kept_most": max(size for _, size in kept) / whole,
            }
        )
    base = {
        part: 1e3 * statistics.median(getattr(a, part) for pairs in times.values() for a, _ in pairs)
        for part in ("forward", "backward", "step", "total")
    }
    return [{"network": name, "policy": "all layers", **base, "kept_bytes": whole}, *lines]


def show(line: Mapping[str, float | str]) -> str:
    """One line of the table: milliseconds, then how many times faster, then the share of the bytes that are kept."""
    parts = ("forward", "backward", "step", "total")
    times = "".join(f"{line[part]:9.2f}" for part in parts)
    if "kept_bytes" in line:
        return f"{line['policy']:24s}{times}{'':34s}{float(line['kept_bytes']) / 2**20:8.1f} MiB"
    ratios = "".join(f"{line[f'{part}_ratio']:8.2f}" for part in parts)
    return f"{line['policy']:24s}{times}  {ratios}{line['kept_mean']:8.2f}{line['kept_most']:8.2f}"


def main() -> None:
    """Print a table for each network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--network", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    for name in chosen.network:
        lines = run(name, chosen.rounds)
        print(
            f"{name}: {NETWORKS[name].__doc__} Threads: {chosen.threads}; medians of {chosen.rounds} rounds."
        )
        print(
            f"{'':24s}{'ms: forward, backward, step, all':>36s}  "
            f"{'times faster, the same':>32s}{'kept: mean, most':>18s}"
        )
        print("\n".join(show(line) for line in lines), flush=True)
        if chosen.json:
            print(json.dumps(lines))


if __name__ == "__main__":
    main()
