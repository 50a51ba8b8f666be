"""What it saves to train fewer layers: forward, backward, step, and the activations kept, against full training.

    python benchmarks/sparse.py [--threads N] [--seconds S] [--network NAME ...] [--device cuda] [--json]

Each line is a loop. In each round every loop takes ten steps one after another, after one that is not timed (the
others' work has emptied the caches), with each set of layers of its plan among them; each cost is divided by that of
full training with the same optimiser in the same round. The medians over the steps with one set of layers are averaged
over the sets, each with its share of 2000 steps of the plan. A layer is a part of the sequence; "the top" are as many
layers as have a tenth of the backward pass or less, at least one.

"kept" is the share of the bytes that the forward pass saves for the backward pass, by hooks on saved tensors (each
storage once, without parameters): the mean over the sets, and the largest. "of model" is the saving of a whole step as
a share of that of the model p C(all) + (1 - p) C(top), C(top) being that of "plain freezing", which is
``requires_grad_(False)`` on all but the top, without a policy. LISA and BAdam are written as they are published
(benchmarks/_sparse_networks.py) and held against full training with AdamW. A step takes as many samples as another: how
much is learnt from it is another question (docs/train-fewer-layers.md).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from _peak import kept_bytes
from _sparse_networks import NETWORKS, BAdam, Lisa, blocks
from torch import Tensor, nn
from torch.nn import functional

from regimes import control

STEPS, CHUNK = 2000, 10
PARTS = ("forward", "backward", "step", "total")
Costs = tuple[float, ...]


@final
class Case:
    """A loop whose steps are timed.

    Args:
        net, pool, batch: what is trained on how many samples of which.
        optimizer: of a loop of its own, or of a policy.
        policy: that freezes layers.
        peer: that does, of others.
        base: the loop that it is held against.
        chance: p, where the model of the cost is known.
    """

    def __init__(
        self,
        net: nn.Sequential,
        pool: tuple[Tensor, Tensor],
        batch: int,
        optimizer: torch.optim.Optimizer,
        policy: control.LayerwiseSparse | None = None,
        peer: Lisa | BAdam | None = None,
        base: str = "all layers",
        chance: float | None = None,
    ) -> None:
        self.net, self.pool, self.batch, self.optimizer = net, pool, batch, optimizer
        self.policy, self.peer, self.base, self.chance = policy, peer, base, chance
        self.taken = 0
        self.seen: dict[frozenset[str], list[Costs]] = defaultdict(list)

    def sample(self) -> tuple[Tensor, Tensor]:
        """A batch of the pool, in another order each time."""
        draw = torch.Generator().manual_seed(self.taken)
        rows = torch.randperm(len(self.pool[0]), generator=draw)[: self.batch].to(self.pool[0].device)
        return self.pool[0][rows], self.pool[1][rows]

    def moving(self) -> frozenset[str]:
        """The layers that move at the next step."""
        if self.policy is not None:
            return frozenset(self.policy.moving)
        return frozenset(name for name, p in self.net.named_parameters() if p.requires_grad)

    def chunk(self) -> list[tuple[frozenset[str], Costs]]:
        """Ten steps, one after another, in which each set of layers has its share, at least one; the first is left out.

        A peer changes its layers with every second one, and the other half counts.
        """
        if self.policy is None:
            taken = [self.take() for _ in range(CHUNK)]
            return taken[1::2] if self.peer is not None else taken[1:]
        plan = self.policy.plan
        counts = Counter(plan.places(step) for step in range(STEPS))
        first = {places: step for step in reversed(range(STEPS)) for places in [plan.places(step)]}
        steps = [first[each] for each, n in counts.items() for _ in range(max(1, round(CHUNK * n / STEPS)))]
        order = torch.randperm(len(steps), generator=torch.Generator().manual_seed(self.taken)).tolist()
        taken = []
        for step in (steps[order[-1]], *(steps[place] for place in order)):
            self.policy.step = step
            taken.append(self.take())
        return taken[1:]

    def take(self) -> tuple[frozenset[str], Costs]:
        """One step, and its seconds by parts."""
        if self.peer is not None:
            self.peer.begin(self.taken)
            self.optimizer = self.peer.optimizer
        x, y = self.sample()
        moving = self.moving()
        began = _now(x.device)
        self.optimizer.zero_grad()
        loss = functional.cross_entropy(self.net(x), y)
        forward = _now(x.device)
        loss.backward()
        backward = _now(x.device)
        self.optimizer.step()
        ended = _now(x.device)
        self.taken += 1
        return moving, (forward - began, backward - forward, ended - backward, ended - began)

    def kept_by(self, moving: frozenset[str]) -> int:
        """Bytes that the forward pass of a step saves at which these layers move."""
        assert self.policy is not None
        plan = self.policy.plan
        self.policy.step = next(step for step in range(STEPS) if frozenset(plan.names(step)) == moving)
        return self.kept()

    def kept(self) -> int:
        """Bytes that the forward pass of the next step saves."""
        x, y = self.sample()
        return kept_bytes(self.net, lambda: functional.cross_entropy(self.net(x), y))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def adamw(net: nn.Module) -> torch.optim.Optimizer:
    """Its rate is of no consequence."""
    return torch.optim.AdamW((p for p in net.parameters() if p.requires_grad), lr=1e-4)


def momentum(net: nn.Module) -> torch.optim.Optimizer:
    """SGD with two reads and a write of each weight."""
    return torch.optim.SGD((p for p in net.parameters() if p.requires_grad), lr=1e-4, momentum=0.9)


def case(
    name: str,
    device: str,
    moves: control.Moves | None = None,
    make: Callable[[nn.Module], torch.optim.Optimizer] = momentum,
    frozen: int | None = None,
    cached: bool = False,
    **more: Any,
) -> Case:
    """A loop with a policy, without one, or with all but the top frozen by hand."""
    torch.manual_seed(0)
    net, inputs, batch = NETWORKS[name][0]()
    x, y = inputs(4 * batch).to(device), torch.randint(10, (4 * batch,), device=device)
    net.to(device)
    layers = blocks(net)
    if frozen is not None:
        for each in layers[:-frozen]:
            net.get_submodule(each).requires_grad_(False)
    optimizer = make(net)
    policy = None
    if moves is not None:
        policy = control.LayerwiseSparse(net, optimizer, moves, example=x[:2], layers=layers)
        if cached:
            control.CachedPrefix(policy, samples=len(x))
            for rows in torch.arange(len(x), device=device).split(batch):
                net(x[rows])
    return Case(net, (x, y), batch, optimizer, policy, **more)


def cases(name: str, device: str) -> dict[str, Case]:
    """What is compared, by name."""
    top = NETWORKS[name][1]
    fixed = control.Fixed(top=top)
    chances = {
        f"top, all with p = {p}": case(name, device, control.Cut(p=p, top=top), chance=p)
        for p in (0.1, 0.2, 0.45)
    }
    found = {
        "all layers": case(name, device),
        **chances,
        "uniform cut": case(name, device, control.UniformCut()),
        "the top": case(name, device, fixed, chance=0.0),
        "plain freezing": case(name, device, frozen=top),
        "the top, cached prefix": case(name, device, fixed, cached=True),
        "all layers, AdamW": case(name, device, make=adamw, base="all layers, AdamW"),
        "p = 0.1, AdamW": case(
            name, device, control.Cut(p=0.1, top=top), make=adamw, base="all layers, AdamW"
        ),
    }
    for key, kind in (("LISA", Lisa), ("BAdam", BAdam)):
        one = case(name, device, base="all layers, AdamW")
        one.peer = kind(one.net, 2)
        found[key] = one
    return found


def run(name: str, device: str, seconds: float) -> list[dict[str, Any]]:
    """A line for each loop."""
    loops = cases(name, device)
    bases: dict[str, list[Costs]] = defaultdict(list)
    kept: dict[str, dict[frozenset[str], int]] = defaultdict(dict)
    for one in loops.values():  # so far that each has met what it meets in its first steps
        for _ in range(2):
            one.take()
        one.taken = 0
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < 2 or time.perf_counter() < end:
        taken = {key: one.chunk() for key, one in loops.items()}
        for key, one in loops.items():
            if one.policy is None:
                kept[key].setdefault(one.moving(), one.kept())
            base = _middle([cost for _, cost in taken[one.base]])
            if one.base == key:
                bases[key].append(base)
            for moving, cost in taken[key]:
                one.seen[moving].append(tuple(a / b for a, b in zip(cost, base, strict=True)))
        rounds += 1
    whole = {key: _middle(costs) for key, costs in bases.items()}
    found = {key: _line(one, whole[one.base]) for key, one in loops.items()}
    full, least = found["all layers"]["total"], found["plain freezing"]["total"]
    size = max(kept["all layers"].values())
    for key, one in loops.items():
        if one.policy is not None:
            kept[key] |= {moving: one.kept_by(moving) for moving in one.seen}
        if one.chance is not None:
            model = one.chance * full + (1 - one.chance) * least
            found[key]["of_model"] = (full - found[key]["total"]) / (full - model)
        sizes = [(share, kept[key][moving] / size) for moving, share in shares(one) if moving in kept[key]]
        weight = sum(share for share, _ in sizes)
        found[key] |= {
            "kept_mean": sum(share * each for share, each in sizes) / weight,
            "kept_most": max(each for _, each in sizes),
        }
    head = {"network": name, "rounds": rounds, "kept_bytes": size}
    return [{**head, "loop": key, **line} for key, line in found.items()]


def _middle(costs: list[Costs]) -> Costs:
    return tuple(map(statistics.median, zip(*costs, strict=True)))


def shares(one: Case) -> list[tuple[frozenset[str], float]]:
    """The sets of layers that were seen to move, each with its share of the steps."""
    if one.policy is None:
        return [(moving, 1 / len(one.seen)) for moving in one.seen]
    plan = one.policy.plan
    counts = Counter(frozenset(plan.names(step)) for step in range(STEPS))
    seen = {moving: counts[moving] for moving in one.seen}
    return [(moving, count / sum(seen.values())) for moving, count in seen.items()]


def _line(one: Case, whole: Costs) -> dict[str, float]:
    """Milliseconds of a step by parts, and how many times faster each is than that of full training."""
    costs = {moving: _middle(found) for moving, found in one.seen.items()}
    mean = [sum(share * costs[moving][part] for moving, share in shares(one)) for part in range(len(PARTS))]
    times = {part: 1e3 * value * base for part, value, base in zip(PARTS, mean, whole, strict=True)}
    return times | {f"{part}_ratio": 1 / value for part, value in zip(PARTS, mean, strict=True)}


def show(line: Mapping[str, Any]) -> str:
    """Milliseconds, then how many times faster, then the saving as a share of the model's, then the bytes kept."""
    times = "".join(f"{line[part]:9.2f}" for part in PARTS)
    ratios = "".join(f"{line[f'{part}_ratio']:8.2f}" for part in PARTS)
    model = f"{100 * line['of_model']:8.0f} %" if "of_model" in line else f"{'':10s}"
    return f"{line['loop']:24s}{times}  {ratios}{model}{line['kept_mean']:9.2f}{line['kept_most']:8.2f}"


def main() -> None:
    """Print a table for each network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each network, after its start")
    parser.add_argument("--network", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    for name in chosen.network:
        lines = run(name, chosen.device, chosen.seconds)
        print(
            f"{name}: {NETWORKS[name][0].__doc__} {chosen.device}, {chosen.threads} threads; "
            f"{lines[0]['rounds']} rounds; top: {NETWORKS[name][1]} of its layers; "
            f"{lines[0]['kept_bytes'] / 2**20:.1f} MiB kept by all."
        )
        print(
            f"{'':24s}{'ms: forward, backward, step, all':>36s}  "
            f"{'times faster, the same':>32s}{'of model':>10s}{'kept: mean, most':>17s}"
        )
        print("\n".join(show(line) for line in lines), flush=True)
        if chosen.json:
            print(json.dumps(lines))


if __name__ == "__main__":
    main()
