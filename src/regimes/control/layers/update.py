"""What an optimiser does to layers that move now and then: the size of their steps, and the state it keeps of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, final

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["OptimizerState", "Updates"]

OptimizerState = Literal["keep", "drop", "offload"]


@final
class Updates:
    """The steps of layers, each multiplied by a number, and the state of the optimisers.

    Args:
        optimizers: in the order in which they step.
        layers: the parameters of each layer, from the bottom to the top.
        factors: what the step of each layer is multiplied by.
        state: what becomes of the state of a layer that does not move.
        warmup: so many steps of a layer grow from 1/warmup to 1 times themselves, each time that it begins to move.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        layers: Sequence[Sequence[Tensor]],
        factors: Sequence[float],
        state: OptimizerState,
        warmup: int,
    ) -> None:
        self._optimizers, self._layers, self._factors = optimizers, layers, factors
        self._state, self._warmup = state, warmup
        self.ages = [0] * len(layers)
        self._start: list[tuple[Tensor, Tensor, float]] = []

    def knows(self, p: Tensor) -> bool:
        """Whether an optimiser keeps something of a parameter, which it does from its first step on."""
        return any(p in each.state for each in self._optimizers)

    def forget(self, p: Tensor) -> None:
        """Drop what the optimisers keep of a parameter: it is as before its first step."""
        for each in self._optimizers:
            each.state.pop(p, None)

    def before(self, optimizer: Optimizer, moving: frozenset[int]) -> None:
        """Keep the weights whose step is going to be multiplied."""
        factors = {place: factor for place in moving if (factor := self._factor(place)) != 1}
        self._start = []
        if factors:
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            self._start = [
                (p, p.detach().clone(), factor)
                for place, factor in factors.items()
                for p in self._layers[place]
                if id(p) in held
            ]

    @torch.no_grad()
    def after(self) -> None:
        """w + factor (w' - w), where the optimiser went from w to w'."""
        for p, start, factor in self._start:
            p.sub_(start).mul_(factor).add_(start)
        self._start = []

    def advance(self, moved: frozenset[int], moving: frozenset[int]) -> None:
        """Go from the layers that moved at a step to those that move at the next one."""
        self.ages = [
            (age + 1 if place in moved else age) if place in moving else 0
            for place, age in enumerate(self.ages)
        ]
        for place in (moved - moving) if self._state != "keep" else ():
            for p in self._layers[place]:
                if self._state == "drop":
                    self.forget(p)
            for optimizer, p in self._pairs(place):
                _move(optimizer, p, torch.device("cpu"))
        for place in (moving - moved) if self._state == "offload" else ():
            for optimizer, p in self._pairs(place):
                _move(optimizer, p, p.device)

    def _factor(self, place: int) -> float:
        """What the next step of a layer is multiplied by."""
        grown = min(1.0, (self.ages[place] + 1) / self._warmup) if self._warmup else 1.0
        return self._factors[place] * grown

    def _pairs(self, place: int) -> Iterator[tuple[Optimizer, Tensor]]:
        """The optimisers that have state of a layer, with its parameters."""
        for optimizer in self._optimizers:
            yield from ((optimizer, p) for p in self._layers[place] if p in optimizer.state)


def _move(optimizer: Optimizer, p: Tensor, device: torch.device) -> None:
    """Take the state of a parameter to a device; counts of steps stay where they are."""
    state = optimizer.state[p]
    for name, value in state.items():
        if isinstance(value, Tensor) and value.dim():
            state[name] = value.to(device)
