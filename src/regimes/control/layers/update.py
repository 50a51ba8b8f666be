"""What an optimiser does to layers that move now and then: the size of their steps, and the state it keeps of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from regimes.core.error import UserError

__all__ = ["OptimizerState", "Updates", "at_rest", "check_known"]

OptimizerState = Literal["keep", "drop", "offload", "decay"]

_GROW, _SHRINK = 1.2, 0.5
_KNOWN = (SGD, Adam, AdamW)


@final
class Updates:
    """The steps of layers, each multiplied by a number, and the state of the optimisers.

    Args:
        optimizers: in the order in which they step.
        layers: the parameters of each layer, from the bottom to the top.
        factors: what the step of each layer is multiplied by.
        state: what becomes of the state of a layer that does not move.
        warmup: so many steps of a layer grow from 1/warmup to 1 times themselves, each time that it begins to move.
        by_curvature: factors above 1 are the largest there may be; they begin at 1.

    Attributes:
        ages: for how many steps each layer has moved without a pause.
        idle: for how many it has not.
        factors: what the steps of each layer are multiplied by now.
        last: the last step of each parameter whose factor goes by the curvature, w' - w.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        layers: Sequence[Sequence[Tensor]],
        factors: Sequence[float],
        state: OptimizerState,
        warmup: int,
        by_curvature: bool,
    ) -> None:
        self._optimizers, self._layers, self._largest = optimizers, layers, factors
        self._state, self._warmup, self._by_curvature = state, warmup, by_curvature
        self.ages, self.idle = [0] * len(layers), [0] * len(layers)
        self.factors = [1.0] * len(layers) if by_curvature else [*factors]
        self.last: dict[Tensor, Tensor] = {}
        self._judged: set[int] = set()
        self._decayed: set[int] = set()
        self._start: list[tuple[Tensor, Tensor, float]] = []

    def numbers(self) -> dict[str, list[Any]]:
        """What goes on from one step to the next, besides ``last``."""
        return {"ages": [*self.ages], "idle": [*self.idle], "factors": [*self.factors]}

    def load(self, numbers: Mapping[str, Any]) -> None:
        """Go on with those."""
        self.ages, self.idle = ([int(each) for each in numbers[name]] for name in ("ages", "idle"))
        self.factors = [float(each) for each in numbers["factors"]]
        self.last, self._judged, self._decayed = {}, set(), set()

    def knows(self, p: Tensor) -> bool:
        """Whether an optimiser keeps something of a parameter, which it does from its first step on."""
        return any(p in each.state for each in self._optimizers)

    def forget(self, p: Tensor) -> None:
        """Drop what the optimisers keep of a parameter: it is as before its first step."""
        for each in self._optimizers:
            each.state.pop(p, None)

    def before(self, optimizer: Optimizer, moving: frozenset[int]) -> None:
        """Let decay what an optimiser kept, and keep the weights whose step is going to be multiplied."""
        if self._state == "decay" and id(optimizer) not in self._decayed:
            self._decayed.add(id(optimizer))
            for place in moving:
                for p in self._layers[place] if self.idle[place] else ():
                    if p in optimizer.state:
                        _decay(optimizer, p, self.idle[place])
        for place in moving - self._judged if self._by_curvature else ():
            self._judge(place)
        factors = {
            place: self._factor(place) for place in moving if self._factor(place) != 1 or self._follows(place)
        }
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
            if self._by_curvature:
                self.last[p] = torch.sub(p, start, out=start)
        self._start = []

    def advance(self, moved: frozenset[int], moving: frozenset[int]) -> None:
        """Go from the layers that moved at a step to those that move at the next one."""
        self.ages = [
            (age + 1 if place in moved else age) if place in moving else 0
            for place, age in enumerate(self.ages)
        ]
        self._judged, self._decayed = set(), set()
        self.idle = [0 if place in moved else n + 1 for place, n in enumerate(self.idle)]
        for place in (moved - moving) if self._state in ("drop", "offload") else ():
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
        return self.factors[place] * grown

    def _follows(self, place: int) -> bool:
        """Whether the factor of a layer goes by the curvature."""
        return self._by_curvature and self._largest[place] > 1

    @torch.no_grad()
    def _judge(self, place: int) -> None:
        """Take a larger factor if the loss still fell at the end of the layer's last step, a smaller one if it rose.

        Along that step s the slope is now g . s. For a loss of second order, L + f g . d + f^2 d . H d / 2 along d, it
        is 0 at the factor f* = -g . d / d . H d, where the loss is least, and above 0 beyond.
        """
        self._judged.add(place)
        known = [(p.grad, self.last[p]) for p in self._layers[place] if p.grad is not None and p in self.last]
        if self._follows(place) and known:
            slope = sum(float((grad * last).sum()) for grad, last in known)
            changed = self.factors[place] * (_SHRINK if slope > 0 else _GROW)
            self.factors[place] = min(max(changed, 1.0), self._largest[place])

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


def at_rest(optimizers: Sequence[Optimizer]) -> OptimizerState:
    """What becomes of the state of a layer that does not move, where nothing is said."""
    momentum = any(group.get("momentum") for each in optimizers for group in each.param_groups)
    return "decay" if momentum and all(type(each) is SGD for each in optimizers) else "keep"


def check_known(optimizers: Sequence[Optimizer]) -> None:
    """Raise if the state of an optimiser is not known, so that it cannot decay."""
    strange = [type(each).__name__ for each in optimizers if type(each) not in _KNOWN]
    if strange:
        raise UserError(
            f'`optimizer`: got {strange[0]} with `state` "decay", expected '
            f'{", ".join(each.__name__ for each in _KNOWN)}, whose state is known; take "keep" or "drop"'
        )


def _decay(optimizer: Optimizer, p: Tensor, steps: int) -> None:
    """What the optimiser keeps of a parameter, as if its gradient had been 0 for so many steps."""
    state = optimizer.state[p]
    group = next(group for group in optimizer.param_groups if any(each is p for each in group["params"]))
    if isinstance(optimizer, SGD):
        if state.get("momentum_buffer") is not None:
            state["momentum_buffer"].mul_(group["momentum"] ** steps)
        return
    for name, beta in zip(("exp_avg", "exp_avg_sq"), group["betas"], strict=True):
        state[name].mul_(beta**steps)
    state["step"] += steps
