"""The rates of the theorem: gradient flow of a small network against that of its linearisation."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

from pydantic import Field

from regimes.study import Run
from regimes.study.field import Count, Index, Positive, Rows, Tick

if TYPE_CHECKING:
    from torch import Tensor

    from regimes.train.program import Program

__all__ = ["RateRun"]


class RateRun(Run):
    r"""Gradient flow of a small smooth network against that of its linearisation, to a fixed time.

    :math:`F = \alpha (f(w) - f(w_0))`, a fully connected network with softplus, NTK law, squared loss, float64.
    The flow is followed by the classical Runge-Kutta method; the linear flow is known in closed form. Of each distance
    the largest over all steps is kept (Chizat, Oyallon, Bach 2019, theorem 2.2).

    Attributes:
        inputs: d, of points on the unit sphere with targets of a teacher.
        width: h.
        depth: L, hidden layers.
        n: training points.
        horizon: T.
        dt: the step.
        alpha: the output scale.
        seed: of data and start.
    """

    version: ClassVar[int] = 1
    columns: ClassVar[Mapping[str, Any]] = {
        "status": str,
        "step": int,
        "moved": float,
        "apart": float,
        "missed": float,
        "seconds": float,
    }

    inputs: Count = 5
    width: Count = 12
    depth: Count = 2
    n: Annotated[int, Field(ge=2)] = 20
    horizon: Positive = 10.0
    dt: Positive = 0.05
    alpha: Positive = 1.0
    seed: Index = 0

    @property
    def batch(self) -> str:
        """Members of one program differ in alpha: they share data and start."""
        return self.all_but("alpha")

    def cost(self) -> float:
        """Rough seconds: four gradients a step, of members that are small."""
        return 4 * self.horizon / self.dt * (5e-5 + 6 * self.n * self.depth * self.width**2 / 1e10)

    @classmethod
    def perform(cls, runs: Sequence[Run], data: Path | None, tick: Tick) -> Iterator[tuple[Run, Rows]]:
        """Follow both flows of all members; yield each with its row at the end."""
        began = time.perf_counter()
        members = cast("Sequence[RateRun]", runs)
        steps = round(members[0].horizon / members[0].dt)
        found = _follow(members, steps, tick)
        for run, (moved, apart, missed) in zip(members, found, strict=True):
            row = {"status": "finished", "step": steps, "moved": moved, "apart": apart, "missed": missed}
            if not math.isfinite(moved + apart + missed):
                row["status"] = "diverged"
            yield run, [row | {"seconds": (time.perf_counter() - began) / len(members)}]


def _follow(runs: Sequence[RateRun], steps: int, tick: Tick) -> list[list[float]]:
    """sup ||w - w0||, sup ||w - w_lin|| and sup |F - F_lin| (root mean square over samples) of each member."""
    import torch

    from regimes import control, data, models, train
    from regimes.core.jacobian import jacobian
    from regimes.core.loss import squared
    from regimes.core.tree import trainable
    from regimes.train.program import Program

    first = runs[0]
    points = data.teacher(first.inputs, train=first.n, test=1, seed=first.seed).dataset.train
    network = models.mlp(first.inputs, first.width, first.depth, seed=first.seed)
    program = Program([control.scale(network, run.alpha) for run in runs], squared, torch.float64)
    rows = jacobian(network, trainable(network), points.x)
    j = torch.cat([rows[name].reshape(first.n, -1) for name in program.layout.names], 1)
    linear = train.kernel(j @ j.T, points.y)
    start = program.start()
    flow = _Flow(program, points.x, points.y)
    w, alpha = start, program.alpha[:, None]
    largest = torch.zeros(len(runs), 3, dtype=torch.float64)
    for step in range(steps + 1):
        tick(f"rates: {len(runs)} members, step {step}")
        state = linear.at(step * first.dt)
        outputs, slope = flow(w)
        along = torch.nn.functional.pad(j.T @ state.coefficients[:, 0], (0, w.shape[1] - j.shape[1]))
        moved = w - start
        distances = (moved, moved - along / alpha, (outputs - state.outputs)[..., 0] / math.sqrt(first.n))
        seen = [[float(row.norm()) for row in each] for each in distances]
        largest = torch.maximum(largest, torch.tensor(seen, dtype=torch.float64).T)
        if step < steps:
            w = flow.step(w, slope, first.dt)
    return largest.tolist()


class _Flow:
    """dw/dt of all members, and a step of the classical Runge-Kutta method."""

    def __init__(self, program: Program, x: Tensor, y: Tensor) -> None:
        import torch

        self._program, self._x, self._y = program, x, y
        self._members, self._offsets = torch.arange(len(program.modules)), program.offsets(x)

    def __call__(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """F (m, n, 1) and dw/dt (m, total)."""
        outputs, _, g = self._program.gradient(w, self._members, self._x, self._y, self._offsets)
        return outputs, -g

    def step(self, w: Tensor, slope: Tensor, dt: float) -> Tensor:
        """w at t + dt, from dw/dt at t."""
        second = self(w + dt / 2 * slope)[1]
        third = self(w + dt / 2 * second)[1]
        fourth = self(w + dt * third)[1]
        return w + dt / 6 * (slope + 2 * second + 2 * third + fourth)
