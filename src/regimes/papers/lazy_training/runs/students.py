"""The second experiment, students of a teacher: two-layer networks that start small or large."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from regimes import data, measure, models, train
from regimes.core.loss import squared
from regimes.core.state import State
from regimes.data import Dataset, Teacher
from regimes.measure.probe import numbers
from regimes.papers.recipe.recipe import Recipe, Scene
from regimes.study.field import Count, Index, Positive

__all__ = ["StudentRun"]


# Looks at a student, evenly in the logarithm of the step.
_LOOKS = 60


@dataclass(frozen=True, eq=False)
class Lesson(measure.Snapshot):
    """What a student has learnt.

    Values: ``test_loss``, half the mean squared error; ``best_loss``, the least at any look so far; of a traced student
    its ``neurons`` :math:`|a_j| b_j` and at the end those of its ``teacher``; at the end, where the linearised model is
    asked for, its ``linear_loss`` after the same time.

    Attributes:
        scene: the students, each with a teacher and points of its own.
    """

    scene: Scene
    _best: dict[str, float] = field(default_factory=dict, init=False, repr=False)

    @property
    def columns(self) -> measure.Columns:
        """All of it."""
        lists = {"neurons": list[float], "teacher": list[float]}
        return {**numbers("test_loss", "best_loss", "linear_loss"), **lists}

    def look(self, state: State) -> Mapping[str, float | list[float]]:
        """The losses now, and at the end what only the last row holds."""
        run, test = self.scene.runs[state.member], self.scene.data[state.member].test
        with torch.no_grad():
            loss = _half(state(test.x)[:, 0] - test.y)
        self._best["loss"] = min(loss, self._best.get("loss", loss))
        found: dict[str, float | list[float]] = {"test_loss": loss, "best_loss": self._best["loss"]}
        ended = state.status != "running"
        if run.traced:
            b, a = state.parameters.values()
            found["neurons"] = (a[0].abs()[:, None] * b).reshape(-1).tolist()
            if ended:
                teacher = run.teacher()
                found["teacher"] = (teacher.a[:, None] * teacher.b).reshape(-1).tolist()
        if run.linear and ended:
            found["linear_loss"] = self._linear(state)
        return found

    def _linear(self, state: State) -> float:
        """The test loss of the linearised model at the same time, from its kernel."""
        own = self.scene.data[state.member]
        start = state.initial()
        with torch.no_grad():
            at_train, at_test = start(own.train.x), start(own.test.x)
        known = {"reduce": "trace", "parameters": start.parameters}
        path = train.kernel(measure.ntk(state.module, own.train.x, **known), own.train.y, start=at_train)
        cross = measure.ntk(state.module, own.test.x, own.train.x, **known)
        return _half(path.at(state.time).predict(cross, at_test)[:, 0] - own.test.y)


def _half(missed: Tensor) -> float:
    """Half the mean square."""
    return float(missed.square().mean()) / 2


class StudentRun(Recipe):
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

    version: ClassVar[int] = 2
    tells: ClassVar[Mapping[str, str]] = {"status": "status", "step": "step", "train_loss": "loss"}

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
        """So many that their activations fit the cache."""
        return max(1, min(32, (1 << 19) // (self.n * self.width)))

    def cost(self) -> float:
        """Rough seconds: the products of a step at the speed of a common core."""
        return self.steps * (5e-5 + 6 * self.n * self.inputs * self.width / 3e10)

    @property
    def label(self) -> str:
        """How wide it is."""
        return f"students m={self.width}"

    @property
    def when(self) -> measure.When:
        """The start, the last step, and some in between, evenly in their logarithm."""
        looks = sorted({0, self.steps} | {round(self.steps ** (i / _LOOKS)) for i in range(_LOOKS)})
        return lambda step: next((later for later in looks if later > step), self.steps)

    def teacher(self) -> Teacher:
        """The teacher, and its points."""
        return _teacher(self.inputs, self.units, self.n, self.n_test, self.seed)

    def points(self, directory: Path | None) -> Dataset:
        """Those of the teacher."""
        return self.teacher().dataset

    def network(self, shape: tuple[int, ...]) -> nn.Module:
        """The student at its start."""
        return models.two_layer(
            self.inputs,
            self.width,
            scaling=self.scaling,
            tau=self.tau,
            symmetric=self.symmetric,
            seed=self.seed,
        )

    @classmethod
    def states(cls, runs: Sequence[Self], modules: Sequence[nn.Module], scene: Scene) -> Iterable[State]:
        """Full-batch descent, each student on its own points with its own step."""
        return train.descent(
            modules,
            [own.train.x for own in scene.data],
            [own.train.y for own in scene.data],
            lr=[run.lr for run in runs],
            loss=squared,
            steps=runs[0].steps,
        )

    @classmethod
    def probes(cls, scene: Scene) -> Sequence[measure.Probe]:
        """What the students have learnt."""
        return [Lesson(scene)]


@lru_cache(maxsize=64)
def _teacher(inputs: int, units: int, n: int, n_test: int, seed: int) -> Teacher:
    return data.teacher(inputs, units=units, train=n, test=n_test, seed=seed)
