"""A run of gradient flow: one network, one alpha, one seed, trained until every margin is met."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from regimes import measure
from regimes.papers.recipe.data import ParityPoints
from regimes.papers.recipe.device import OnDevice
from regimes.papers.recipe.engine import MarginFlow
from regimes.papers.recipe.network import FullyConnected, OutputScale
from regimes.papers.recipe.recipe import Recipe, Scene

__all__ = ["FlowRun"]


class FlowRun(ParityPoints, FullyConnected, OutputScale, MarginFlow, OnDevice, Recipe):
    """A fully connected network under a law of width, F = alpha (f(w) - f(w0)), trained by gradient flow.

    Full batch, soft-hinge, float64, adapted steps, until F y >= 1 on every training point (Geiger et al. 2020). Looked
    at on a logarithmic grid of steps and at the end.
    """

    version: ClassVar[int] = 2

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

    @property
    def label(self) -> str:
        """Data and shape."""
        return f"{self.dataset} L={self.depth} h={self.width}"

    @classmethod
    def probes(cls, scene: Scene) -> Sequence[measure.Probe]:
        """The drift of the kernel, of the weights and of the function; errors; the times of learning."""
        train, test, probe = scene.train, scene.test, scene.probe
        return [
            measure.KernelDrift(probe.x, probe.y),
            measure.Movement(),
            measure.Gap(probe.x),
            measure.Error(train.x, train.y, "train"),
            measure.Outputs(test.x, targets=test.y),
            measure.Times(),
        ]
