"""Its experiment: points, a network, an engine and two probes, of which one is its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from regimes import measure
from regimes.core.state import State
from regimes.measure.probe import numbers
from regimes.papers.recipe.data import ParityPoints
from regimes.papers.recipe.engine import MarginFlow
from regimes.papers.recipe.network import FullyConnected, OutputScale
from regimes.papers.recipe.recipe import Recipe, Scene

__all__ = ["ToyRun"]


@dataclass(frozen=True, eq=False)
class Outcome(measure.Snapshot):
    """How large the outputs are. Value: ``size``."""

    scene: Scene

    @property
    def columns(self) -> measure.Columns:
        """The size."""
        return numbers("size")

    def look(self, state: State) -> Mapping[str, float]:
        """The norm of F on the training points."""
        return {"size": float(state(self.scene.train.x).norm())}


class ToyRun(ParityPoints, FullyConnected, OutputScale, MarginFlow, Recipe):
    """A small network on few points."""

    n: int = 20
    n_test: int = 30
    width: int = 8

    @property
    def batch(self) -> str:
        """Members differ in scale and seed."""
        return self.all_but("alpha", "seed")

    @property
    def label(self) -> str:
        """A word of progress."""
        return "toys"

    @classmethod
    def probes(cls, scene: Scene) -> Sequence[measure.Probe]:
        """The movement, and the size of the outputs."""
        return [measure.Movement(), Outcome(scene)]
