"""Activation stability: how many ReLU units are on the same side as at the start."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from regimes.control.linear import Linearized
from regimes.control.scale import unscaled
from regimes.core.batch import Inputs, check, count, device_of, take
from regimes.core.check import checked
from regimes.core.derivative import check_separable, exact, value
from regimes.core.error import UserError
from regimes.core.state import State
from regimes.core.tree import Tree, named_pair
from regimes.measure.probe import Columns, Snapshot, numbers

__all__ = ["Pattern", "pattern"]


_Call = tuple[str, int]  # the submodule that calls, and the number of its call

# Samples at a time: the sides of all units on a chunk are held at once.
_CHUNK = 128

_aten = torch.ops.aten
_ALWAYS = {
    _aten.relu,
    _aten.relu_,
    _aten.leaky_relu,
    _aten.leaky_relu_,
    _aten._prelu_kernel,
    _aten.rrelu_with_noise,
    _aten.rrelu_with_noise_,
}
# These have their kink at their second argument.
_AT_BOUND = {
    _aten.clamp,
    _aten.clamp_,
    _aten.clamp_min,
    _aten.clamp_min_,
    _aten.hardtanh,
    _aten.hardtanh_,
    _aten.threshold,
    _aten.threshold_,
}


@overload
def pattern(
    module: nn.Module,
    x: Inputs,
    *,
    origin: Tree,
    parameters: Tree | None = None,
    by_layer: Literal[False] = False,
) -> float: ...
@overload
def pattern(
    module: nn.Module, x: Inputs, *, origin: Tree, parameters: Tree | None = None, by_layer: Literal[True]
) -> dict[str, float]: ...
@checked
def pattern(
    module: nn.Module,
    x: Inputs,
    *,
    origin: Tree,
    parameters: Tree | None = None,
    by_layer: bool = False,
) -> float | dict[str, float]:
    """The activation stability: the share of (unit, sample) pairs whose unit is on the same side at w and at w0.

    A layer is one call of an activation with a kink at 0, and its share that of the pre-activations z for which
    z > 0 at w if and only if z > 0 at w0; the value is the mean of the shares of the layers. It is 1 in the lazy
    limit. The cost is two forward passes.

    Found are ReLU, leaky ReLU, PReLU, RReLU, ReLU6, ``clamp(min=0)`` and ``threshold`` at 0, as modules, functions
    or methods, in place or not: whatever reaches the kernels of torch under these names. A ReLU written in
    another way (``torch.maximum``, ``torch.where``) or inside a compiled graph is not seen.

    Args:
        module: F, scaled or not; what a scaled module subtracts does not count.
        x: inputs.
        origin: w0 by name, as ``State.origin``.
        parameters: w by name (default: the parameters of the module), as ``State.parameters``.
        by_layer: the shares one by one, by the name of the submodule that makes the call; where it makes several,
            with the number of the call: "block[0]", "block[1]".

    Returns:
        A number from 0 to 1, or one per layer; nan where a pre-activation is nan.

    Raises:
        UserError: if the module calls no such activation, or other ones at w than at w0; if names are missing or
            unknown, shapes are not those of the module, the inputs are empty, or the module couples samples or is
            random.

    Source: Chizat, Oyallon, Bach 2019, section 3.2.

    >>> net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> start = {name: p.detach().clone() for name, p in net.named_parameters()}
    >>> flipped = start | {"0.weight": -start["0.weight"], "0.bias": -start["0.bias"]}
    >>> x = torch.randn(3, 2)
    >>> pattern(net, x, origin=start), pattern(net, x, origin=start, parameters=flipped)
    (1.0, 0.0)
    """
    shares = _by_layer(module, x, origin, parameters)
    return shares if by_layer else sum(shares.values()) / len(shares)


def _by_layer(
    module: nn.Module, x: Inputs, origin: Tree, parameters: Tree | None, first: nn.Module | None = None
) -> dict[str, float]:
    """The share of each layer, of the architecture at the start if that was another; checked."""
    check(x, "x")
    now, start = named_pair(module, parameters, origin)
    network = unscaled(module)[0]
    check_separable(network)
    prefix = "" if network is module else "network"
    before, after = (
        {name.removeprefix(f"{prefix}."): value.detach() for name, value in tree.items()}
        for tree in (start, now)
    )
    shares = _shares(unscaled(first or module)[0], network, x, before, after, prefix)
    if not shares:
        raise UserError(
            "`module`: calls no activation with a kink at 0 (ReLU, leaky ReLU, clamp(min=0), ...), so that its "
            "units have no sides; smooth activations have no pattern, see measure.gap"
        )
    return shares


def _shares(
    first: nn.Module, network: nn.Module, x: Inputs, before: Tree, after: Tree, prefix: str
) -> dict[str, float]:
    """The share of each layer, by its label, between one network before and another of its kind after."""
    same: dict[_Call, float] = {}
    total: dict[_Call, int] = {}
    for each, tree in ((first, before), (network, after)):
        if isinstance(each, Linearized):  # its first call runs the network more than once
            value(each, tree, take(x, slice(0, 1)))
    for start in range(0, count(x), _CHUNK):
        part = take(x, slice(start, start + _CHUNK))
        then, now = _sides(first, before, part, prefix), _sides(network, after, part, prefix)
        if [(key, side.up.shape) for key, side in then.items()] != [(k, s.up.shape) for k, s in now.items()]:
            raise UserError(
                "`module`: calls other activations at `parameters` than at `origin`, or on other shapes; "
                "expected the same units at both, to compare them one by one"
            )
        for key, side in then.items():
            equal = (side.up == now[key].up).sum()
            known = not (side.undecided or now[key].undecided)
            same[key] = same.get(key, 0.0) + (float(equal) if known else math.nan)
            total[key] = total.get(key, 0) + side.up.numel()
    several = {owner for owner, number in same if number > 0}
    return {
        f"{owner}[{number}]" if owner in several else owner: same[owner, number] / total[owner, number]
        for owner, number in same
    }


@dataclass(frozen=True, eq=False)
class _Side:
    """On which side the units of one layer are: z > 0, and whether some z is nan."""

    up: Tensor
    undecided: bool


def _sides(network: nn.Module, parameters: Tree, x: Inputs, prefix: str) -> dict[_Call, _Side]:
    """The sides of the units of each layer, in the order of the calls."""
    recorder = _Recorder()
    with (
        exact(device_of(x)),
        _without_fast_path(),
        _owners(network, recorder.owners, prefix),
        recorder,
    ):
        value(network, parameters, x)
    return recorder.sides


class _Recorder(TorchDispatchMode):
    """While active: looks at what goes into each activation. In-place ones have not run yet."""

    def __init__(self) -> None:
        super().__init__()
        self.owners: list[str] = []
        self.sides: dict[_Call, _Side] = {}
        self._calls: dict[str, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if _has_kink_at_zero(func, args, named):
            z, owner = args[0], self.owners[-1]
            number = self._calls.get(owner, 0)
            self._calls[owner] = number + 1
            self.sides[owner, number] = _Side(z > 0, bool(z.isnan().any()))
        return func(*args, **named)


def _has_kink_at_zero(func: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> bool:
    packet = getattr(func, "overloadpacket", None)
    if not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
        return False
    if packet in _ALWAYS:
        return True
    if packet not in _AT_BOUND:
        return False
    bound = args[1] if len(args) > 1 else next((named[k] for k in ("min", "min_val") if k in named), None)
    # A clamp to an interval is no unit, but ReLU6 is a hardtanh from 0 on.
    top = args[2] if len(args) > 2 else named.get("max")
    bounded = top is not None and packet in (_aten.clamp, _aten.clamp_)
    return isinstance(bound, int | float) and bound == 0 and not bounded


@contextmanager
def _owners(network: nn.Module, path: list[str], prefix: str) -> Iterator[None]:
    """Inside the block ``path`` ends with the name of the submodule whose forward is running."""
    path.append(prefix)
    with ExitStack() as hooks:
        for name, part in network.named_modules(prefix=prefix):
            # Scripted parts take no hooks: what they call counts as called by the module around them.
            if part is network or isinstance(part, torch.jit.ScriptModule):
                continue

            def enter(_part: nn.Module, _args: Any, name: str = name) -> None:
                path.append(name)

            def leave(_part: nn.Module, _args: Any, _out: Any) -> None:
                path.pop()

            hooks.callback(part.register_forward_pre_hook(enter, prepend=True).remove)
            hooks.callback(part.register_forward_hook(leave, always_call=True).remove)
        yield


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Inside the block a transformer layer calls its activation, in place of one kernel for everything."""
    before = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@checked
@dataclass(frozen=True, eq=False)
class Pattern(Snapshot):
    """The activation stability of a member since its start. Value: ``pattern`` (see :func:`pattern`).

    Attributes:
        inputs: x, (n, ...).
    """

    inputs: Tensor

    @property
    def columns(self) -> Columns:
        """``pattern``."""
        return numbers("pattern")

    def look(self, state: State) -> Mapping[str, float]:
        """The share of units that are on the same side as at the start."""
        shares = _by_layer(state.module, self.inputs, state.origin, state.parameters, state.start)
        return {"pattern": sum(shares.values()) / len(shares)}
