"""The second experiment of the feature-lazy study: a network, and functions trained from its frozen kernels."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from pydantic import Field, model_validator

from regimes.study import Run
from regimes.study.field import Count, Index, Positive, Rows, Tick

if TYPE_CHECKING:
    from torch import Tensor, nn

    from regimes.core.state import State
    from regimes.data.dataset import Dataset, Split
    from regimes.train.path import KernelState

__all__ = ["FrozenRun"]


# The convolutions of ``models.cnn``, and their strides.
_STRIDES = (2, 1, 2, 1)
# Steps of a member from one word of progress to the next.
_TOLD = 20


class FrozenRun(Run):
    r"""A network trained by gradient flow, and functions trained in the same way from its frozen tangent kernels.

    NTK law, :math:`F = \alpha (f(w) - f(w_0))`, full batch, soft-hinge, float64, adapted steps, until F y >= 1 on every
    training point. Then the flow in function space, from F = 0 to the same margin: from the kernel of the network at
    its start and from that at its end (Geiger et al. 2020, appendix C of version 1). Both are kernels of F with its
    alpha in the loss, so that alpha cancels.

    The row holds the test error of the network (``test_error``) and of the two functions (``initial_error``,
    ``final_error``), their distance to the network's function on the test points, relative to its size
    (``initial_gap``, ``final_gap``), and their steps. Those of a flow that did not end are missing.

    Attributes:
        dataset: digits, mnist, fashion-mnist, emnist or cifar-10; classes by parity, training and test file merged.
        model: fc (fully connected) or cnn (four convolutions, the mean over positions, a linear read-out).
        pca: principal components of the inputs of fc; None for the images, each of norm sqrt(d).
        size: side to which images are averaged; None as they come.
        n: training points.
        n_test: test points.
        n_probe: of them, the first, that carry the kernels of dK.
        depth: hidden layers; a cnn has 4.
        width: h, hidden units, or channels of each convolution.
        kernel: side of the kernels of a cnn; padding is 1.
        activation: softplus or relu.
        alpha: the output scale.
        seed: of the start.
        tolerance: on the relative change of the gradient over one step, squared (``train.Tolerance``): 1e-4 is that of
            the authors; 1e-3 takes larger steps and moves test errors by about 0.1 points.
        max_steps: a flow that needs more is recorded as stopped.
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
        "dW": float,
        "train_error": float,
        "test_error": float,
        "initial_error": float,
        "final_error": float,
        "initial_gap": float,
        "final_gap": float,
        "initial_steps": float,
        "final_steps": float,
        "seconds": float,
        "test_outputs": list[float],
        "test_targets": list[float],
    }

    dataset: str = "digits"
    model: Literal["fc", "cnn"] = "fc"
    pca: Count | None = None
    size: Literal[14, 16] | None = None
    n: Annotated[int, Field(ge=2)] = 200
    n_test: Count = 1000
    n_probe: Annotated[int, Field(ge=2)] = 256
    depth: Count = 4
    width: Count = 8
    kernel: Literal[3, 5] = 3
    activation: Literal["softplus", "relu"] = "softplus"
    alpha: Positive = 1.0
    seed: Index = 0
    tolerance: Positive = 1e-4
    max_steps: Count = 60_000
    device: Literal["cpu", "cuda"] = "cpu"

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

    @classmethod
    def perform(cls, runs: Sequence[Run], data: Path | None, tick: Tick) -> Iterator[tuple[Run, Rows]]:
        """Train the members as one program; yield each with its row when it ends."""
        yield from _perform(cast("Sequence[FrozenRun]", runs), data, tick)


def _perform(runs: Sequence[FrozenRun], data: Path | None, tick: Tick) -> Iterator[tuple[FrozenRun, Rows]]:
    from regimes import control, train

    first = runs[0]
    dataset = _load(first.dataset, first.pca, first.size, first.model == "fc", first.n, first.n_test, data)
    shape = tuple(dataset.train.x.shape[1:])
    modules = [control.scale(_network(run, shape), run.alpha).to(first.device) for run in runs]
    began = time.perf_counter()
    states = train.flow(
        modules,
        dataset.train.x,
        dataset.train.y,
        tolerance=train.Tolerance(gradient=first.tolerance),
        max_steps=first.max_steps,
    )
    for state in states:
        if state.step % _TOLD == 0:
            tick(
                f"{first.dataset} {first.model} h={first.width}: {states.running} members, step {state.step}"
            )
        if state.status != "running":
            run = runs[state.member]
            row = _row(run, state, (states.inputs, states.targets), dataset.test)
            # a member's share of the time of the program so far
            yield run, [row | {"seconds": (time.perf_counter() - began) / len(runs)}]


def _row(run: FrozenRun, state: State, points: tuple[Tensor, Tensor], test: Split) -> dict[str, Any]:
    """What is known at the end: of the network, and of the functions from its kernels."""
    import torch

    from regimes import measure

    x = test.x.to(points[0])
    with torch.no_grad():
        said, known = state(x).flatten(), state(points[0])
    row = {
        "step": state.step,
        "time": state.time,
        "status": state.status,
        "loss": state.loss,
        **measure.KernelDrift(x[: run.n_probe]).look(state),
        **measure.Movement().look(state),
        "train_error": measure.error_rate(known, points[1]),
        "test_error": measure.error_rate(said.cpu(), test.y),
        "test_outputs": said.tolist(),
        "test_targets": test.y.tolist(),
    }
    if state.status == "finished":
        for name, moment in (("initial", state.initial()), ("final", state)):
            end, outputs = _from_kernel(run, moment, points, x)
            row[f"{name}_steps"] = end.step
            if end.status == "finished":
                row[f"{name}_error"] = measure.error_rate(outputs.cpu(), test.y)
                row[f"{name}_gap"] = float((outputs - said).norm() / said.norm())
    return row


def _from_kernel(
    run: FrozenRun, state: State, points: tuple[Tensor, Tensor], x: Tensor
) -> tuple[KernelState, Tensor]:
    """The function trained from the kernel of this state, at its end, and what it says of x."""
    from regimes import measure, train
    from regimes.core.loss import soft_hinge

    inputs, targets = points
    k, cross = (
        measure.ntk(state.module, first, second, reduce="trace", parameters=state.parameters)
        for first, second in ((inputs, None), (x, inputs))
    )
    # The kernel of F is alpha^2 times that of f, and the loss is divided by alpha^2: no alpha in the path.
    end = train.kernel(
        k,
        targets,
        loss=soft_hinge,
        alpha=run.alpha,
        tolerance=train.Tolerance(gradient=run.tolerance),
        max_steps=run.max_steps,
    ).at(math.inf)
    return end, end.predict(cross)[:, 0]


def _network(run: FrozenRun, shape: tuple[int, ...]) -> nn.Sequential:
    """The network of a run on inputs of that shape, at its start."""
    from regimes import models

    if run.model == "fc":
        return models.mlp(shape[0], run.width, run.depth, activation=run.activation, seed=run.seed)
    return models.cnn(
        shape[0],
        run.width,
        kernel=run.kernel,
        padding=1,
        activation=run.activation,
        seed=run.seed,
    )


@lru_cache(maxsize=2)
def _load(
    name: str, pca: int | None, size: int | None, flat: bool, n: int, n_test: int, directory: Path | None
) -> Dataset:
    """The data set of a program; a worker that gets several programs on the same one reads it once."""
    from regimes import data

    return data.load(
        name,
        task="parity",
        train=n,
        test=n_test,
        merge=True,
        pca=pca,
        size=size,
        flat=flat,
        directory=directory,
    )
