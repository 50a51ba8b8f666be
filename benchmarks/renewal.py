"""Adaptive renewal of a linearisation against the best fixed period, at an equal number U of feature updates.

    python benchmarks/renewal.py [--data DIR] [--seeds 5] [--tasks ...] [--pilot]

Three tasks (``_renewal_tasks.py``), the same number of steps T for every rule, and the same network and batches for all
rules of a seed. The protocol, fixed before the run:

- the adaptive rule runs first and spends U; the fixed rules have K = T // U, which is U updates or one more, and 2 K,
  which is half as many: the better one by its mean over the seeds is "the best fixed K";
- what is compared is the test accuracy of the network, f(w), after the last step; that of the linear model F(w) of the
  last block stands beside it, and plain training (K = 1) below;
- the differences are paired by seed, with a 95 % interval of Student's t. Adaptive renewal is *at least as good* on a
  task if the whole interval lies above -1 point, *worse* if all of it lies below, else *open*;
- rates are lowered in blocks whose stability bound they exceed (``stable="lower"``), and it is said in how many;
- thresholds and rates were chosen on seed 100 (``--pilot``), which is none of those of the run.

Without Fashion-MNIST under ``--data`` (or ``REGIMES_DATA``) that task is left out.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from _renewal_tasks import TASKS, Ended, Task, run

from regimes import control
from regimes.core import estimate

MARGIN = 0.01
PILOT = (
    *(control.Adaptive(gap=0.3), control.Adaptive(gap=0.5), control.Adaptive(trust=0.7)),
    *(control.Adaptive(drift=0.25), control.Adaptive(drift=0.5), control.Every(100), control.Every(200)),
)


def verdict(low: float, high: float) -> str:
    """Of the interval of a difference."""
    return "at least as good" if low > -MARGIN else "worse" if high < -MARGIN else "open"


def line(label: str, ends: Sequence[Ended], more: str = "") -> str:
    """A row of the table: means over the seeds."""
    means = [
        statistics.mean(getattr(e, name) for e in ends)
        for name in ("updates", "accuracy", "linear", "seconds")
    ]
    lowered = sum(e.lowered for e in ends)
    return f"| {label} | {means[0]:.1f} | {means[1]:.4f} | {means[2]:.4f} | {lowered} | {means[3]:.1f} | {more} |"


def compare(name: str, task: Task, seeds: int, directory: Path | None) -> str:
    """Run a task, print its rows, and say what came out."""
    adaptive = [run(task, task.rule, seed, directory) for seed in range(seeds)]
    print(line(f"{name}: {task.rule}", adaptive, f"seed 0: {list(adaptive[0].steps)}"), flush=True)
    fixed: list[list[Ended]] = []
    for times in (1, 2):
        periods = [times * max(1, task.steps // ended.updates) for ended in adaptive]
        ends = [run(task, control.Every(k), seed, directory) for seed, k in enumerate(periods)]
        fixed.append(ends)
        print(line(f"fixed K = {'T / U' if times == 1 else '2 T / U'}", ends, f"K = {periods}"), flush=True)
    plain = [run(task, control.Every(1), seed, directory) for seed in range(seeds)]
    print(line("plain training, K = 1", plain), flush=True)
    best = max(fixed, key=lambda ends: statistics.mean(e.accuracy for e in ends))
    found = estimate.mean([a.accuracy - b.accuracy for a, b in zip(adaptive, best, strict=True)])
    says = verdict(found.low, found.high)
    print(
        f"| adaptive - best fixed | | {found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f}) | | | | **{says}** |"
    )
    return says


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("REGIMES_DATA"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tasks", nargs="*", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--pilot", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    directory = None if chosen.data is None else Path(chosen.data)
    tasks = {n: TASKS[n] for n in chosen.tasks if directory is not None or not n.startswith("fashion")}
    print("| rule | U | accuracy of f(w) | of F(w) | blocks lowered | s of CPU | |")
    print("|---|---|---|---|---|---|---|")
    if chosen.pilot:
        for name, task in tasks.items():
            for rule in PILOT:
                ended = run(task, rule, 100, directory)
                print(line(f"{name}: {rule}", [ended], str(list(ended.steps))), flush=True)
        return
    says = [compare(name, task, chosen.seeds, directory) for name, task in tasks.items()]
    print(f"\nAdaptive renewal is at least as good on {says.count('at least as good')} of {len(says)} tasks.")


if __name__ == "__main__":
    main()
