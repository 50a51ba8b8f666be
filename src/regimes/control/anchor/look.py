"""What an adaptive rule goes by: the trust ratio, the gap and the drift of the kernel since the anchor."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from regimes.control.anchor.block import Block, Findings
from regimes.control.anchor.rules import Adaptive
from regimes.control.anchor.tangents import Tangents
from regimes.control.tangent import Route
from regimes.core.batch import Inputs
from regimes.core.derivative import Output
from regimes.core.stream import generator
from regimes.core.tree import Tree, size, sub

__all__ = ["Look", "adapted", "kernel_drift", "probed", "relative_gap", "trust_ratio"]


def trust_ratio(start: float, now: float, predicted: float) -> float:
    """rho = (L(f(a)) - L(f(w))) / (L(f(a)) - L(f_lin(w))): actual over predicted decrease of the loss.

    Where an increase was predicted (noise of small batches, momentum) it is predicted over actual increase, so that a
    network that does worse than predicted is below 1 there as well; and 1 where it does no worse. nan if a loss is.
    """
    actual, said = start - now, start - predicted
    if math.isnan(actual) or math.isnan(said):
        return math.nan
    if said > 0:
        return actual / said
    return 1.0 if actual >= said else said / actual


def relative_gap(start: Tensor, now: Tensor, linear: Tensor) -> float:
    """|f(w) - f_lin(w)| / |f(w) - f(a)|; 0 where both are 0, inf where the network alone has not moved."""
    return _ratio(size(now - linear), size(now - start))


def kernel_drift(now: Tensor, start: Tensor) -> float:
    """|(K(w) - K(a)) V| / |K(a) V|, from the products with V; 0 where both are 0."""
    return _ratio(size(now - start), size(start))


def adapted(rule: Adaptive, began: int, step: int, reading: Callable[[], Findings]) -> Block | None:
    """The block that begins at a step by an adaptive rule, if one does.

    Args:
        rule: what is looked at.
        began: the step at which the block under way began.
        step: how many steps have been taken.
        reading: looks; called where the rule asks for it.
    """
    taken = step - began
    if rule.ends(taken):
        return Block(step, "most")
    if not rule.looks(taken):
        return None
    found = reading()
    known = {n: v for n in ("trust", "gap", "drift") if not math.isnan(v := getattr(found, n))}
    why = rule.says(found)
    return None if why is None else Block(step, why, **known)


def probed(count: int, rule: Adaptive) -> Tensor:
    """Which of so many samples are looked at, in rising order."""
    drawn = torch.randperm(count, generator=generator(rule.seed, "anchor", "samples"))
    return drawn[: rule.samples].sort().values


@final
class Look:
    """Looks at one network, whose anchor moves, on fixed samples.

    Args:
        network: f.
        x: the samples that are looked at.
        loss: L, from the outputs f.
        rule: what is looked at.
        output: what picks the outputs from what the network returns.
    """

    def __init__(
        self,
        network: nn.Module,
        x: Inputs,
        loss: Callable[[Tensor], Tensor],
        rule: Adaptive,
        output: Output | None = None,
    ) -> None:
        self._network, self._x, self._loss, self._rule, self._output = network, x, loss, rule, output
        self._route: Route | None = None

    def reading(self, anchor: Tree, now: Tree) -> Findings:
        """The numbers that the rule asks for, at the anchor a and the parameters w."""
        there, here = self._at(anchor), self._at(now)
        start, along = there.push(sub(now, anchor))
        moved, linear, trust, gap = here.value(), start + along, math.nan, math.nan
        if self._rule.trust is not None:
            with torch.no_grad():
                trust = trust_ratio(*(float(self._loss(each)) for each in (start, moved, linear)))
        if self._rule.gap is not None:
            gap = relative_gap(start, moved, linear)
        drift = math.nan if self._rule.drift is None else self._drift(there, here, start)
        return Findings(trust, gap, drift)

    def _drift(self, there: Tangents, here: Tangents, like: Tensor) -> float:
        drawn = generator(self._rule.seed, "anchor", "directions")
        shape = (self._rule.directions, *like.shape)
        v = torch.randn(shape, generator=drawn, dtype=torch.float64).to(like)
        before, after = (torch.stack([at.kernel(each) for each in v]) for at in (there, here))
        return kernel_drift(after, before)

    def _at(self, point: Tree) -> Tangents:
        found = Tangents(self._network, point, self._x, self._output, self._route)
        self._route = found.route
        return found


def _ratio(far: float, whole: float) -> float:
    if far == 0.0:
        return 0.0
    return far / whole if whole else math.inf
