"""The second experiment: a network, and functions trained from its frozen kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import model_validator
from torch import Tensor, nn

from regimes import measure, models, train
from regimes.core.loss import soft_hinge
from regimes.core.state import State
from regimes.data import Dataset
from regimes.measure.probe import numbers
from regimes.papers.recipe.data import ParityPoints
from regimes.papers.recipe.device import OnDevice
from regimes.papers.recipe.engine import MarginFlow
from regimes.papers.recipe.network import OutputScale
from regimes.papers.recipe.recipe import Recipe, Scene
from regimes.study.field import Count, Index
from regimes.train import KernelState

__all__ = ["FrozenRun"]


# The convolutions of ``models.cnn``, and their strides.
_STRIDES = (2, 1, 2, 1)


@dataclass(frozen=True, eq=False)
class FrozenKernels(measure.Snapshot):
    """Functions trained from the kernels of a network at its start and at its end, for members that have finished.

    Values, for ``initial`` and ``final``: the steps, the test error, and the distance to the network's function on the
    test points, relative to its size; only the steps of a flow that did not end.

    Attributes:
        scene: the members and their data.
    """

    scene: Scene

    @property
    def columns(self) -> measure.Columns:
        """Three numbers for each kernel."""
        return numbers(
            *(f"{name}_{what}" for name in ("initial", "final") for what in ("error", "gap", "steps"))
        )

    def look(self, state: State) -> Mapping[str, float]:
        """The functions from both kernels."""
        if state.status != "finished":
            return {}
        test = self.scene.test
        said = state(test.x).detach().flatten()
        found: dict[str, float] = {}
        for name, moment in (("initial", state.initial()), ("final", state)):
            end, outputs = self._from_kernel(moment)
            found[f"{name}_steps"] = end.step
            if end.status == "finished":
                found[f"{name}_error"] = measure.error_rate(outputs, test.y)
                found[f"{name}_gap"] = float((outputs - said).norm() / said.norm())
        return found

    def _from_kernel(self, state: State) -> tuple[KernelState, Tensor]:
        """The function trained from the kernel of this state, at its end, and what it says of the test points."""
        run, inputs, x = self.scene.runs[state.member], self.scene.train.x, self.scene.test.x
        k, cross = (
            measure.ntk(state.module, first, second, reduce="trace", parameters=state.parameters)
            for first, second in ((inputs, None), (x, inputs))
        )
        # The kernel of F is alpha^2 times that of f, and the loss is divided by alpha^2: no alpha in the path.
        end = train.kernel(
            k,
            self.scene.train.y,
            loss=soft_hinge,
            alpha=run.alpha,
            tolerance=train.Tolerance(gradient=run.tolerance),
            max_steps=run.max_steps,
        ).at(math.inf)
        return end, end.predict(cross)[:, 0]


class FrozenRun(ParityPoints, OutputScale, MarginFlow, OnDevice, Recipe):
    r"""A network trained by gradient flow, and functions trained in the same way from its frozen tangent kernels.

    NTK law, :math:`F = \alpha (f(w) - f(w_0))`, full batch, soft-hinge, float64, adapted steps, until F y >= 1 on every
    training point. Then the flow in function space, from F = 0 to the same margin: from the kernel of the network at
    its start and from that at its end (Geiger et al. 2020, appendix C of version 1). Both are kernels of F with its
    alpha in the loss, so that alpha cancels.

    The row holds the test error of the network (``test_error``) and of the two functions (``initial_error``,
    ``final_error``), their distance to the network's function on the test points, relative to its size
    (``initial_gap``, ``final_gap``), and their steps. Those of a flow that did not end are missing.

    Attributes:
        model: fc (fully connected) or cnn (four convolutions, the mean over positions, a linear read-out).
        pca: principal components of the inputs of fc; None for the images, each of norm sqrt(d).
        size: side to which images are averaged; None as they come.
        depth: hidden layers; a cnn has 4.
        width: h, hidden units, or channels of each convolution.
        kernel: side of the kernels of a cnn; padding is 1.
        activation: softplus or relu.
        seed: of the start.
        tolerance: 1e-4 is that of the authors; 1e-3 takes larger steps and moves test errors by about 0.1 points.
    """

    version: ClassVar[int] = 2

    model: Literal["fc", "cnn"] = "fc"
    pca: Count | None = None
    size: Literal[14, 16] | None = None
    depth: Count = 4
    width: Count = 8
    kernel: Literal[3, 5] = 3
    activation: Literal["softplus", "relu"] = "softplus"
    seed: Index = 0

    @model_validator(mode="after")
    def _fits(self) -> FrozenRun:
        """A cnn takes images and has four hidden layers: one experiment, one key."""
        if self.model == "cnn" and (self.depth != len(_STRIDES) or self.pca is not None):
            raise ValueError(
                f"a cnn has depth = 4 and no pca, got depth = {self.depth} and pca = {self.pca}; "
                "leave both out or choose model = fc"
            )
        return self

    @property
    def batch(self) -> str:
        """Members of one program differ in seed and alpha."""
        return self.all_but("alpha", "seed")

    @property
    def cap(self) -> int:
        """So many that their activations and a few copies of their parameters stay below about 1 GB."""
        weights, units, _ = self._sizes()
        return max(1, min(16, int(1e9 / (8 * (6 * weights + 3 * self.n * units)))))

    def cost(self) -> float:
        """Rough seconds: steps times the products and activations of one, and two flows from kernels."""
        _, units, products = self._sizes()
        speed = 4e10 if self.model == "fc" else 6e9
        steps = 2000 if self.model == "fc" else 3000
        step = 2e-4 + self.n * (6 * products / speed + units * 1.1e-8)
        return steps * (step + 4e-4 + self.n**2 * 4e-10)

    def _sizes(self) -> tuple[int, int, int]:
        """Weights, hidden units, and products of a forward pass for one sample."""
        h, side = self.width, self.size or {"digits": 8, "cifar-10": 32}.get(self.dataset, 28)
        maps = 3 if self.dataset == "cifar-10" else 1
        if self.model == "fc":
            inputs = self.pca or maps * side**2
            weights = inputs * h + (self.depth - 1) * h**2 + h
            return weights, self.depth * h, weights
        weights = units = products = 0
        for stride in _STRIDES:
            side = (side + 2 - self.kernel) // stride + 1
            own = maps * h * self.kernel**2
            weights, units, products = weights + own, units + h * side**2, products + own * side**2
            maps = h
        return weights, units, products

    @property
    def label(self) -> str:
        """Data and network."""
        return f"{self.dataset} {self.model} h={self.width}"

    @property
    def when(self) -> measure.When:
        """At the end alone."""
        return measure.at_end()

    def points(self, directory: Path | None) -> Dataset:
        """Vectors for fc, images for a cnn."""
        return self.laid_out(directory, self.size, flat=self.model == "fc")

    def start(self, shape: tuple[int, ...]) -> nn.Module:
        """The network on inputs of that shape, at its start."""
        if self.model == "fc":
            return models.mlp(shape[0], self.width, self.depth, activation=self.activation, seed=self.seed)
        return models.cnn(
            shape[0], self.width, kernel=self.kernel, padding=1, activation=self.activation, seed=self.seed
        )

    @classmethod
    def probes(cls, scene: Scene) -> Sequence[measure.Probe]:
        """The drift of kernel and weights, errors, and the functions from the frozen kernels."""
        train, test = scene.train, scene.test
        return [
            measure.KernelDrift(scene.probe.x),
            measure.Movement(),
            measure.Error(train.x, train.y, "train"),
            measure.Outputs(test.x, targets=test.y),
            FrozenKernels(scene),
        ]
