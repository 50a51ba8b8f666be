"""The second experiment: at each step few layers move, and the backward pass goes no deeper than they lie."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, Self

from pydantic import Field
from torch import Tensor, nn

from regimes import control, measure
from regimes.control import LayerPlan
from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.state import State
from regimes.core.tree import trainable
from regimes.measure.probe import numbers
from regimes.papers.recipe.probes import Accuracy
from regimes.papers.recipe.recipe import Scene
from regimes.papers.rich_regime.runs.network import ImageMlp
from regimes.study.field import Count
from regimes.train.plan import Layers

__all__ = ["SparseRun", "backward_products"]


@checked
def backward_products(sizes: Sequence[int], moving: Collection[int]) -> int:
    r"""The products of numbers that the backward pass of a fully connected network takes for one sample.

    A layer with :math:`N_l` weights takes as many for the gradient of its weights, and as many to pass the gradient on
    to the layer below. With S the layers that move and m the lowest of them,

    .. math:: C(S) = \sum_{l \in S} N_l + \sum_{l > m} N_l .

    Args:
        sizes: N_l, from the layer at the inputs to that at the outputs.
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


@dataclass(frozen=True, eq=False)
class BackwardCost(measure.Probe):
    """The cost of the backward passes so far, counted from the layers that the plan had move, step by step.

    No time is measured: the count is the same on every machine. Values:

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
    _taken: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)] * 2, init=False, repr=False)

    @property
    def columns(self) -> measure.Columns:
        """The counts, and both speed-ups."""
        return numbers("products", "full_products", "speedup", "expected_speedup")

    def _of(self, state: State) -> tuple[LayerPlan, tuple[int, ...]]:
        """The plan and the weights of each of its layers."""
        if not self._plan:
            plan = self.scene.runs[state.member].plan(state.module, self.scene.train.x)
            own = trainable(state.module)
            sizes = tuple(sum(own[name].numel() for name in names) for names in plan.parameters)
            self._plan.append((plan, sizes))
        return self._plan[0]

    def follow(self, state: State) -> None:
        """Count the step before this state; the one that it is about to take is counted with the next."""
        products, full = (sum(pair) for pair in zip(*self._taken, strict=True))
        self._taken[:] = [(products, full), self._step(state) if state.status == "running" else (0, 0)]

    def _step(self, state: State) -> tuple[int, int]:
        """The products of the step that a state is about to take, and those if all layers moved."""
        run, n = self.scene.runs[state.member], len(self.scene.train)
        plan, sizes = self._of(state)
        batch = min(run.batch_size, n)
        samples = min(batch, n - state.step % -(-n // batch) * batch)
        moving, every = plan.places(state.step), range(len(sizes))
        return samples * backward_products(sizes, moving), samples * backward_products(sizes, every)

    def look(self, state: State) -> Mapping[str, float]:
        """The counts of the steps that led to this state."""
        run = self.scene.runs[state.member]
        _, sizes = self._of(state)
        whole = backward_products(sizes, range(len(sizes)))
        part = backward_products(sizes, range(len(sizes) - run.top, len(sizes)))
        (taken, full), p = self._taken[0], run.chance
        return {
            "products": float(taken),
            "full_products": float(full),
            "speedup": full / taken if taken else math.nan,
            "expected_speedup": 1 / (p + (1 - p) * part / whole) if p is not None else math.nan,
        }


class SparseRun(ImageMlp):
    """The network of :class:`ActivityRun`, trained under a policy of layers by the plan of the engine.

    Attributes:
        policy: all layers; the top ones alone; the top ones and the one at the bottom; or sampled, where all layers
            move with probability p and the top ones always.
        p: of the sampled policy.
        top: so many layers next to the outputs.
    """

    policy: Literal["all", "top", "ends", "sampled"] = "all"
    p: Annotated[float, Field(ge=0, le=1)] = 0.2
    top: Count = 1

    @property
    def label(self) -> str:
        """Policy and width."""
        return f"{self.dataset} {self.policy} width={self.width}"

    @property
    def chance(self) -> float | None:
        """The probability that all layers move rather than the top ones; None where it is neither."""
        return {"all": 1.0, "top": 0.0, "sampled": self.p}.get(self.policy)

    @property
    def when(self) -> measure.When:
        """Three looks in each factor of ten."""
        return measure.log_spaced(3)

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
        """Accuracy, and the counted cost of the backward passes."""
        return [
            Accuracy("train", scene.train.x, scene.train.y),
            Accuracy("test", scene.test.x, scene.test.y),
            BackwardCost(scene),
        ]
