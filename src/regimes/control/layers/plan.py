"""A plan of layers: from the number of a step to the parameters that move at it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from torch import nn

from regimes.control.layers.moves import Moves
from regimes.control.layers.order import Depths, by_depth, inside
from regimes.control.layers.passes import refuse_watched
from regimes.core.batch import Inputs
from regimes.core.batch import check as check_inputs
from regimes.core.check import checked

__all__ = ["LayerPlan", "layer_plan", "plan_of"]


@final
@dataclass(frozen=True)
class LayerPlan:
    """A function from the number of a step to the names of the parameters that move at it.

    Attributes:
        layers: their names, from the bottom, next to the inputs, to the top.
        parameters: the names of the parameters of each layer.
        moves: which layers move.
        seed: of what is drawn.
    """

    layers: tuple[str, ...]
    parameters: tuple[tuple[str, ...], ...]
    moves: Moves
    seed: int

    def __call__(self, step: int) -> frozenset[str]:
        """The names of the parameters that move at a step."""
        return frozenset(name for place in self.places(step) for name in self.parameters[place])

    def places(self, step: int) -> frozenset[int]:
        """The places of the layers that move at a step, 0 for the one at the bottom."""
        return self.moves.moving(self.layers, self.seed, step)

    def names(self, step: int) -> tuple[str, ...]:
        """The names of the layers that move at a step, from the bottom to the top."""
        return tuple(self.layers[place] for place in sorted(self.places(step)))

    @property
    def probabilities(self) -> tuple[float, ...]:
        """The share of the steps at which each layer moves."""
        return self.moves.probabilities(self.layers)


@checked
def layer_plan(
    module: nn.Module, moves: Moves, *, example: Inputs, seed: int = 0, layers: Sequence[str] | None = None
) -> LayerPlan:
    """Which parameters of a module move at each step, as a function of the number of the step.

    It is the ``layers`` of ``train.descent`` and of the other engines, and what :class:`LayerwiseSparse` goes by: the
    same layers at the same steps. Where there is momentum the steps differ by default: an engine keeps the velocity of
    what rests, as the policy does with ``state="keep"``; left to itself, the policy lets that of ``SGD`` decay. Its
    answer depends on the seed and the step alone.

    The order of the layers is found from two passes on the example: a layer is above another if it is used after
    it, whatever the classes are called. A tied parameter belongs to the layer that uses it first. What does not
    require grad does not move.

    Args:
        module: any module; parameters, buffers and random generators are left as they are.
        moves: which layers move: :class:`Fixed`, :class:`Cut`, :class:`UniformCut`, :class:`RandomLayers`,
            :class:`CyclicBlocks`.
        example: inputs as the module takes them: a tensor, a tuple for ``module(*x)``, a mapping for ``module(**x)``.
            A few samples are enough.
        seed: of what is drawn; no global generator is touched.
        layers: names of modules that are one layer each, such as ``["transformer.h.*"]``; ``*`` stands for any part of
            a name. By default each module that owns parameters is one.

    Raises:
        UserError: if a parameter has no part in the outputs for the example, activations require grad where nothing
            moves, ``moves`` does not go with these layers, or the module has a policy, which freezes some of them.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    >>> from regimes import control
    >>> plan = layer_plan(net, control.Fixed(top=1), example=torch.ones(2, 3))
    >>> plan.layers, sorted(plan(step=0))
    (('0', '2', '4'), ['4.bias', '4.weight'])
    """
    check_inputs(example, "example")
    refuse_watched(module)
    return plan_of(by_depth(inside(module), example, layers), moves, seed)


def plan_of(found: Depths, moves: Moves, seed: int) -> LayerPlan:
    """The plan for layers whose order is known.

    Raises:
        UserError: if ``moves`` does not go with them.
    """
    moves.probabilities(found.layers)
    return LayerPlan(found.layers, found.parameters, moves, seed)
