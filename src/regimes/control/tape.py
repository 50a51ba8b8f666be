r"""J v and J^T u at one anchor and on one batch, with all that hangs on neither v nor u computed once.

Forward mode makes of f a program that is linear in the tangents: each operation takes tangents and constants of the
anchor (inputs of layers, derivatives of activations). It is run once, with its operations written down. From then on
J v is these operations alone, and J^T u the backward pass of their graph: two matrix products a layer each, where a
step of training takes three and one that computes f(a, x) again takes five.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from regimes.control.tangent import coarsest_rounding
from regimes.core.derivative import Function
from regimes.core.forward import by_forward_mode
from regimes.core.storage import address, stored
from regimes.core.tree import Tree

__all__ = ["Tape", "record"]


@dataclass(frozen=True)
class _Slot:
    """A tangent, by its number."""

    number: int


@dataclass(frozen=True)
class _Call:
    """One operation on tangents.

    Attributes:
        function: the operation.
        args, kwargs: with slots for tangents.
        outputs: the slots of what it gives; None for what is no tensor.
        writes: whether it writes to one of its arguments.
        last: slots that nothing takes after it.
    """

    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[int | None, ...]
    writes: bool
    last: tuple[int, ...] = ()

    def taken(self) -> set[int]:
        """The slots it takes."""
        return {each.number for each in _leaves((self.args, self.kwargs)) if isinstance(each, _Slot)}

    def constants(self) -> Iterator[Tensor]:
        """The tensors it takes besides."""
        return (each for each in _leaves((self.args, self.kwargs)) if isinstance(each, Tensor))

    def run(self, values: dict[int, Tensor]) -> None:
        """Compute it from the values of slots."""
        found = self.function(*_filled(self.args, values), **_filled(self.kwargs, values))
        if isinstance(found, Tensor):
            if self.outputs[0] is not None:
                values[self.outputs[0]] = found
        else:
            for slot, each in zip(self.outputs, tree_iter(found), strict=True):
                if slot is not None:
                    values[slot] = each
        for slot in self.last:
            values.pop(slot, None)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for each in value:
            yield from _leaves(each)
    elif isinstance(value, Mapping):
        yield from _leaves([*value.values()])
    else:
        yield value


def _filled(value: Any, values: Mapping[int, Tensor]) -> Any:
    """Arguments with the values of their slots."""
    if isinstance(value, _Slot):
        return values[value.number]
    if isinstance(value, tuple | list):
        return type(value)([_filled(each, values) for each in value])
    if isinstance(value, Mapping):
        return {key: _filled(each, values) for key, each in value.items()}
    return value


class _Unfit(Exception):
    """What goes on cannot be run again from what is written down."""


class _Recorder(TorchDispatchMode):
    """Writes down each operation that takes a tangent."""

    def __init__(self, leaves: Iterable[Tensor]) -> None:
        super().__init__()
        self.tangents = [*leaves]  # kept, lest another has the address of one
        self.slots = {id(each): number for number, each in enumerate(self.tangents)}
        self.calls: list[_Call] = []
        self.versions: list[tuple[Tensor, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [each for each in tree_iter((args, kwargs)) if isinstance(each, Tensor)]
        along = [id(each) in self.slots for each in given]
        versions = [(each, each._version) for each, on in zip(given, along, strict=True) if not on]
        found = func(*args, **kwargs)
        if not any(along):
            return found
        writes = func._schema.is_mutable
        if any(each._version != version for each, version in versions):
            raise _Unfit  # a constant that takes up a tangent
        self.versions += versions
        places = tree_map(self._slot, (args, kwargs))
        outputs = tuple(self._made(each) for each in tree_iter(found))
        self.calls.append(_Call(func, places[0], places[1], outputs, writes))
        return found

    def _slot(self, value: Any) -> Any:
        if isinstance(value, Tensor) and id(value) in self.slots:
            return _Slot(self.slots[id(value)])
        return value.detach() if isinstance(value, Tensor) else value

    def _made(self, value: Any) -> int | None:
        if not isinstance(value, Tensor):
            return None
        if id(value) not in self.slots:
            self.slots[id(value)] = len(self.tangents)
            self.tangents.append(value)
        return self.slots[id(value)]

    def program(self, end: int) -> list[_Call]:
        """The operations that lead to a slot; each says which slots nothing takes after it."""
        if any(each._version != version for each, version in self.versions):
            raise _Unfit  # a constant that was written to after it was taken
        needed, found = {end}, []
        for call in reversed(self.calls):
            if call.writes or not needed.isdisjoint(call.outputs):
                taken = call.taken()
                last = tuple((taken | {each for each in call.outputs if each is not None}) - needed)
                needed |= taken
                found.append(replace(call, last=last))
        return found[::-1]


@final
class Tape:
    """f(a, x), J(a, x) v and J(a, x)^T u of one anchor and one batch.

    Args:
        value: f(a, x).
        slope: J v with the graph that leads to v.
        leaves: v, the numbers of which do not matter.
        at: a.
        calls: what computes J v from v.
        end: the slot of J v.
        own: tensors that are there in any case.

    Attributes:
        value: f(a, x).
        bytes: what is kept besides ``own``, each storage once.
    """

    def __init__(
        self,
        value: Tensor,
        slope: Tensor,
        leaves: Sequence[Tensor],
        at: Sequence[Tensor],
        calls: Sequence[_Call],
        end: int,
        own: Iterable[Tensor],
    ) -> None:
        self.value, self._slope, self._leaves, self._calls, self._end = value, slope, leaves, calls, end
        self._from = _with_differences(calls, at)
        kept = [value, *(each for call in calls for each in call.constants())]
        self.bytes = stored(kept, besides=[*own, *at, *leaves])

    def push(self, along: Sequence[Tensor]) -> Tensor:
        """J v, without a graph."""
        return self._run(self._calls, along)

    def _run(self, calls: Sequence[_Call], given: Sequence[Tensor]) -> Tensor:
        with torch.no_grad():
            values = dict(enumerate(given))
            for call in calls:
                call.run(values)
            return values[self._end]

    def pull(self, u: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
        """J^T u by the parameters that are wanted; None for the others."""
        leaves = [leaf for leaf, on in zip(self._leaves, wanted, strict=True) if on]
        if not leaves:
            return [None] * len(wanted)
        graph = torch.is_grad_enabled()
        found = iter(
            torch.autograd.grad(
                self._slope, leaves, u, retain_graph=True, create_graph=graph, materialize_grads=True
            )
        )
        return [next(found) if on else None for on in wanted]

    def __call__(self, w: Sequence[Tensor]) -> Tensor:
        """f(a, x) + J (w - a), whose gradient by w is J^T u."""
        return _Linear.apply(self, *w)  # pyright: ignore[reportReturnType]

    def at(self, w: Sequence[Tensor]) -> Tensor:
        """f(a, x) + J (w - a), without a graph."""
        return self.value + self._run(self._from, w)


class _Linear(torch.autograd.Function):
    """f(a, x) + J (w - a) of a tape."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, *w: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.tape = tape
        return tape.at(w)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, *ctx.tape.pull(u, ctx.needs_input_grad[1:])


