r"""One linear block of one member on its whole set, in four ways that give the same parameters, up to rounding.

"module" takes each step with the linearised module, "held" with what is kept of it (``control.Linearized.hold``),
"function" with its kernel in function space, and "closed" takes all steps of the squared loss at once. The last two
come back by one product: with R the rates of a law of width, v the velocity at the anchor a, and c and b those of
``train.discrete``,

.. math:: w = a - \eta\,(\mu + \dots + \mu^K)\, R v + R J^\top c / \alpha, \qquad
          v \leftarrow \mu^K v + J^\top b / \alpha .
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from regimes.control.linear import Linearized
from regimes.control.width import rates
from regimes.core.loss import Squared
from regimes.core.tree import owners
from regimes.kernel.ntk import ntk
from regimes.train.discrete import Motion, Stepping, carried, check_rate, in_closed_form, step_by_step
from regimes.train.frozen_kernel import KernelMatrix
from regimes.train.program import Program
from regimes.train.target import as_targets

__all__ = ["BlockWay", "LinearBlock", "one_rate_a_layer", "stepped"]

BlockWay = Literal["module", "held", "function", "closed"]
"""How the steps of a block are taken."""


@dataclass(frozen=True, eq=False)
class LinearBlock:
    """One member at its anchor.

    Attributes:
        program: whose members are linear.
        member: which.
        x, y: its training set, (n, ...) and (n,).
        offsets: f(w0, x), (n, c), or None.
        w: its parameters, the anchor: (stride,).
        v: its velocity, (stride,).
        lr: eta.
        momentum: mu.
    """

    program: Program
    member: int
    x: Tensor
    y: Tensor
    offsets: Tensor | None
    w: Tensor
    v: Tensor
    lr: float
    momentum: float

    @property
    def linear(self) -> Linearized:
        """f(a, x) + J (w - a)."""
        assert self.program.linear is not None
        return self.program.linear.networks[self.member]

    @property
    def alpha(self) -> float:
        """The scale of the member."""
        return float(self.program.alpha[self.member])

    @cached_property
    def index(self) -> Tensor:
        """The member, (1,)."""
        return torch.tensor([self.member], device=self.w.device)

    def outputs(self, w: Tensor) -> Tensor:
        """F(w, x), (n, c), for a row."""
        x = self.x[None] if self.program.own else self.x
        offsets = None if self.offsets is None else self.offsets[None]
        return self.program.outputs(w[None], self.index, x, offsets)[0]

    def scaled(self, raw: Tensor) -> Tensor:
        """F from f, (n, c)."""
        raw = raw if raw.dim() == 2 else raw[:, None]
        return self.alpha * (raw if self.offsets is None else raw - self.offsets)

    def tree(self, row: Tensor) -> dict[str, Tensor]:
        """A row by name."""
        return self.program.layout.split(row[: self.program.layout.total])

    def row(self, tree: dict[str, Tensor]) -> Tensor:
        """The inverse of :meth:`tree`."""
        found = torch.zeros_like(self.w)
        found[: self.program.layout.total] = self.program.layout.join(tree)
        return found

    def rated(self, row: Tensor) -> Tensor:
        """R times a row."""
        return row if self.program.rates is None else row * self.program.rates


def stepped(block: LinearBlock, way: BlockWay, steps: int) -> tuple[Tensor, Tensor]:
    """w and v after so many steps.

    Raises:
        UserError: if the squared loss diverges at that rate, in closed form.
    """
    if way == "module":
        return _loop(block, steps, _by_module(block))
    if way == "held":
        pull = _by_tape(block)
        return _loop(block, steps, pull or _by_module(block))
    return _in_function_space(block, steps, closed=way == "closed")


def _loop(block: LinearBlock, steps: int, gradient: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The steps of ``train.descent``."""
    w, v = block.w, block.v
    for _ in range(steps):
        v = v * block.momentum + gradient(w)
        w = w + block.rated(v) * -block.lr
    return w, v


def _by_module(block: LinearBlock) -> Callable[[Tensor], Tensor]:
    """The gradient over alpha^2, at a row."""
    own = block.program.own
    x = block.x[None] if own else block.x
    offsets = None if block.offsets is None else block.offsets[None]
    return lambda w: block.program.gradient(w[None], block.index, x, block.y, offsets)[2][0]


