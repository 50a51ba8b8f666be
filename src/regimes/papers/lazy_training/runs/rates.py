"""The first experiment: gradient flow of a small network against that of its linearisation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from regimes import data, measure, models, train
from regimes.core.jacobian import jacobian
from regimes.core.loss import squared
from regimes.core.state import State
from regimes.core.tree import trainable
from regimes.data import Dataset
from regimes.measure.probe import numbers
from regimes.papers.recipe.network import OutputScale
from regimes.papers.recipe.recipe import Recipe, Scene
from regimes.study.field import Count, Index, Positive

__all__ = ["RateRun"]

_SUPREMA = ("moved", "apart", "missed")


@dataclass(frozen=True, eq=False)
class LinearFlow:
    """The flow of the linearised model, in closed form; the same for all members of a program, whatever their scale.

    Attributes:
        scene: the members, which share data and start.
    """

    scene: Scene

    @cached_property
    def _jacobian(self) -> Tensor:
        """The Jacobian of f at the start, (n, parameters)."""
        x = self.scene.train.x
        network = self.scene.runs[0].start(tuple(x.shape[1:]))
        rows = jacobian(network, trainable(network), x)
        return torch.cat([rows[name].reshape(len(x), -1) for name in trainable(network)], 1)

    @cached_property
    def _path(self) -> train.KernelPath:
        return train.kernel(self._jacobian @ self._jacobian.T, self.scene.train.y)

    def at(self, time: float) -> tuple[Tensor, Tensor]:
        """F (n, 1), and alpha times the way of the parameters (parameters,)."""
        state = self._path.at(time)
        return state.outputs, self._jacobian.T @ state.coefficients[:, 0]


@dataclass(frozen=True, eq=False)
class FromLinear(measure.Probe):
    """The largest distances of a member, over all steps, from its start and from its linearisation.

    Values: ``moved``, of the weights from their start; ``apart``, from those of the linear model; ``missed``, of the
    outputs from those of the linear model, root mean square over samples.

    Attributes:
        linear: the linearisation.
    """

    linear: LinearFlow
    _largest: dict[str, float] = field(default_factory=dict, init=False, repr=False)

    @property
    def columns(self) -> measure.Columns:
        """The three suprema."""
        return numbers(*_SUPREMA)

    def follow(self, state: State) -> None:
        """Compare at every step; what is not finite stays so."""
        x = self.linear.scene.train.x
        outputs, way = self.linear.at(state.time)
        w, start = (
            torch.cat([each.flatten() for each in tree.values()]) for tree in (state.parameters, state.origin)
        )
        moved = w - start
        missed = (state(x) if state.outputs is None else state.outputs) - outputs
        found = (moved, moved - way / self.linear.scene.runs[state.member].alpha, missed / math.sqrt(len(x)))
        for name, distance in zip(_SUPREMA, found, strict=True):
            norm = float(distance.norm())
            before = self._largest.get(name, 0.0)
            self._largest[name] = norm if math.isnan(norm) else max(before, norm)

    def look(self, state: State) -> Mapping[str, float]:
        """The suprema so far."""
        return dict(self._largest)


class RateRun(OutputScale, Recipe):
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
        seed: of data and start.
    """

    version: ClassVar[int] = 2
    tells: ClassVar[Mapping[str, str]] = {"status": "status", "step": "step"}

    inputs: Count = 5
    width: Count = 12
    depth: Count = 2
    n: Annotated[int, Field(ge=2)] = 20
    horizon: Positive = 10.0
    dt: Positive = 0.05
    seed: Index = 0

    @property
    def batch(self) -> str:
        """Members of one program differ in alpha: they share data and start."""
        return self.all_but("alpha")

    def cost(self) -> float:
        """Rough seconds: four gradients a step, of members that are small."""
        return 4 * self.horizon / self.dt * (5e-5 + 6 * self.n * self.depth * self.width**2 / 1e10)

    @property
    def label(self) -> str:
        """What it is about."""
        return "rates"

    @property
    def when(self) -> measure.When:
        """At the end alone."""
        return measure.at_end()

    def points(self, directory: Path | None) -> Dataset:
        """Those of a teacher."""
        return _points(self.inputs, self.n, self.seed)

    def start(self, shape: tuple[int, ...]) -> nn.Module:
        """The network at its start."""
        return models.mlp(self.inputs, self.width, self.depth, seed=self.seed)

    @classmethod
    def states(cls, runs: Sequence[Self], modules: Sequence[nn.Module], scene: Scene) -> Iterable[State]:
        """The flow of all members."""
        steps = round(runs[0].horizon / runs[0].dt)
        return train.runge_kutta(
            modules, scene.train.x, scene.train.y, dt=runs[0].dt, steps=steps, loss=squared
        )

    @classmethod
    def probes(cls, scene: Scene) -> Sequence[measure.Probe]:
        """The distances of the theorem."""
        return [FromLinear(LinearFlow(scene))]


@lru_cache(maxsize=2)
def _points(inputs: int, n: int, seed: int) -> Dataset:
    return data.teacher(inputs, train=n, test=1, seed=seed).dataset
