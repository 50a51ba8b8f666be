"""A run of gradient flow: one network, one alpha, one seed, trained until every margin is met."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field

from regimes.study.field import Count, Index, Positive, Rows, Tick
from regimes.study.run import Run

__all__ = ["FlowRun"]


class FlowRun(Run):
    """A fully connected network under a law of width, F = alpha (f(w) - f(w0)), trained by gradient flow.

    Full batch, soft-hinge, float64, adapted steps, until F y >= 1 on every training point (Geiger et al. 2020). Looked
    at on a logarithmic grid of steps and at the end.

    Attributes:
        dataset: digits, mnist, fashion-mnist, emnist or cifar-10; classes by parity, training and test file merged.
        pca: principal components, each of variance 1; None for the images, each of norm sqrt(d).
        n: training points.
        n_test: test points; the first ``n_probe`` of them carry the kernels.
        law: of width: ntk, standard, mean-field or mup.
        depth: L, hidden layers.
        width: h.
        alpha: the output scale, in the convention of the law.
        seed: of the start.
        tau: momentum time; 0 is the plain flow.
        max_steps: a run that needs more is recorded as stopped.
        device: cpu or cuda; kept in the key, since the last digits differ.
    """

    version: ClassVar[int] = 1
    columns: ClassVar[Mapping[str, Any]] = {
        "step": int,
        "time": float,
        "status": str,
        "loss": float,
        "dK": float,
        "kernel_distance": float,
        "alignment": float,
        "alignment0": float,
        "dW": float,
        "gap": float,
        "train_error": float,
        "test_error": float,
        "t1": float,
        "t2": float,
        "seconds": float,
        "test_outputs": list[float],
        "test_targets": list[float],
    }

    dataset: str = "digits"
    pca: Count | None = 10
    n: Annotated[int, Field(ge=2)] = 500
    n_test: Count = 1000
    n_probe: Annotated[int, Field(ge=2)] = 256
    law: Literal["ntk", "standard", "mean-field", "mup"] = "ntk"
    depth: Count = 2
    width: Count = 64
    alpha: Positive = 1.0
    seed: Index = 0
    tau: Annotated[float, Field(ge=0)] = 0.0
    max_steps: Count = 60_000
    device: Literal["cpu", "cuda"] = "cpu"

    @property
    def batch(self) -> str:
        """Members of one program differ in seed and alpha: a row of the phase diagram."""
        return self.all_but("alpha", "seed")

    @property
    def cap(self) -> int:
        """So many that their activations and a few copies of their parameters stay below about 1 GB."""
        inputs = self.pca or 784
        weights = inputs * self.width + (self.depth - 1) * self.width**2
        return max(2, min(64, int(1e9 / (8 * (6 * weights + 2 * self.n)))))

    def cost(self) -> float:
        """Rough seconds: steps times the products and activations of one, as measured on a common core."""
        inputs = self.pca or 784
        products = 6 * self.n * (2 / 3 * inputs * self.width + (self.depth - 1) * self.width**2)
        activations = self.n * self.width * self.depth
        reach = self.alpha * math.sqrt(self.width) if self.law in ("ntk", "standard") else self.alpha
        steps = 2500 * (1 + max(0.0, -math.log10(reach)) / 2)
        return steps * (3e-5 + products / 5e10 + activations * 3e-9)

    @classmethod
    def perform(cls, runs: Sequence[Run], data: Path | None, tick: Tick) -> Iterator[tuple[Run, Rows]]:
        """Train the members as one program; yield each with its rows when it ends."""
        members = cast("Sequence[FlowRun]", runs)
        yield from _perform(members, data, tick)


def _perform(runs: Sequence[FlowRun], data: Path | None, tick: Tick) -> Iterator[tuple[FlowRun, Rows]]:
    import torch

    from regimes import control, measure, models, train

    first = runs[0]
    dataset = _load(first.dataset, first.pca, first.n, first.n_test, first.n_probe, data)
    device = torch.device(first.device)
    modules = [
        control.scale(
            models.mlp(
                dataset.train.x.shape[1], run.width, run.depth, law=control.law(run.law), seed=run.seed
            ),
            run.alpha,
        ).to(device)
        for run in runs
    ]
    probe = dataset.probe
    states = train.flow(
        modules,
        dataset.train.x,
        dataset.train.y,
        tau=[run.tau for run in runs],
        max_steps=first.max_steps,
    )
    probes = [
        measure.KernelDrift(probe.x.to(device), probe.y.to(device)),
        measure.Movement(),
        measure.Gap(probe.x.to(device)),
        measure.Error(states.inputs, states.targets, "train"),
        measure.Outputs(dataset.test.x.to(device)),
        measure.Times(),
    ]
    began = time.perf_counter()
    rows: dict[int, Rows] = {}
    for row in measure.observe(states, probes):
        run = runs[row.member]
        tick(f"{run.dataset} L={run.depth} h={run.width}: {states.running} members, step {row.step}")
        line = {"step": row.step, "time": row.time, "status": row.status, "loss": row.loss, **row.values}
        rows.setdefault(row.member, []).append(line)
        if row.status != "running":
            outputs = torch.tensor(line["test_outputs"], dtype=torch.float64)
            line["test_error"] = measure.error_rate(outputs, dataset.test.y)
            line["test_targets"] = dataset.test.y.tolist()
            # a member's share of the time of the program so far
            line["seconds"] = (time.perf_counter() - began) / len(runs)
            yield run, rows.pop(row.member)


@lru_cache(maxsize=2)
def _load(name: str, pca: int | None, n: int, n_test: int, n_probe: int, data: Path | None) -> Any:
    """The data set of a program; a worker that gets several programs on the same one reads it once."""
    from regimes import data as datasets

    return datasets.load(
        name,
        task="parity",
        train=n,
        test=n_test,
        probe=n_probe,
        merge=True,
        pca=pca,
        flat=True,
        directory=data,
    )