def _by_tape(block: LinearBlock) -> Callable[[Tensor], Tensor] | None:
    """The same by what is kept; None where nothing can be."""
    with torch.inference_mode(False):
        tape = block.linear.tape((block.x.clone(),), {})
    if tape is None:
        return None
    names, every = block.program.layout.names, [True] * len(block.program.layout.names)

    def gradient(w: Tensor) -> Tensor:
        tree = block.tree(w)
        with torch.inference_mode(False), torch.no_grad():
            raw = tape.at([tree[name] for name in names])
            slope = block.program.loss.slope(block.scaled(raw), block.y) / (len(block.y) * block.alpha)
            pulled = tape.pull(slope.reshape(raw.shape), every)
        return block.row({name: g for name, g in zip(names, pulled, strict=True) if g is not None})

    return gradient


def _in_function_space(block: LinearBlock, steps: int, *, closed: bool) -> tuple[Tensor, Tensor]:
    loss, n = block.program.loss, len(block.y)
    kernel = KernelMatrix(_kernel(block))
    with torch.inference_mode(False), torch.enable_grad():
        leaves = {
            name: each.clone().requires_grad_() for name, each in block.tree(block.rated(block.v)).items()
        }
        value, slope = block.linear.pushed((block.x,), {}, leaves)
    outputs = block.scaled(value.detach()).double()
    motion = Motion.start(outputs, block.alpha * slope.detach().reshape(outputs.shape).double())
    rule = Stepping(block.lr, block.momentum, 1 / n)
    if isinstance(loss, Squared):
        wanted = as_targets(block.y, n, outputs.shape[1], loss).to(outputs)
        if closed:
            if steps > 1:
                check_rate(rule, float(kernel.eigen[0].amax()))
            after = in_closed_form(kernel, wanted, rule, motion, steps)
        else:
            after = step_by_step(kernel, lambda f: f - wanted, rule, motion, steps)
    else:
        y = block.y.double() if block.y.is_floating_point() else block.y
        after = step_by_step(kernel, lambda f: loss.slope(f, y), rule, motion, steps)
    c, b = (_pulled(block, leaves, value, slope, each) for each in (after.c, after.b))
    far, mu = block.lr * carried(steps, block.momentum), block.momentum
    return block.w - far * block.rated(block.v) + block.rated(c), mu**steps * block.v + b


def _pulled(block: LinearBlock, leaves: dict[str, Tensor], value: Tensor, slope: Tensor, u: Tensor) -> Tensor:
    """J^T u / alpha, as a row."""
    if not slope.requires_grad:
        return torch.zeros_like(block.w)
    u = (u / block.alpha).to(value).reshape(value.shape)
    with torch.inference_mode(False):
        found = torch.autograd.grad(slope, [*leaves.values()], u, retain_graph=True, materialize_grads=True)
    return block.row({name: each.to_dense() for name, each in zip(leaves, found, strict=True)})


def _kernel(block: LinearBlock) -> Tensor:
    """J R J^T of f at the anchor, (n, n) for one output and (n, n, c, c) for more."""
    network, parameters = block.linear.nonlinear, block.tree(block.w)
    single = block.outputs(block.w).shape[1] == 1
    form = "trace" if single else "full"
    if block.program.rates is None:
        return ntk(network, block.x, reduce=form, parameters=parameters)
    each, by_name = ntk(network, block.x, reduce=form, parameters=parameters, by_layer=True), rates(network)
    factors = {owner: by_name[name] for name, owner in owners(network).items()}
    total: Tensor | float = 0.0
    for owner, part in each.items():
        total = total + factors[owner] * part
    assert isinstance(total, Tensor)
    return total


def one_rate_a_layer(program: Program) -> bool:
    """Whether the parameters of each layer share their rate, so that a kernel by layers tells all."""
    network = program.networks[0]
    by_name, by_owner = rates(network), owners(network)
    pairs = {(by_owner[name], by_name[name]) for name in by_owner}
    return len(pairs) == len({owner for owner, _ in pairs})
