"""The third experiment: convolutional networks on images under an output scale."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor, nn

from regimes import measure
from regimes.core.state import State
from regimes.measure.probe import numbers
from regimes.papers.recipe.data import ClassImages
from regimes.papers.recipe.device import OnDevice
from regimes.papers.recipe.engine import MomentumDescent
from regimes.papers.recipe.network import Convolutional, OutputScale
from regimes.papers.recipe.probes import Accuracy
from regimes.papers.recipe.recipe import Recipe, Scene

__all__ = ["ImageRun"]


# So many images carry the stability.
_CHUNK = 500


@dataclass(frozen=True, eq=False)
class Stability(measure.Snapshot):
    """:func:`regimes.measure.pattern` by the name it has in the paper. Value: ``stability``."""

    inputs: Tensor

    @property
    def columns(self) -> measure.Columns:
        """The share."""
        return numbers("stability")

    def look(self, state: State) -> Mapping[str, float]:
        """The share of ReLU units that are on the same side as at the start."""
        return {"stability": measure.Pattern(self.inputs).look(state)["pattern"]}


class ImageRun(ClassImages, Convolutional, OutputScale, MomentumDescent, OnDevice, Recipe):
    r"""A convolutional network on images, :math:`F = \alpha (f(w) - f(w_0))`, by descent with momentum.

    A run whose loss is larger at the end than at the start, at F = 0, counts as diverged.
    """

    version: ClassVar[int] = 3
    tells: ClassVar[Mapping[str, str]] = {"status": "status", "step": "step", "loss_end": "loss"}

    def cost(self) -> float:
        """Rough seconds: products of an epoch, and the overhead of a step."""
        pixels = {"digits": 0.16, "mnist": 1.9, "fashion-mnist": 1.9}.get(self.dataset, 2.8)
        products = (pixels if self.model == "conv" else 150 * self.width_factor**2) * 6e6
        return self.epochs * self.n * (products / 2e10 + 1.5e-3 / self.batch_size)

    @property
    def label(self) -> str:
        """Data and scale."""
        return f"{self.dataset} alpha={self.alpha:g}"

    @property
    def when(self) -> measure.When:
        """At the end alone."""
        return measure.at_end()

    @classmethod
    def states(cls, runs: Sequence[Self], modules: Sequence[nn.Module], scene: Scene) -> Iterable[State]:
        """The descent, and whether it led anywhere."""
        return _judged(super().states(runs, modules, scene))

    @classmethod
    def probes(cls, scene: Scene) -> Sequence[measure.Probe]:
        """Accuracy on both sets, and the stability of the activations on the first test images."""
        return [
            Accuracy("train", scene.train.x, scene.train.y),
            Accuracy("test", scene.test.x, scene.test.y),
            Stability(scene.test.x[:_CHUNK]),
        ]


def _judged(states: Iterable[State]) -> Iterator[State]:
    """The same states; of a run that ends above the loss it started from, the last one is called diverged.

    The linear dynamics of a step that is too large grow without end, but slowly.
    """
    first = math.nan
    for state in states:
        first = state.loss if math.isnan(first) else first
        worse = state.status != "running" and not state.loss <= first
        yield replace(state, status="diverged") if worse else state
