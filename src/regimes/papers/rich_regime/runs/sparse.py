"""The second experiment: at each step few layers move, and the backward pass goes no deeper than they lie."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Self, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from regimes import control, measure
from regimes.control import LayerPlan
from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.state import State
from regimes.measure.probe import numbers
from regimes.papers.recipe.probes import Accuracy
from regimes.papers.recipe.recipe import Scene
from regimes.papers.rich_regime.runs.activity import SHARE
from regimes.papers.rich_regime.runs.network import ImageCnn, ImageMlp, Images
from regimes.study.field import Count
from regimes.train.plan import Layers

__all__ = ["ConvSparseRun", "SparseRun", "backward_products", "forward_products"]


@checked
def backward_products(sizes: Sequence[int], moving: Collection[int]) -> int:
    r"""The products of numbers that the backward pass of a network takes for one sample.

    A layer with :math:`N_l` products in its forward pass takes as many for the gradient of its weights, and as many to
    pass the gradient on to the layer below. With S the layers that move and m the lowest of them,

    .. math:: C(S) = \sum_{l \in S} N_l + \sum_{l > m} N_l .

    Args:
        sizes: N_l (:func:`forward_products`), from the layer at the inputs to that at the outputs.
        moving: S, places of layers, 0 for the one at the inputs.

    Raises:
        UserError: if no layer moves, or one that is not there.

    >>> backward_products([640, 100, 10], {0, 1, 2}), backward_products([640, 100, 10], {2})
    (860, 10)
    """
    if not moving or not set(moving) <= set(range(len(sizes))):
        raise UserError(
            f"`moving`: got {sorted(moving)}, expected at least one place from 0 to {len(sizes) - 1}"
        )
    return sum(sizes[place] for place in moving) + sum(sizes[min(moving) + 1 :])


@checked
def forward_products(module: nn.Module, x: Tensor, layers: Sequence[str]) -> tuple[int, ...]:
    """The products that the forward pass takes in each layer for one sample: its weights, once for each position.

    Args:
        module: a network of linear layers and convolutions.
        x: some inputs.
        layers: the names of its layers.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 5))
    >>> forward_products(net, torch.zeros(1, 1, 4, 4), ["0", "2"])
    (72, 40)
    """
    parts = [module.get_submodule(name) for name in layers]
    found: dict[int, int] = {}

    def note(layer: nn.Module, _: Any, outputs: Tensor) -> None:
        weight = cast("Tensor", layer.weight)
        found[id(layer)] = weight.numel() * (outputs[0].numel() // weight.shape[0])

    hooks = [part.register_forward_hook(note) for part in parts]
    try:
        with torch.no_grad():
            module(x[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(found[id(part)] for part in parts)


@dataclass(frozen=True, eq=False)
class BackwardCost(measure.Probe):
    """The cost of the passes so far, counted from the layers that the plan had move, step by step.

    No time is measured: the count is the same on every machine. Values:

    - ``forward_products``: of the forward passes, which are the same for all policies, summed over the samples;
    - ``products``: :func:`backward_products`, summed over the samples of all steps;
    - ``full_products``: what the same steps take if all layers move;
    - ``speedup``: the latter over the former; nan before the first step;
    - ``expected_speedup``: 1 / (p + (1 - p) r), with p the probability that all layers move, and r the cost of the top
      over that of all; nan where the layers that move are not of that kind.

    Attributes:
        scene: the members, which share data and plan.
    """

    scene: Scene
    _plan: list[tuple[LayerPlan, tuple[int, ...]]] = field(default_factory=list, init=False, repr=False)
    _taken: list[tuple[int, int, int]] = field(
        default_factory=lambda: [(0, 0, 0)] * 2, init=False, repr=False
    )

    @property
    def columns(self) -> measure.Columns:
        """The counts, and both speed-ups."""
        return numbers("forward_products", "products", "full_products", "speedup", "expected_speedup")

    def _of(self, state: State) -> tuple[LayerPlan, tuple[int, ...]]:
        """The plan, and the products of each of its layers in a forward pass."""
        if not self._plan:
            x = self.scene.train.x
            plan = self.scene.runs[state.member].plan(state.module, x)
            self._plan.append((plan, forward_products(state.module, x, plan.layers)))
        return self._plan[0]

    def follow(self, state: State) -> None:
        """Count the step before this state; the one that it is about to take is counted with the next."""
        forward, products, full = (sum(pair) for pair in zip(*self._taken, strict=True))
        step = self._step(state) if state.status == "running" else (0, 0, 0)
        self._taken[:] = [(forward, products, full), step]

    def _step(self, state: State) -> tuple[int, int, int]:
        """The products of the step that a state is about to take: forward, backward, and backward if all moved."""
        run, n = self.scene.runs[state.member], len(self.scene.train)
        plan, sizes = self._of(state)
        batch = min(run.batch_size, n)
        samples = min(batch, n - state.step % -(-n // batch) * batch)
        moving, every = plan.places(state.step), range(len(sizes))
        backward = (samples * backward_products(sizes, which) for which in (moving, every))
        return samples * sum(sizes), *backward

    def look(self, state: State) -> Mapping[str, float]:
        """The counts of the steps that led to this state."""
        run = self.scene.runs[state.member]
        _, sizes = self._of(state)
        whole = backward_products(sizes, range(len(sizes)))
        part = backward_products(sizes, range(len(sizes) - run.top, len(sizes)))
        (forward, taken, full), p = self._taken[0], run.chance
        return {
            "forward_products": float(forward),
            "products": float(taken),
            "full_products": float(full),
            "speedup": full / taken if taken else math.nan,
            "expected_speedup": 1 / (p + (1 - p) * part / whole) if p is not None else math.nan,
        }


@dataclass(frozen=True, eq=False)
class EndAccuracy(Accuracy):
    """The accuracy of the last state alone: in between it would cost more than some of the steps."""

    def look(self, state: State) -> Mapping[str, float]:
        """The accuracy at the end, nothing before."""
        return {} if state.status == "running" else super().look(state)


class Policies(Images):
    """A network of the first experiment, trained under a policy of layers by the plan of the engine.

    Attributes:
        policy: all layers; the top ones alone; the top ones and the one at the bottom; or sampled, where all layers
            move with probability p and the top ones always.
        p: of the sampled policy.
        top: so many layers next to the outputs.
    """

    version: ClassVar[int] = 2

    policy: Literal["all", "top", "ends", "sampled"] = "all"
    p: Annotated[float, Field(ge=0, le=1)] = 0.2
    top: Count = 1

    @property
    def label(self) -> str:
        """Policy, network and width."""
        return f"{self.dataset} {self.kind} {self.policy} width={self.width}"

    @property
    def chance(self) -> float | None:
        """The probability that all layers move rather than the top ones; None where it is neither."""
        return {"all": 1.0, "top": 0.0, "sampled": self.p}.get(self.policy)

    @property
    def when(self) -> measure.When:
        """Five looks in each factor of ten: accuracies at equal cost are read between them."""
        return measure.log_spaced(5)

    def plan(self, module: nn.Module, x: Tensor) -> LayerPlan:
        """Which layers move at each step."""
        if self.chance is None:
            moves = control.Fixed(top=self.top, bottom=1)
        else:
            moves = control.Cut(p=self.chance, top=self.top)
        return control.layer_plan(module, moves, example=x[:2], seed=self.seed)

    @classmethod
    def layers(cls, runs: Sequence[Self], modules: Sequence[nn.Module], scene: Scene) -> Layers:
        """The plan of the first member, which is that of all."""
        return runs[0].plan(modules[0], scene.train.x)

    @classmethod
    def probes(cls, scene: Scene) -> Sequence[measure.Probe]:
        """Test accuracy, change by layer and the counted cost of the passes; at the end the training accuracy."""
        return [
            EndAccuracy("train", scene.train.x, scene.train.y),
            Accuracy("test", scene.test.x, scene.test.y),
            measure.Activity(share=SHARE),
            BackwardCost(scene),
        ]


class SparseRun(Policies, ImageMlp):
    """The second experiment on a fully connected network."""


class ConvSparseRun(Policies, ImageCnn):
    """The second experiment on a convolutional network."""
