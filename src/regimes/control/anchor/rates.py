"""The rates of an SGD optimiser, and the stability bound of a block in its metric."""

from __future__ import annotations

from typing import final

from torch import Tensor
from torch.optim import SGD, Optimizer

from regimes.control.anchor.stability import MeanLoss, growth, limit, stable_rate
from regimes.control.linear import Linearized
from regimes.core.batch import Inputs
from regimes.core.error import UserError
from regimes.core.loss import Loss

__all__ = ["Rates"]

# Batches that are looked at for the stability bound of a block.
_BATCHES = 4


@final
class Rates:
    """The rates of ``torch.optim.SGD`` for a linearised network.

    Args:
        linear: the network.
        optimizer: of its parameters.

    Raises:
        UserError: if no bound is known for the optimiser.
    """

    def __init__(self, linear: Linearized, optimizer: Optimizer) -> None:
        if type(optimizer) is not SGD:
            raise UserError(
                f"`stable`: no bound is known for {type(optimizer).__name__}, whose preconditioner may move at every "
                "step; expected torch.optim.SGD, or stable=None"
            )
        self._linear, self._groups = linear, optimizer.param_groups
        kinds = {(g["momentum"], g["nesterov"], g["dampening"], g["maximize"]) for g in self._groups}
        if len(kinds) > 1 or next(iter(kinds))[2:] != (0, False):
            raise UserError(
                "`stable`: the bound is known for one momentum in all groups, without `dampening` and `maximize`; take "
                "such an optimiser, or stable=None"
            )

    def largest(self) -> float:
        """The largest rate of a group, now."""
        return max(float(group["lr"]) for group in self._groups)

    def momentum(self) -> float:
        """mu."""
        return float(self._groups[0]["momentum"])

    def limit(self) -> float:
        """The largest eta lambda that is stable."""
        return limit(self.momentum(), self._groups[0]["nesterov"])

    def growth(self, bound: float) -> float:
        """The factor of the worst direction of a block in a step at the rates as they are now, at least 1."""
        step = self.limit() * self.largest() / bound
        return max(growth(step, self.momentum(), self._groups[0]["nesterov"]), 1.0)

    def bound(self, data: tuple[Inputs, Tensor, Loss | MeanLoss], batch_size: int | None) -> float:
        """Up to which largest rate the block is stable, all rates in proportion as they are now."""
        top = self.largest()
        if not top:
            return float("inf")
        names = {id(p): name for name, p in self._linear.named_parameters()}
        rates = {
            names[id(p)]: float(group["lr"]) / top
            for group in self._groups
            for p in group["params"]
            if id(p) in names and p.requires_grad
        }
        found = stable_rate(
            self._linear,
            *data,
            momentum=self.momentum(),
            nesterov=self._groups[0]["nesterov"],
            batch_size=batch_size,
            batches=_BATCHES,
            rates=rates,
        )
        decay = max(float(group["weight_decay"]) * float(group["lr"]) / top for group in self._groups)
        # Weight decay adds its factor to every eigenvalue.
        return (
            self.limit() / (self.limit() / found.rate + decay)
            if found.rate < float("inf") or decay
            else found.rate
        )
