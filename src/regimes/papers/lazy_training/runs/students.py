"""Students of a teacher: two-layer networks that start small or large."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from regimes.study import Run
from regimes.study.field import Count, Index, Positive, Rows, Tick

if TYPE_CHECKING:
    from torch import Tensor, nn

    from regimes.data import Teacher

__all__ = ["StudentRun"]


# Looks at a student, evenly in the logarithm of the step.
_LOOKS = 60


class StudentRun(Run):
    r"""A two-layer ReLU network taught by one of few neurons: full-batch gradient descent, squared loss, float64.

    Inputs are uniform on the unit sphere. Losses are half mean squared errors. The last row holds that of the
    linearised model after the same time, from its kernel, where it is asked for (Chizat, Oyallon, Bach 2019,
    section 3.1).

    Attributes:
        inputs: d.
        units: neurons of the teacher.
        n: training points.
        n_test: test points.
        width: m, neurons of the student.
        scaling: of the sum over neurons.
        symmetric: start in pairs of neurons that cancel.
        tau: standard deviation of all weights at the start.
        lr: the step.
        steps: how many.
        linear: whether the linearised model is solved too.
        traced: whether the rows hold the neurons :math:`|a_j| b_j`.
        seed: of teacher, points and start.
    """

    version: ClassVar[int] = 1
    columns: ClassVar[Mapping[str, Any]] = {
        "status": str,
        "step": int,
        "train_loss": float,
        "test_loss": float,
        "best_loss": float,
        "linear_loss": float,
        "neurons": list[float],
        "teacher": list[float],
        "seconds": float,
    }

    inputs: Count = 50
    units: Count = 3
    n: Count = 500
    n_test: Count = 1000
    width: Count = 40
    scaling: Literal["1", "1/sqrt(m)", "1/m"] = "1"
    symmetric: bool = True
    tau: Positive = 1.0
    lr: Positive = 0.1
    steps: Count = 5000
    linear: bool = False
    traced: bool = False
    seed: Index = 0

    @property
    def batch(self) -> str:
        """Members of one program differ in tau and step, and each has a teacher and points of its own."""
        return self.all_but("tau", "lr", "seed", "linear")

    @property
    def cap(self) -> int:
        """So many that their activations fit the cache; one where a member would not begin on a cache line."""
        if self.n * self.inputs % 8 or self.width % 8:
            return 1
        return max(1, min(32, (1 << 19) // (self.n * self.width)))

    def cost(self) -> float:
        """Rough seconds: the products of a step at the speed of a common core."""
        return self.steps * (5e-5 + 6 * self.n * self.inputs * self.width / 3e10)

    @classmethod
    def perform(cls, runs: Sequence[Run], data: Path | None, tick: Tick) -> Iterator[tuple[Run, Rows]]:
        """Train the members as one stack; yield each with its rows at the end."""
        yield from _teach(cast("Sequence[StudentRun]", runs), tick)


def _teach(runs: Sequence[StudentRun], tick: Tick) -> Iterator[tuple[StudentRun, Rows]]:
    import torch

    from regimes import data
    from regimes.core.derivative import call
    from regimes.core.layer import stack_of

    began = time.perf_counter()
    tasks = [data.teacher(r.inputs, units=r.units, train=r.n, test=r.n_test, seed=r.seed) for r in runs]
    networks = [_student(run) for run in runs]
    stack, names = stack_of(networks[0]), [name for name, _ in networks[0].named_parameters()]
    w = [torch.stack([network.get_parameter(name).detach() for network in networks]) for name in names]
    x, y, x_test, y_test = (
        torch.stack([getattr(getattr(task.dataset, part), name) for task in tasks])
        for part in ("train", "test")
        for name in ("x", "y")
    )
    lr = torch.tensor([run.lr for run in runs], dtype=torch.float64)[:, None, None]
    looks, steps = _looks(runs[0].steps), runs[0].steps
    rows: list[Rows] = [[] for _ in runs]
    for step in range(steps + 1):
        leaves = [each.requires_grad_() for each in w]
        missed = call(stack, dict(zip(names, leaves, strict=True)), x)[..., 0] - y
        gradients = torch.autograd.grad(missed.square().mean(1).sum() / 2, leaves)
        w = [each.detach() for each in leaves]
        if step in looks:
            with torch.no_grad():
                apart = call(stack, dict(zip(names, w, strict=True)), x_test)[..., 0] - y_test
            tick(f"students m={runs[0].width}: {len(runs)} members, step {step}")
            for i, run in enumerate(runs):
                _look(rows[i], run, step, missed[i], apart[i], (w[0][i], w[1][i]))
        if step < steps:
            w = [each - lr * g for each, g in zip(w, gradients, strict=True)]
    for run, task, network, own in zip(runs, tasks, networks, rows, strict=True):
        own[-1] |= _ending(run, task, network)
        own[-1]["seconds"] = (time.perf_counter() - began) / len(runs)
        yield run, own


def _student(run: StudentRun) -> nn.Sequential:
    """The student at its start."""
    from regimes import models

    return models.two_layer(
        run.inputs, run.width, scaling=run.scaling, tau=run.tau, symmetric=run.symmetric, seed=run.seed
    )


def _looks(steps: int) -> set[int]:
    """Steps to look at: 0, the last one, and some in between, evenly in their logarithm."""
    return {0, steps} | {round(steps ** (i / _LOOKS)) for i in range(_LOOKS)}


def _look(
    rows: Rows, run: StudentRun, step: int, missed: Tensor, apart: Tensor, w: tuple[Tensor, Tensor]
) -> None:
    """One more row of a member: errors on training and test points, and weights (b, a)."""
    train_loss, test_loss = (float(each.detach().square().mean()) / 2 for each in (missed, apart))
    last = step == run.steps
    fine = math.isfinite(train_loss)
    row: dict[str, Any] = {
        "status": ("finished" if fine else "diverged") if last else "running",
        "step": step,
        "train_loss": train_loss,
        "test_loss": test_loss,
        "best_loss": min([test_loss, *(before["test_loss"] for before in rows)]),
    }
    if run.traced:
        b, a = w
        row["neurons"] = (a[0].abs()[:, None] * b).reshape(-1).tolist()
    rows.append(row)


def _ending(run: StudentRun, task: Teacher, network: nn.Sequential) -> dict[str, Any]:
    """What only the last row holds: the directions of the teacher, the loss of the linearised model."""
    import torch

    from regimes import measure, train

    found: dict[str, Any] = {}
    if run.traced:
        found["teacher"] = (task.a[:, None] * task.b).reshape(-1).tolist()
    if run.linear:
        points, others = task.dataset.train, task.dataset.test
        with torch.no_grad():
            start, there = network(points.x), network(others.x)
        path = train.kernel(measure.ntk(network, points.x, reduce="trace"), points.y, start=start)
        cross = measure.ntk(network, others.x, points.x, reduce="trace")
        said = path.at(run.lr * run.steps).predict(cross, there)[:, 0]
        found["linear_loss"] = float((said - others.y).square().mean()) / 2
    return found
