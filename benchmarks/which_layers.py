"""Is ``compare.which_layers`` right? Its choice beside every set in hindsight, and beside four other methods.

    REGIMES_DATA=... python benchmarks/which_layers.py --out rows.jsonl [--seeds 0 1 2 3 4] [--samples 200 500]

Appends a row for each finished case to the file, leaves out those that are there, and prints the table. Nothing is
timed but the cost of the call, in processor seconds.

**Cases.** Eight shifts (``_which_tasks.py``) x 200 and 500 target samples x 5 seeds. A seed draws the source network,
the target samples and the batches. CIFAR-10 at 16 x 16 (noise, blur, inversion, colours, permuted labels; and a network
of five classes that learns the other five with a new head), MNIST to Fashion-MNIST at 16 x 16 (new head), and a
character transformer that goes from English to code. Five layers each. Adam, batches of 50; 15 epochs of 200 samples, 6
of 500: about 60 steps. Test sets of 2000 (1000 for new classes).

**Methods.** All train on all target samples, with the same batches and epochs.
*which*: the set and the rate with the best score of ``which_layers`` (``.moves``, ``.lr``), whatever its answer; three
folds, a budget of 34 trainings.
*full*, *head*: all layers; the last one. *Auto-RGN* (Lee et al. 2023): all layers, each with the rate times its
relative gradient norm over the largest, anew for each epoch. *Gradual*: from the head down, one more layer after each
fifth of the epochs. The rate of these four is the one of the same three with the best mean accuracy on the same three
splits as ``which_layers`` has, each trained in full on each.
*Hindsight*: the pair of a set and a rate with the best mean test accuracy over the seeds of the case, of all candidates
of ``which_layers`` that do not depend on the data (all, head, runs of neighbours) at all three rates. It is chosen on
the test set, so that it is too good by some tenths of a point.

**Goals**, set before the run. A figure is the mean over the five seeds of a case (a shift at a size), in points of test
accuracy; no allowance is made for noise, and standard errors over seeds of paired differences stand beside it.
1. *which* is at most 0.5 below hindsight in at least 12 of the 16 cases.
2. *which* is more than 1 below full in none of the 16 cases.
3. *which* is at least 1 above full on average over the eight shifts at 200 samples.

**Log.** The rule was chosen on seeds 100 to 103, which are not judged: 18 tables of nine sets at three rates, on four
or five folds, of slightly larger networks and more steps. Mean loss in points against the best pair of each table on
the test set: by wrong answers 1.5; the same shrunk by Gaussian processes over sets and rates 1.0 to 2.5; by log-
likelihood after calibration 0.7; by the Brier score after calibration 0.6 (taken); all layers at their best rate 4.6.
Without calibration both lost 3.7 in the first six tables. Leaving half of the pairs behind at each of two rungs cost
nothing more, four of five 0.5. Noise of 1.5 times the image and new heads for new classes were set there too;
networks, steps and folds were cut for time.

**What came**: 1. not met, 7 of 16 cases, 0.7 below on average; 2. not met in one case (another data set at 500, 2.1
below, standard error 0.8); 3. met, 2.8 above. The rule was not changed after it. To be tried on fresh seeds: five folds
or ten; as many steps in a trial as in the training that follows (they have the same epochs of fewer samples, and the
rates chosen were too high more often than too low); all layers unless another set is better by a standard error.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _which_figure import save
from _which_tasks import SHIFTS, Task, task
from torch import Tensor, nn
from torch.nn import functional

from regimes import compare
from regimes.compare.layers.candidates import blocks
from regimes.compare.layers.race import splits_of
from regimes.control.layers.order import Depths, by_depth
from regimes.core.stream import generator

RATES = (6e-4, 3e-3, 1.5e-2)
BATCH, FOLDS, BUDGET = 50, 3, 34.0
EPOCHS = {200: 15, 500: 6}
METHODS = ("full", "head", "Auto-RGN", "gradual")

Shares = Callable[[nn.Module, Tensor, Tensor, float], Sequence[float]]
"""From a network, its samples and the share of the epochs that is over, to what multiplies the rate of each layer."""


def layers_of(one: Task) -> Depths:
    """The five layers of a network by depth."""
    return by_depth(one.network, one.x[:2], ["blocks.*"] if hasattr(one.network, "blocks") else None)


def fit(
    network: nn.Module, found: Depths, shares: Shares, rate: float, x: Tensor, y: Tensor, seed: int
) -> nn.Module:
    """Train a copy by Adam, each layer with its share of the rate, given anew at each epoch."""
    network = copy.deepcopy(network)
    own = dict(network.named_parameters())
    optimizer = torch.optim.Adam(
        [{"params": [own[name] for name in names]} for names in found.parameters], fused=True
    )
    stream, epochs = generator(seed, "benchmark batches"), EPOCHS[min(EPOCHS, key=lambda n: abs(n - len(x)))]
    for epoch in range(epochs):
        for group, share in zip(optimizer.param_groups, shares(network, x, y, epoch / epochs), strict=True):
            group["lr"] = share * rate
            for parameter in group["params"]:
                parameter.requires_grad_(share > 0)
                parameter.grad = None
        for batch in torch.randperm(len(x), generator=stream).split(BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
    return network


def only(places: frozenset[int], count: int) -> Shares:
    """The same layers throughout."""
    return lambda *_: [float(place in places) for place in range(count)]


def gradual(count: int) -> Shares:
    """One more layer from the top after each part of the epochs."""
    return lambda _, __, ___, over: [float(place >= count - 1 - int(over * count)) for place in range(count)]


def auto_rgn(found: Depths) -> Shares:
    """The relative gradient norm of each layer over the largest."""

    def shares(network: nn.Module, x: Tensor, y: Tensor, _: float) -> Sequence[float]:
        own = dict(network.named_parameters())
        for parameter in own.values():
            parameter.requires_grad_(True)
        loss = functional.cross_entropy(network(x), y)
        gradients = dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True))
        norms = [
            math.hypot(*(float(gradients[name].norm()) for name in names))
            / math.hypot(*(float(own[name].detach().norm()) for name in names))
            for names in found.parameters
        ]
        return [norm / max(norms) for norm in norms]

    return shares


def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """In percent."""
    with torch.no_grad():
        return 100 * float((network(x).argmax(1) == y).double().mean())


def case(shift: str, samples: int, seed: int) -> dict[str, Any]:
    """One row: every method on one task."""
    one = task(shift, samples, seed)
    found = layers_of(one)
    count = len(found.layers)

    def tested(shares: Shares, rate: float) -> float:
        return accuracy(fit(one.network, found, shares, rate, one.x, one.y, seed), one.x_test, one.y_test)

    sets = {each.name: only(each.places, count) for each in blocks(found.layers)}
    table = {name: [tested(shares, rate) for rate in RATES] for name, shares in sets.items()}
    others = {
        "full": sets["all"],
        "head": sets["head"],
        "Auto-RGN": auto_rgn(found),
        "gradual": gradual(count),
    }
    row: dict[str, Any] = {"shift": shift, "samples": samples, "seed": seed, "table": table}
    row["start"] = accuracy(one.network, one.x_test, one.y_test)
    for name, shares in others.items():
        right = [
            np.mean(
                [
                    accuracy(
                        fit(one.network, found, shares, rate, one.x[s.train], one.y[s.train], s.seed),
                        one.x[s.held],
                        one.y[s.held],
                    )
                    for s in splits_of(samples, FOLDS, 1, seed)
                ]
            )
            for rate in RATES
        ]
        place = int(np.argmax(right))
        known = {"full": "all", "head": "head"}.get(name)
        row[name] = {
            "lr": RATES[place],
            "accuracy": table[known][place] if known else tested(shares, RATES[place]),
        }
    began = time.process_time()
    choice = chosen(one, samples, seed)
    row["which"] = {
        "candidate": choice.candidate,
        "lr": choice.lr,
        "answer": choice.answer,
        "seconds": time.process_time() - began,
        "runs": choice.runs,
        "accuracy": tested(only(choice.moves.moving(found.layers, 0, 0), count), choice.lr),
    }
    return row


def chosen(one: Task, samples: int, seed: int) -> compare.LayerChoice:
    """What the tool says of a task."""
    return compare.which_layers(
        one.network,
        one.x,
        one.y,
        optimizer=lambda p: torch.optim.Adam(p, fused=True),
        rates=RATES,
        batch_size=BATCH,
        epochs=EPOCHS[samples],
        layers=["blocks.*"] if hasattr(one.network, "blocks") else None,
        budget=BUDGET,
        folds=FOLDS,
        seed=seed,
    )


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of all cases, and the goals."""
    lines = [
        f"{'shift':18s}{'samples':>8s}{'start':>7s}{'head':>7s}{'gradual':>9s}{'Auto-RGN':>10s}{'full':>7s}{'which':>7s}"
        f"{'hindsight':>11s}  {'which - hindsight':>18s}  {'which - full':>16s}  the best set; chosen sets"
    ]
    behind, above, at_200 = [], [], []
    for samples in EPOCHS:
        for shift in SHIFTS:
            some = [row for row in rows if (row["shift"], row["samples"]) == (shift, samples)]
            if not some:
                continue
            names = list(some[0]["table"])
            tables = np.array([[row["table"][name] for name in names] for row in some])
            best, rate = np.unravel_index(tables.mean(0).argmax(), tables.shape[1:])
            which = np.array([row["which"]["accuracy"] for row in some])
            means = {name: np.array([row[name]["accuracy"] for row in some]) for name in METHODS}
            lost, won = which - tables[:, best, rate], which - means["full"]
            behind.append(lost.mean())
            above.append(won.mean())
            at_200 += [won.mean()] * (samples == 200)
            sets = sorted({row["which"]["candidate"] for row in some})
            lines.append(
                f"{shift:18s}{samples:8d}{np.mean([row['start'] for row in some]):7.1f}{means['head'].mean():7.1f}"
                f"{means['gradual'].mean():9.1f}{means['Auto-RGN'].mean():10.1f}{means['full'].mean():7.1f}"
                f"{which.mean():7.1f}{tables[:, best, rate].mean():11.1f}  {_with_error(lost):>18s}  "
                f"{_with_error(won):>16s}  {names[best]} at {RATES[rate]:g}; {', '.join(sets)}"
            )
    met = sum(value >= -0.5 for value in behind)
    clear = np.mean([row["which"]["answer"] != "open" for row in rows])
    lines += [
        f"1. At most 0.5 below hindsight: {met} of {len(behind)} cases (goal: 3 of 4).",
        f"2. More than 1 below full: {sum(value < -1 for value in above)} of {len(above)} cases (goal: none).",
        f"3. Above full at 200 samples: {np.mean(at_200):.2f} on average (goal: at least 1).",
        f"Clear answers (not open): {clear:.0%}. Cases: {len(rows)}. Cost: "
        f"{np.mean([row['which']['runs'] for row in rows]):.1f} trainings, "
        f"{np.mean([row['which']['seconds'] for row in rows]):.1f} s.",
    ]
    return "\n".join(lines)


def _with_error(values: np.ndarray) -> str:
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else math.nan
    return f"{values.mean():+.1f} ({error:.1f})"


def main() -> None:
    """Add the missing cases, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--samples", type=int, nargs="+", default=list(EPOCHS), choices=list(EPOCHS))
    parser.add_argument("--shifts", nargs="+", default=list(SHIFTS), choices=list(SHIFTS))
    parser.add_argument("--figure", type=Path, help="a file for the picture of the cases of 200 samples")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lines = asked.out.read_text().splitlines() if asked.out.exists() else []
    rows = [json.loads(line) for line in lines]
    done = {(row["shift"], row["samples"], row["seed"]) for row in rows}
    for seed in asked.seeds:
        for samples in asked.samples:
            for shift in asked.shifts:
                if (shift, samples, seed) not in done:
                    rows.append(case(shift, samples, seed))
                    with asked.out.open("a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
    print(summary(rows))
    if asked.figure:
        save(rows, 200, asked.figure)


if __name__ == "__main__":
    main()