def _with_differences(calls: Sequence[_Call], at: Sequence[Tensor]) -> list[_Call]:
    """What computes J (w - a) from w: each difference where it is first taken, so that it is in the cache."""
    found, done = [], set[int]()
    for call in calls:
        for slot in sorted(call.taken()):
            if slot < len(at) and slot not in done:
                done.add(slot)
                found.append(_Call(torch.sub, (_Slot(slot), at[slot]), {}, (slot,), writes=False))
        found.append(call)
    return found


def record(outputs: Function, at: Tree, own: Iterable[Tensor] = ()) -> Tape | None:
    """The tape of f at a; None where it would not give J v, or nothing can be said of it.

    J v and J^T u are held against one another for a random u: u . J J^T u = |J^T u|^2.

    Args:
        outputs: f(., x).
        at: a by name.
        own: tensors that are there in any case and count for nothing.
    """
    leaves = [torch.zeros_like(each).requires_grad_() for each in at.values()]
    with torch.enable_grad():
        recorder = _Recorder(leaves)
        try:
            with recorder:
                value, slope = by_forward_mode(outputs, at, dict(zip(at, leaves, strict=True)))
            if id(slope) not in recorder.slots or not slope.requires_grad:
                return None
            end = recorder.slots[id(slope)]
            calls = recorder.program(end)
        except torch.OutOfMemoryError:
            raise
        except (_Unfit, RuntimeError):  # an operation that forward mode, or the tape, cannot pass
            return None
    _let_go(slope, recorder.tangents)
    tape = Tape(value.detach(), slope, leaves, [*at.values()], calls, end, own)
    return tape if _fits(tape) else None


def _let_go(slope: Tensor, tangents: Iterable[Tensor]) -> None:
    """Free the tangents that the graph of J v holds, as that of a convolution does: it is linear in them.

    In their place are zeros of their shape, of one entry.
    """
    places = {address(each) for each in tangents}
    seen, todo = set[Any](), [slope.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo += [each for each, _ in node.next_functions]
        for name in dir(node):
            if name.startswith("_raw_saved_"):
                raw, value = getattr(node, name), getattr(node, name.replace("_raw", "", 1))
                pairs = zip(raw, value, strict=True) if isinstance(raw, tuple | list) else [(raw, value)]
                for saved, each in pairs:
                    if isinstance(each, Tensor) and address(each) in places:
                        saved.register_hooks(_nothing, _nothing)
    for each in tangents:
        if each is slope or (each.is_leaf and each.requires_grad):
            each.data = _nothing(each)


def _nothing(tensor: Tensor) -> Tensor:
    return tensor.detach().new_zeros(()).expand(tensor.shape)


def _fits(tape: Tape) -> bool:
    """Whether u . J v is |v|^2 for v = J^T u."""
    with torch._C.DisableTorchFunction(), torch.no_grad():
        value = tape.value
        u = torch.randn(value.shape, generator=torch.Generator().manual_seed(0)).to(value)
        try:
            v = [each.to_dense() for each in tape.pull(u, [True] * len(tape._leaves)) if each is not None]
            product = float((u * tape.push(v)).sum())
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            return False
        size = sum(float(each.square().sum()) for each in v)
        return math.isfinite(size) and abs(product - size) <= coarsest_rounding([value, *v]) ** 0.25 * size
