"""What a linear block costs: a step over one of SGD, the bytes that are kept, and a block taken as a whole.

    python benchmarks/iterative.py [--rounds R] [--steps K] [--samples N]

"step": forward, backward and SGD with momentum of the network, of its linearisation, and of that with the batch held;
float32, the networks of ``linear.py``; one thread, seconds of the process, medians over rounds side by side. Goals: 1.8
linearised, 1.4 held. Matrix products alone say 5/3 and 4/3, and less where the first layer is most of it, which has no
gradient by the inputs.

"bytes": what is kept of a batch, as told from four samples, as counted, and as the allocator says: what ``hold``
allocates and has not freed when it returns. Goal: within 5 %.

"block": K = 1000 full-batch steps of the squared loss, n = 500, one block from one anchor, float64, in the four ways of
``train.blocks``; kernel and decomposition are part of the time. The module's steps are timed on a few, and
multiplied. Goal: 100 times faster in closed form than with the module.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable

import torch
from linear import convolutional, fully_connected
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from regimes import control, models, study, train
from regimes.core.tree import norm, sub
from regimes.train.block import BlockWay

GOALS = {"linearised": 1.8, "held": 1.4}


def clock(call: Callable[[], object]) -> float:
    """Seconds of the process."""
    began = time.process_time()
    call()
    return time.process_time() - began


def stepper(module: nn.Module, outputs: Callable[[], Tensor], y: Tensor) -> Callable[[], None]:
    """One training step at each call."""
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(outputs(), y).backward()
        optimizer.step()

    return step


def steps(name: str, network: nn.Module, batch: int, rounds: int) -> dict[str, float | str]:
    """The three steps, in turns, and what is kept."""
    x, y = torch.randn(batch, 1, 28, 28), torch.randint(10, (batch,))
    plain, linear, held = copy.deepcopy(network), control.linearize(network), control.linearize(network)
    kept = held.hold(x)
    kinds = {
        "plain": stepper(plain, lambda: plain(x), y),
        "linearised": stepper(linear, lambda: linear(x), y),
        "held": stepper(held, kept, y),
    }
    rows = [{kind: clock(step) for kind, step in kinds.items()} for _ in range(rounds + 2)][2:]
    torch.testing.assert_close(kept(), held(x), rtol=1e-4, atol=1e-4)
    line: dict[str, float | str] = {"network": name, "batch": batch}
    for kind in kinds:
        line[f"{kind}_ms"] = 1e3 * statistics.median(row[kind] for row in rows)
        line[kind] = statistics.median(row[kind] / row["plain"] for row in rows)
    told = held.held_bytes(x)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        again = held.hold(x)
    allocated = sum(each.self_cpu_memory_usage for each in seen.events() or [])
    return line | {
        "told": told,
        "counted": again.bytes,
        "allocated": allocated,
        "error": told / allocated - 1,
    }


def block(samples: int, count: int, rounds: int) -> dict[str, float]:
    """Seconds of one block in each way, and how far the parameters lie apart."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 20, generator=generator, dtype=torch.float64)
    y, network, few = (x[:, 0] * x[:, 1]).sign(), models.mlp(20, 256, 3), max(2, count // 100)

    def run(by: BlockWay, number: int) -> train.BlockDescent:
        return train.blocks(
            network, x, y, lr=0.5, momentum=0.9, anchor=control.Every(number), steps=number, by=by
        )

    def seconds(by: BlockWay) -> float:
        number = few if by in ("module", "held") else count
        begun = run(by, number)
        return clock(lambda: list(begun)) * count / number

    ways: tuple[BlockWay, ...] = ("module", "held", "function", "closed")
    rows = [{by: seconds(by) for by in ways} for _ in range(rounds)]
    ends = {by: [*run(by, count)][-1].parameters for by in ("function", "closed")}
    found: dict[str, float] = {"samples": samples, "steps": count}
    for by in ways:
        found[f"{by}_s"] = statistics.median(row[by] for row in rows)
        found[by] = statistics.median(row["module"] / row[by] for row in rows)
    held = [*run("held", few)][-1].parameters
    closed = [*run("closed", few)][-1].parameters
    start = {name: p.detach() for name, p in network.named_parameters()}
    found["held_apart"] = float(norm(sub(held, closed)) / norm(sub(closed, start)))
    whole = ends["closed"]
    found["function_apart"] = float(norm(sub(ends["function"], whole)) / norm(sub(whole, start)))
    return found


def main() -> None:
    """Print a table for each part, then the same as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=500)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    kept = "kept" if study.keep_memory() else "not kept"
    print(f"one thread, medians of {chosen.rounds} rounds, memory {kept}\n")
    print(
        "| network | SGD | linearised (goal 1.8) | held (goal 1.4) | bytes told | counted | allocated | error |"
    )
    print("|---|---|---|---|---|---|---|---|")
    lines: list[dict[str, float | str]] = []
    for name, network, batch in (("MLP", fully_connected(), 128), ("CNN", convolutional(), 64)):
        line = steps(name, network, batch, chosen.rounds)
        lines.append(line)
        print(
            f"| {name} | {line['plain_ms']:.2f} ms | {line['linearised']:.2f} | {line['held']:.2f} | {line['told']} |"
            f" {line['counted']} | {line['allocated']} | {float(line['error']):+.1%} |",
            flush=True,
        )
    whole = block(chosen.samples, chosen.steps, max(3, chosen.rounds // 10))
    print(f"\nA block of {chosen.steps} steps, {chosen.samples} samples:\n")
    print("| way | seconds | times faster than the module |\n|---|---|---|")
    for by in ("module", "held", "function", "closed"):
        print(f"| {by} | {whole[f'{by}_s']:.3f} | {whole[by]:.1f} |")
    print(
        f"\nparameters apart, of how far they moved: {whole['held_apart']:.0e} (held, closed),"
        f" {whole['function_apart']:.0e} (function, closed)"
    )
    print(json.dumps([*lines, whole]))


if __name__ == "__main__":
    main()
