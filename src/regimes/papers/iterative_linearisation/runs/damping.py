"""A block of K steps beside a damped Gauss-Newton step, on the least-squares problem of a linearised network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from regimes import data, measure, models, train
from regimes.core.jacobian import jacobian
from regimes.core.loss import squared
from regimes.core.state import State
from regimes.data import Dataset
from regimes.measure.probe import numbers
from regimes.papers.recipe.recipe import Recipe, Scene
from regimes.study.field import Count, Index, Positive

__all__ = ["DampingRun"]


@dataclass(frozen=True, eq=False)
class _Problem:
    """J (n c, p), its K / n by eigenvalues and vectors, and the residual at the start."""

    j: Tensor
    values: Tensor
    vectors: Tensor
    residual: Tensor


@dataclass(frozen=True, eq=False)
class BesideNewton(measure.Snapshot):
    r"""The way of a block so far beside :math:`-J^T (J J^T + n \lambda)^{-1} r`, with lambda = 1 / (eta K).

    Values: ``newton_cosine`` of the two, and ``newton_length``, the length of the way over that of the step; the way
    against its closed form, ``closed_apart``, relative; and at the end ``eigenvalues`` of K / n, the largest first.

    Attributes:
        scene: the members.
    """

    scene: Scene
    _problem: list[_Problem] = field(default_factory=list, init=False, repr=False)

    @property
    def columns(self) -> measure.Columns:
        """The comparison, and the spectrum."""
        return {**numbers("newton_cosine", "newton_length", "closed_apart"), "eigenvalues": list[float]}

    def look(self, state: State) -> Mapping[str, float | list[float]]:
        """The values now."""
        own, run = self._of(state), self.scene.runs[state.member]
        n = len(self.scene.train)
        way = torch.cat([(w - state.origin[name]).flatten() for name, w in state.parameters.items()])
        gram = own.j @ own.j.T
        damped = gram + n / (run.lr * state.step) * torch.eye(len(gram), dtype=gram.dtype)
        newton = -own.j.T @ torch.linalg.solve(damped, own.residual)
        # The filter over the eigenvalue, which is eta K where that is 0.
        positive = own.values > 1e-12 * own.values.max()
        share = train.descent_filter(own.values, state.step, run.lr) / own.values.where(positive, 1.0)
        share = share.where(positive, run.lr * state.step) / n
        closed = -own.j.T @ (own.vectors @ (share * (own.vectors.T @ own.residual)))
        found: dict[str, float | list[float]] = {
            "newton_cosine": float(way @ newton / (way.norm() * newton.norm())),
            "newton_length": float(way.norm() / newton.norm()),
            "closed_apart": float((way - closed).norm() / closed.norm()),
        }
        return found if state.status == "running" else found | {"eigenvalues": own.values.flip(0).tolist()}

    def _of(self, state: State) -> _Problem:
        """The problem of a member, made once."""
        if not self._problem:
            x, y = self.scene.train.x, self.scene.train.y
            start = state.initial()
            rows = jacobian(start.module, start.parameters, x)
            j = torch.cat([rows[name].flatten(0, 1).flatten(1) for name in start.parameters], 1)
            with torch.no_grad():
                outputs = start(x)
            residual = (outputs - nn.functional.one_hot(y, outputs.shape[1])).flatten()
            values, vectors = torch.linalg.eigh(j @ j.T / len(x))
            self._problem.append(_Problem(j, values.clamp(min=0), vectors, residual))
        return self._problem[0]


class DampingRun(Recipe):
    """One block on a linearised network, squared loss, all points, float64, no momentum.

    Attributes:
        n: training images of the digits.
        width: of the two hidden layers.
        lr: eta, below 2 over the largest eigenvalue of K / n.
        steps: the longest K that is looked at.
        seed: of the start.
    """

    tells: ClassVar[Mapping[str, str]] = {"step": "step", "status": "status"}

    n: Annotated[int, Field(ge=2)] = 60
    width: Count = 32
    lr: Positive = 0.5
    steps: Count = 1000
    seed: Index = 0

    @property
    def batch(self) -> str:
        """Members of one program differ in their start."""
        return self.all_but("seed")

    @property
    def label(self) -> str:
        """What it is about."""
        return "damping"

    @property
    def when(self) -> measure.When:
        """Six values of K in each factor of ten."""
        return measure.log_spaced(6)

    def cost(self) -> float:
        """Rough seconds."""
        return self.steps * 1e-3

    def points(self, directory: Path | None) -> Dataset:
        """Digits as vectors."""
        return _digits(self.n)

    def network(self, shape: tuple[int, ...]) -> nn.Module:
        """The network at its start."""
        return models.mlp(shape[0], self.width, 2, 10, activation="relu", seed=self.seed)

    @classmethod
    def states(cls, runs: Sequence[Self], modules: Sequence[nn.Module], scene: Scene) -> Iterable[State]:
        """The block."""
        first = runs[0]
        return train.descent(
            modules,
            scene.train.x,
            scene.train.y,
            lr=first.lr,
            loss=squared,
            steps=first.steps,
            anchor=lambda step: step == 0,
        )

    @classmethod
    def probes(cls, scene: Scene) -> Sequence[measure.Probe]:
        """The block beside the Gauss-Newton step."""
        return [BesideNewton(scene)]


@lru_cache(maxsize=2)
def _digits(n: int) -> Dataset:
    return data.load("digits", train=n, test=10, flat=True)
