"""Steps of any ``torch.optim`` optimiser, on the batches that ``train.descent`` takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from regimes.core.error import UserError
from regimes.core.state import State, Status
from regimes.core.tree import trainable
from regimes.train.descent import order

__all__ = ["MakeOptimizer", "make_optimizer", "optimised"]

MakeOptimizer = Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]
"""From the parameters, in the order of ``module.parameters()``, those that require grad, to what moves them."""


def make_optimizer(make: MakeOptimizer, network: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a network.

    Raises:
        UserError: if it is none, or moves other tensors.
    """
    way = "expected a function from parameters to one, as lambda p: torch.optim.AdamW(p, lr=1e-3)"
    if isinstance(make, torch.optim.Optimizer) or not callable(make):
        raise UserError(f"`optimizer`: got {type(make).__name__}, {way}")
    own = [parameter for parameter in trainable(network).values() if isinstance(parameter, nn.Parameter)]
    found = make(own)
    if not isinstance(found, torch.optim.Optimizer):
        raise UserError(f"`optimizer`: gave {type(found).__name__}, {way}")
    known = {id(parameter) for parameter in own}
    if any(id(each) not in known for group in found.param_groups for each in group["params"]):
        raise UserError(
            "`optimizer`: took parameters that it was not given, expected those it is called with: each model has "
            "its own"
        )
    return found


def optimised(
    model: nn.Module, samples: int, make: MakeOptimizer, batch_size: int | None, epochs: int, seed: int
) -> Iterator[State]:
    """Train in place: the states before each epoch and after the last one.

    A model ends "finished" after all epochs, or "diverged" where a loss or a parameter is not finite. Time is nan: the
    steps of an optimiser follow no gradient flow.

    Args:
        model: from indices (b,) of samples to their losses (b,).
        samples: n of the training set.
        make: what makes the optimiser.
        batch_size, epochs, seed: as in ``train.descent``, whose batches these are.
    """
    optimizer = make_optimizer(make, model)
    origin = _values(model)
    size = min(batch_size or samples, samples)
    epoch = -(-samples // size)
    finite = True
    for e in range(epochs):
        yield _state(model, origin, e * epoch, "running")
        seen = torch.arange(samples) if size == samples else order(seed, e, samples)
        for index in seen.split(size):
            finite = _step(model, optimizer, index) and finite
        if not finite or not all(bool(value.isfinite().all()) for value in _values(model).values()):
            return (yield _state(model, origin, (e + 1) * epoch, "diverged"))
    yield _state(model, origin, epochs * epoch, "finished")


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, index: Tensor) -> bool:
    """One step on the mean loss of a batch; whether that was finite."""
    seen: list[Tensor] = []

    def closure() -> float:
        optimizer.zero_grad()
        loss = model(index).mean()
        loss.backward()
        seen.append(loss.detach())
        return float(loss.detach())

    optimizer.step(closure)
    return bool(torch.stack(seen).isfinite().all())


def _values(model: nn.Module) -> dict[str, Tensor]:
    """Its parameters, as they are now."""
    return {name: value.detach().clone() for name, value in trainable(model).items()}


def _state(model: nn.Module, origin: dict[str, Tensor], step: int, status: Status) -> State:
    """A state that later steps leave alone."""
    return State(model, _values(model), origin, step=step, time=float("nan"), status=status)
