"""What each layer costs in a step of training, and what a choice of layers would save."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regimes import control
from regimes.control.layers.order import as_written, by_depth, inside, undisturbed
from regimes.control.layers.passes import refuse_watched
from regimes.core.batch import check, misfit, take
from regimes.core.check import checked, shown
from regimes.core.error import UserError
from regimes.core.tree import size
from regimes.measure.layer_cost_kept import kept_by_layers
from regimes.measure.layer_cost_terms import Terms, paid
from regimes.measure.layer_cost_time import Loop, StepTimes, optimizer_copy, step_times

__all__ = ["LayerCosts", "Prediction", "layer_costs"]


@dataclass(frozen=True)
class Prediction:
    """What a step costs where some layers move, on average over the steps.

    Attributes:
        forward, backward, optimizer: seconds of its parts.
        ratio: seconds of the step over those of one that moves all layers.
        kept_mean, kept_most: bytes that its forward pass keeps for the backward pass, on average and at most.
        variance: sum_l ||g_l||^2 / p_l over sum_l ||g_l||^2: the second moment of the gradient where each layer counts
            1/p_l times when it moves, over that of full training. Infinite where a layer with a gradient never moves.
    """

    forward: float
    backward: float
    optimizer: float
    ratio: float
    kept_mean: float
    kept_most: float
    variance: float

    @property
    def step(self) -> float:
        """Seconds of the whole step."""
        return self.forward + self.backward + self.optimizer

    def __str__(self) -> str:
        parts = (self.step, self.forward, self.backward, self.optimizer)
        step, forward, backward, optimizer = (f"{1e3 * seconds:.3g}" for seconds in parts)
        return (
            f"step {step} ms, {self.ratio:.2f} of a full one (forward {forward}, backward {backward}, optimiser "
            f"{optimizer}); keeps {self.kept_mean / 2**20:.3g} MiB on average, {self.kept_most / 2**20:.3g} at most; "
            f"gradient variance {self.variance:.3g} times"
        )


@dataclass(frozen=True, eq=False)
class LayerCosts:
    """What each layer costs in a step; from :func:`layer_costs`. ``print`` shows a table.

    Attributes:
        layers: their names, from the bottom, next to the inputs, to the top.
        parameters: how many numbers each has.
        squared_norms: the mean of ||g_l||^2 over the batches.
        times: seconds of the parts of a step.
        kept: bytes that a forward pass keeps, each with the layers (by their places) any one of which keeps them.
    """

    layers: tuple[str, ...]
    parameters: tuple[int, ...]
    squared_norms: tuple[float, ...]
    times: StepTimes
    kept: Terms

    def predict(self, moves: control.Moves) -> Prediction:
        """What a step costs under a choice of layers.

        Raises:
            UserError: if ``moves`` does not go with these layers.
        """
        shares = moves.shares(self.layers)
        forward, backward, optimizer = (
            sum(share * self._seconds(moving)[part] for moving, share in shares.items()) for part in range(3)
        )
        kept = {moving: paid(self.kept, moving) for moving in shares}
        chances = moves.probabilities(self.layers)
        second = sum(
            square / p if p else math.inf
            for square, p in zip(self.squared_norms, chances, strict=True)
            if square
        )
        return Prediction(
            forward,
            backward,
            optimizer,
            _over(forward + backward + optimizer, self._total(self._above(0))),
            sum(share * kept[moving] for moving, share in shares.items()),
            max(kept.values()),
            _over(second, sum(self.squared_norms)),
        )

    def plan(self, cost: float, *, top: int = 1, interval: int = 1) -> control.Cut:
        """The cut of least gradient variance whose mean step takes a share ``cost`` of a full one.

        See :func:`regimes.control.least_variance` for what the variance speaks of.

        Args:
            cost: the share of the seconds of a full step, from that of the ``top`` alone to 1.
            top: so many layers move at every step.
            interval: so many steps go by one draw.

        Raises:
            UserError: if the cost cannot be met.
        """
        n = len(self.layers)
        if not 1 <= top <= n:
            raise UserError(f"`top`: got {top}, expected from 1 to {n}, as many as there are layers")
        totals = [self._total(self._above(place)) for place in range(n)]
        least = _over(totals[n - top], totals[0])
        if not least * (1 - 1e-9) <= cost <= 1:
            raise UserError(
                f"`cost`: got {cost:g}, expected from {least:.3g}, the share of a full step that the top takes by "
                "itself, to 1"
            )
        # A term that no higher layer pays for is due from some depth on: going down never costs less.
        adds = [max(one - next_, 0.0) for one, next_ in zip(totals, [*totals[1:], 0.0], strict=True)]
        return control.least_variance(
            self.squared_norms, adds, cost * math.fsum(adds), top=top, interval=interval
        )

    @property
    def table(self) -> pd.DataFrame:
        """One row for each layer, from the bottom to the top; seconds, bytes.

        Columns: ``parameters``; ``forward``, the pass from where the layer begins until the next one does; ``weights``,
        the gradient of its weights; ``through``, passing the gradient on to what is below it (for the second layer from
        the bottom that is part of the ``weights`` of the first: neither is done without the other); ``optimizer``;
        ``adds``, what a step costs more if it goes down to this layer, and not only to the one above; ``kept``, the
        bytes that the forward pass keeps more then; ``squared_norm``, the mean of ||g_l||^2.
        """
        n, every = len(self.layers), self._above(0)
        totals = [self._total(self._above(place)) for place in range(n + 1)]
        kept = [paid(self.kept, self._above(place)) for place in range(n + 1)]
        back = self.times.backward
        weights = [paid(back, every) - paid(back, every - {place}) for place in range(n)]
        path = [paid(back, frozenset({place})) - weights[place] for place in range(n)]
        through = [0.0, *(max(path[place - 1] - path[place], 0.0) for place in range(1, n))]
        columns = {
            "parameters": self.parameters,
            "forward": self.times.by_layer,
            "weights": weights,
            "through": through,
            "optimizer": self.times.moving,
            "adds": [totals[place] - totals[place + 1] for place in range(n)],
            "kept": [kept[place] - kept[place + 1] for place in range(n)],
            "squared_norm": self.squared_norms,
        }
        return pd.DataFrame(columns, index=pd.Index(self.layers, name="layer"))

    def __str__(self) -> str:
        found = self.table[::-1]
        total = sum(self.squared_norms) or 1.0
        lines = pd.DataFrame(
            {
                "parameters": found["parameters"],
                **{said: _fixed(found[name], 1e3) for name, said in _SECONDS.items()},
                "keeps": _fixed(found["kept"], 1 / 2**20),
                "|g|^2": _fixed(found["squared_norm"], 1 / total),
            }
        )
        lines.index.name = None
        full = self.predict(control.Fixed(top=len(self.layers)))
        top = self.predict(control.Fixed(top=1))
        return (
            f"{lines.to_string()}\n\nThe top layer first; milliseconds, MiB, and the share of |g|^2. A step that goes "
            "down to a layer costs more\nthan one that ends above it by what is in adds and keeps.\n"
            f"All layers: {full}\nThe top alone: {top}"
        )

    def _above(self, place: int) -> frozenset[int]:
        return frozenset(range(place, len(self.layers)))

    def _seconds(self, moving: frozenset[int]) -> tuple[float, float, float]:
        """Forward pass, backward pass and optimiser where these layers move."""
        times = self.times
        forward = times.forward + times.keeping * paid(self.kept, moving)
        optimizer = times.optimizer + sum(times.moving[place] for place in moving)
        return forward, paid(times.backward, moving), optimizer

    def _total(self, moving: frozenset[int]) -> float:
        return sum(self._seconds(moving))


_SECONDS = {
    "forward": "forward",
    "weights": "weights",
    "through": "pass on",
    "optimizer": "optimiser",
    "adds": "adds",
}


def _fixed(column: Any, unit: float) -> list[str]:
    return [f"{unit * value:.3f}" for value in column]


def _over(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


@checked
def layer_costs(
    module: nn.Module,
    batches: Sequence[tuple[Any, Any]],
    loss: Callable[[Any, Any], Tensor],
    *,
    optimizer: Optimizer | None = None,
    layers: Sequence[str] | None = None,
    rounds: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> LayerCosts:
    r"""What each layer costs in a step of training, measured on a few batches, and what a choice of layers would save.

    Whole steps are timed for some ten sets of layers that move, and single operations for the structure: an operation
    of the backward pass runs if anything that it leads to moves, which is read off the graph of autograd, whatever
    connections there are around layers. The seconds of the operations are then fitted to those of the whole steps.
    What the forward pass keeps is seen by hooks on saved tensors, in one pass for each layer.

    Seconds are those of the module, the loss and the optimiser's step: not of loading batches, of clearing gradients,
    or of exchanging them between processes. What is compiled is measured as it is written, uncompiled. Parameters,
    gradients, buffers, the optimiser, the generators and the modes of modules are left as they are.

    Args:
        module: any module that :class:`regimes.control.LayerwiseSparse` takes, in the mode in which it is trained.
        batches: pairs of inputs and targets, of the size used in training: inputs as the module takes them, a tensor, a
            tuple for ``module(*x)``, a mapping for ``module(**x)``. Two to five are enough; more make ``squared_norms``
            better.
        loss: from what the module returns and the targets to a number, as ``torch.nn.functional.cross_entropy``.
        optimizer: that of the training. A copy of it is timed; without it the step of the optimiser counts nothing.
        layers: names of modules that are one layer each; see :func:`regimes.control.layer_plan`.
        rounds: how often all is measured, after once to warm up; medians are taken.
        clock: gives seconds. ``time.process_time`` on a machine with other work.

    Raises:
        UserError: if the layers cannot be ordered, a batch or the loss does not go with the module, the optimiser does
            not hold what may move or needs a closure, or the module has a policy or is a linearisation.

    Cost: some ten steps for each round, and one forward pass for each layer.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    >>> batch = torch.randn(16, 4), torch.randint(2, (16,))
    >>> costs = layer_costs(net, [batch], nn.functional.cross_entropy)
    >>> costs.layers, costs.predict(control.Fixed(top=3)).ratio
    (('0', '2', '4'), 1.0)
    """
    refuse_watched(module)
    if rounds < 1:
        raise UserError(f"`rounds`: got {rounds}, expected a whole number of at least 1")
    if any(isinstance(each, control.Linearized) for each in module.modules()):
        raise UserError(
            "`module`: holds a linearisation, which does not show the activations that it keeps; measure the module "
            "that was linearised"
        )
    _check_batches(batches)
    network = inside(module)
    with undisturbed(network):
        if (said := misfit(network, batches[0][0], "batches[0][0]")) is not None:
            raise said
    found = by_depth(network, take(batches[0][0], slice(0, 2)), layers)
    copied = None if optimizer is None else optimizer_copy(optimizer, network)
    loop = Loop(network, found, batches, loss, copied, clock)
    with undisturbed(network), as_written(network), _without_gradients(network), torch.enable_grad():
        _check_loss(loop)
        kept = kept_by_layers(network, loop.layers, partial(loop.forward, 0))
        squares = _squared_norms(loop)
        seconds = step_times(loop, lambda moving: paid(kept, moving), rounds)
    counts = tuple(sum(p.numel() for p in layer) for layer in loop.layers)
    return LayerCosts(found.layers, counts, squares, seconds, kept)


def _check_batches(batches: Sequence[tuple[Any, Any]]) -> None:
    """Raise unless there are pairs, the first of each of which can be inputs."""
    if not batches:
        raise UserError("`batches`: got none, expected pairs of inputs and targets, at least one")
    for place, (x, _) in enumerate(batches):
        check(x, f"batches[{place}][0]")


def _check_loss(loop: Loop) -> None:
    """Raise unless the loss of each batch is a number with a gradient."""
    loop.move(range(len(loop.layers)))
    for place, (x, y) in enumerate(loop.batches):
        try:
            value: Any = loop.forward(place)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            said = misfit(loop.module, x, f"batches[{place}][0]")
            raise said or UserError(
                f"`loss`: failed for the outputs and `batches[{place}][1]`, {shown(y)}: {str(error).splitlines()[0]}; "
                "expected a function from outputs and targets to a number"
            ) from error
        if not isinstance(value, Tensor) or value.dim() or not value.requires_grad:
            raise UserError(
                f"`loss`: gave {shown(value)} for `batches[{place}]`, expected a tensor of shape () that depends on "
                "the parameters"
            )
        if not bool(value.isfinite()):
            raise UserError(
                f"`loss`: is {float(value.detach())} for `batches[{place}]`, expected a finite number"
            )


def _squared_norms(loop: Loop) -> tuple[float, ...]:
    """The mean of |g_l|^2 over the batches."""
    sums = [0.0] * len(loop.layers)
    for batch in range(len(loop.batches)):
        loop.move(range(len(sums)))
        loop.forward(batch).backward()
        for place, layer in enumerate(loop.layers):
            grads = [p.grad.to_dense() for p in layer if p.grad is not None]
            sums[place] += sum(size(grad) ** 2 for grad in grads) / len(loop.batches)
    if not all(map(math.isfinite, sums)):
        raise UserError(
            "`batches`: give gradients that are not finite, expected a module that can be trained"
        )
    return tuple(sums)


@contextmanager
def _without_gradients(module: nn.Module) -> Iterator[None]:
    """Leave the gradients as they are."""
    grads = [(p, p.grad) for p in module.parameters()]
    try:
        for p, _ in grads:
            p.grad = None
        yield
    finally:
        for p, grad in grads:
            p.grad = grad
