"""Declared trainable, did not move: which parameters, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regimes.core.batch import check_finite
from regimes.core.check import checked
from regimes.core.error import UserError, nearest
from regimes.core.tree import Tree, named

__all__ = ["Unmoved", "WhyUnmoved", "unmoved"]

WhyUnmoved = Literal[
    "frozen",
    "switched off",
    "tied",
    "left out",
    "replaced",
    "rate 0",
    "no gradient",
    "cleared",
    "not finite",
    "zero gradient",
    "rounding",
    "not stepped",
]
"""Why a parameter did not move; :func:`unmoved` has the list."""

_WORDS: Mapping[WhyUnmoved, str] = {
    "frozen": "it does not require grad, but the optimiser holds it; leave it out, or call .requires_grad_()",
    "switched off": "it does not require grad any more, after it did; call .requires_grad_()",
    "tied": "it does not require grad, which freezes it under all of its names ({names}); untie it, or thaw it",
    "left out": "no optimiser holds it; add it by optimizer.add_param_group",
    "replaced": "no optimiser holds it, but one holds a tensor of its shape that the module has no more: it was "
    "replaced after the optimiser was made; make the optimiser again",
    "rate 0": "the learning rate of its group is 0",
    "no gradient": "no gradient reached it: it is not used, or behind detach, no_grad or .data, or required none when "
    "the graph was recorded or compiled",
    "cleared": "all gradients are cleared, so that it cannot be told whether it had one; call this after step() and "
    "before zero_grad()",
    "not finite": "its gradient is nan or infinite, so that steps are skipped",
    "zero gradient": "its gradient is 0: what it feeds is multiplied by 0, dead or saturated",
    "rounding": "its updates are below the last digit of its dtype; keep it in float32, or raise the learning rate",
    "not stepped": "it has a gradient, but nothing applied it: step() was not called or was skipped, or the values "
    "were put back",
}
# A gradient that is smaller than that of its layer by this many units of rounding, or by this factor, counts as 0.
_NOISE, _SMALL = 1e3, 1e-2


@dataclass(frozen=True)
class Unmoved:
    """A parameter that was to move and did not.

    Attributes:
        name: by ``module.named_parameters()``.
        why: in a word.
        text: what that means, and the way out.
        names: all of its names; several of a tied parameter.
    """

    name: str
    why: WhyUnmoved
    text: str = field(repr=False)
    names: tuple[str, ...] = field(repr=False)

    def __str__(self) -> str:
        return f"'{self.name}' did not move: {self.text}"


@checked
def unmoved(
    module: nn.Module,
    before: Tree,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    *,
    declared: Sequence[str] = (),
) -> list[Unmoved]:
    """Which parameters were declared trainable and did not move at all, each with the reason.

    Declared trainable are parameters that require grad, those that an optimiser holds, and ``declared`` ones. A
    parameter has moved if any of its numbers has, so that an embedding with rows that were never seen, or a layer with
    units that are dead, has. Call it in any loop after ``step()`` and before ``zero_grad()``, from a few steps on: what
    starts behind a factor of 0 (A of a low-rank adapter) moves from the second step on.

    The first of these reasons that holds is told:

    - "tied": it does not require grad, under any of its several names;
    - "switched off": it does not require grad, but has a gradient or a state in an optimiser, or was declared and no
      optimiser holds it;
    - "frozen": an optimiser holds it, but it does not require grad;
    - "left out": it requires grad, but no optimiser holds it;
    - "replaced": the same, and an optimiser holds a tensor of the same shape that is no part of the module;
    - "rate 0": the learning rate of its group is 0;
    - "no gradient": ``grad`` is None (``detach``, ``no_grad``, ``.data``, unused, frozen when the graph was compiled);
    - "cleared": ``grad`` is None for all parameters, and no state of an optimiser tells more;
    - "not finite": the gradient is nan or infinite;
    - "zero gradient": it is 0;
    - "rounding": rate times gradient (or the rate, of an optimiser that divides by the gradient's size) is below the
      last digit of each number of the parameter;
    - "not stepped": none of these.

    A vector without a gradient to speak of in a layer that moves otherwise is not told: 0, or below 1e3 units of
    rounding (1 % at most) of the largest entry in what moves of its layer. The loss does not depend on it: it is a bias
    in front of batch norm, or of the keys of attention.

    Args:
        module: after some steps.
        before: its values before them, such as ``copy.deepcopy(module.state_dict())``.
        optimizer: the optimiser, or several; without it nothing is said of optimisers.
        declared: names of parameters that were to move, whatever they require now.

    Returns:
        One entry for each such parameter, in the order of ``module.named_parameters()``; none of a healthy run.

    Raises:
        UserError: if names or shapes differ, a value is not finite (a run that diverged), or ``before`` shares memory
            with the module.

    Cost: three passes over each parameter.

    >>> import copy
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    >>> optimizer = torch.optim.SGD(net[1].parameters(), lr=0.1)
    >>> before = copy.deepcopy(net.state_dict())
    >>> net(torch.ones(4, 2)).sum().backward()
    >>> optimizer.step()
    >>> print(unmoved(net, before, optimizer)[0])
    '0.weight' did not move: no optimiser holds it; add it by optimizer.add_param_group
    """
    start, aliases, held = named(module, before, "before"), _aliases(module), _Held.of(optimizer)
    wanted = _declared(declared, aliases)
    own = dict(module.named_parameters())
    moved = {name: _has_moved(name, p, start[name]) for name, p in own.items() if name in start}
    strongest: dict[str, float] = {}  # the largest gradient of what moves, by layer
    for name in (name for name, has in moved.items() if has):
        layer, grad = name.rpartition(".")[0], held.gradient(own[name])
        strongest[layer] = max(strongest.get(layer, 0.0), 0.0 if grad is None else _largest(grad))
    told = any(held.gradient(p) is not None for p in own.values())
    found = []
    for name, p in own.items():
        claimed = p.requires_grad or name in wanted or id(p) in held.groups
        if moved.get(name) or not claimed or not p.numel():
            continue
        why = (
            _why_frozen(p, name in wanted, aliases[name], held)
            or _why_not_held(p, held, list(own.values()))
            or _why_no_step(p, held, strongest.get(name.rpartition(".")[0]), told)
        )
        if why is not None:
            text = _WORDS[why].format(names=", ".join(aliases[name]))
            found.append(Unmoved(name, why, text, aliases[name]))
    return found


@dataclass(frozen=True, eq=False)
class _Held:
    """What optimisers know of parameters, by the identity of these."""

    given: bool
    groups: Mapping[int, Mapping[str, Any]]
    states: Mapping[int, Mapping[str, Any]]
    tensors: tuple[Tensor, ...]

    @classmethod
    def of(cls, optimizer: Optimizer | Sequence[Optimizer] | None) -> _Held:
        every = () if optimizer is None else (optimizer,) if isinstance(optimizer, Optimizer) else optimizer
        if optimizer is not None and not every:
            raise UserError("`optimizer`: got an empty sequence, expected at least one optimiser, or None")
        pairs = [(group, p) for one in every for group in one.param_groups for p in group["params"]]
        states = {id(p): state for one in every for p, state in one.state.items()}
        return cls(bool(every), {id(p): group for group, p in pairs}, states, tuple(p for _, p in pairs))

    def gradient(self, p: Tensor) -> Tensor | None:
        """The gradient, or what a state of an optimiser keeps of earlier ones."""
        kept = [p.grad, *(self.states.get(id(p), {}).get(key) for key in _KEPT)]
        found = next((each for each in kept if isinstance(each, Tensor)), None)
        return None if found is None else found.detach().to_dense() if found.is_sparse else found.detach()

    def adapts(self, p: Tensor) -> bool:
        """Whether the size of its steps is that of the rate, not of the gradient."""
        return any(isinstance(self.states.get(id(p), {}).get(key), Tensor) for key in _SIZES)


_SIZES = ("exp_avg_sq", "exp_inf", "square_avg", "sum", "row_var", "variance")
_KEPT = ("momentum_buffer", "exp_avg", "square_avg", "sum")


def _aliases(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """All names of each parameter, by its first."""
    names: dict[int, list[str]] = {}
    for name, p in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    return {every[0]: tuple(every) for every in names.values()}


def _declared(names: Sequence[str], aliases: Mapping[str, tuple[str, ...]]) -> set[str]:
    """The first names of what is declared trainable."""
    first = {alias: name for name, every in aliases.items() for alias in every}
    for name in names:
        if name not in first:
            raise UserError(
                f"`declared`: got {name!r}, expected names of module.named_parameters(){nearest(name, first)}"
            )
    return {first[name] for name in names}


def _has_moved(name: str, p: Tensor, start: Tensor) -> bool:
    """Whether any of its numbers is another one."""
    if start.dtype != p.dtype:
        raise UserError(f"`before`: '{name}' is of {start.dtype}, expected {p.dtype}, as in the module")
    if p.numel() and p.data_ptr() == start.data_ptr():
        raise UserError(
            f"`before`: '{name}' shares its memory with the module, so that it changes with it; take "
            "copy.deepcopy(module.state_dict())"
        )
    for argument, value in (("module", p.detach()), ("before", start)):
        check_finite(value, f"`{argument}`: '{name}'", "a run that diverged moves nothing")
    return not torch.equal(p.detach(), start.to(p.device))


def _why_frozen(p: Tensor, wanted: bool, names: tuple[str, ...], held: _Held) -> WhyUnmoved | None:
    """Of what does not require grad."""
    if p.requires_grad:
        return None
    if len(names) > 1:
        return "tied"
    off = held.gradient(p) is not None or (wanted and id(p) not in held.groups)
    return "switched off" if off else "frozen"


def _why_not_held(p: Tensor, held: _Held, own: Sequence[Tensor]) -> WhyUnmoved | None:
    """Of what no optimiser moves."""
    if not held.given:
        return None
    if id(p) in held.groups:
        rate = held.groups[id(p)].get("lr")
        return "rate 0" if rate is not None and float(rate) == 0 else None
    known = {id(each) for each in own}
    gone = any(id(each) not in known and each.shape == p.shape for each in held.tensors)
    return "replaced" if gone else "left out"


def _why_no_step(p: Tensor, held: _Held, strongest: float | None, told: bool) -> WhyUnmoved | None:
    """Of what an optimiser holds; None of a vector on which the loss does not depend."""
    grad = held.gradient(p)
    if grad is None:
        return "no gradient" if told else "cleared"
    if not grad.isfinite().all():
        return "not finite"
    noise = 0.0 if strongest is None else strongest * min(_NOISE * torch.finfo(p.dtype).eps, _SMALL)
    if p.dim() < 2 and strongest is not None and _largest(grad) <= noise:
        return None
    if not grad.any():
        return "zero gradient"
    rate = float(held.groups[id(p)].get("lr", 0.0)) if held.given else 0.0
    step = rate if held.adapts(p) else rate * grad.abs().double()
    lost = held.given and bool((step <= 2 * torch.finfo(p.dtype).eps * p.detach().abs().double()).all())
    return "rounding" if lost else "not stepped"


def _largest(value: Tensor) -> float:
    """The largest entry, by its size."""
    return float(value.abs().max()) if value.numel() else 0.0
