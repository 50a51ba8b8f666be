"""A pass without its prefix: what is below the cut has shapes, and values only where the rest takes them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from regimes.core.error import UserError

__all__ = ["METADATA", "Absent", "Detour", "Entry", "How", "Number", "Replay", "Sizes", "Slot", "replaced"]

How = Literal["skip", "run", "through"]
"""What becomes of a call of a module: it is left out, run on values that are looked up, or seen from inside."""

_EMPTY = torch._C.DisableTorchFunctionSubclass
_TENSOR: Any = Tensor
METADATA = {
    *(_TENSOR.size, _TENSOR.dim, _TENSOR.ndimension, _TENSOR.numel, _TENSOR.nelement, _TENSOR.__len__),
    *(_TENSOR.is_floating_point, _TENSOR.is_complex, _TENSOR.get_device, _TENSOR.__hash__, torch.is_tensor),
    *(torch.is_floating_point, torch.is_complex, torch.numel),
    *(
        getattr(_TENSOR, name).__get__
        for name in ("shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_leaf", "grad_fn")
    ),
    *(
        getattr(_TENSOR, name).__get__
        for name in ("is_cuda", "is_sparse", "is_nested", "is_quantized", "is_meta")
    ),
}
"""Functions of a tensor whose answer does not hang on its values."""


@final
@dataclass(frozen=True)
class Number:
    """The place of a tensor below the cut among the results of a call."""

    index: int


@final
@dataclass(frozen=True)
class Sizes:
    """Sizes a n + b for n samples."""

    sizes: tuple[tuple[int, int], ...]
    dtype: torch.dtype
    device: torch.device

    def at(self, n: int) -> tuple[int, ...]:
        """The sizes for n samples."""
        return tuple(a * n + b for a, b in self.sizes)


@final
@dataclass(frozen=True)
class Slot:
    """A value that crosses the cut.

    Attributes:
        axis: that of the samples, None for what is the same for all.
        order: the axes by their strides, from the largest.
        shape: its sizes.
    """

    axis: int | None
    order: tuple[int, ...]
    shape: Sizes


@final
@dataclass(frozen=True)
class Entry:
    """A call, of a function or a module, that takes a tensor below the cut.

    Attributes:
        what: the function, the module, or None for the end of the pass.
        how: what is done.
        taken: the numbers of what it takes.
        slots: where their values are, if it is run.
        written: which of them it writes into, if it is run.
        tree, leaves: what it returns, if it is left out.
    """

    what: Any
    how: How
    taken: tuple[int, ...]
    slots: tuple[int, ...] = ()
    written: tuple[bool, ...] = ()
    tree: TreeSpec | None = None
    leaves: tuple[Any, ...] = ()

    @property
    def way(self) -> tuple[Any, ...]:
        """All but what hangs on the number of samples."""
        return self.what, self.how, self.taken, self.slots, self.written, self.tree


@final
@dataclass(frozen=True)
class Detour:
    """What a pass does with what is below the cut.

    Attributes:
        entries: in the order of the calls.
        calls: for each module, at each of its calls, what becomes of it.
        shapes: of each number.
        slots: what crosses the cut.
    """

    entries: tuple[Entry, ...]
    calls: Mapping[nn.Module, tuple[How, ...]]
    shapes: tuple[Sizes, ...]
    slots: tuple[Slot, ...]


class Absent(Tensor):
    """A tensor below the cut. Its entries are nan; the functions of torch are told what to do by the replay."""

    replay: Replay
    number: int
    now: Tensor | None

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """What the replay says, or what is known without values."""
        kwargs = kwargs or {}
        if func in METADATA:
            with _EMPTY():
                return func(*args, **kwargs)
        leaves, tree = tree_flatten((args, dict(kwargs)))
        first = next((each for each in leaves if isinstance(each, Absent)), None)
        if first is None:  # one that torch hides, as the class of a result
            with _EMPTY():
                return func(*args, **kwargs)
        return first.replay.function(func, leaves, tree)


@final
class Replay:
    """One pass of a detour.

    Args:
        detour: what was recorded.
        samples: n.
        values: of the slots, for these samples.
    """

    def __init__(self, detour: Detour, samples: int, values: Sequence[Tensor]) -> None:
        self._detour, self._n, self._values = detour, samples, values
        self._absent: dict[int, Absent] = {}
        self._known: dict[int, Tensor] = {}
        self._place, self._ended = 0, False
        self._counts: dict[nn.Module, int] = {}

    def call(
        self, module: nn.Module, native: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """A call of a module."""
        count = self._counts.get(module, 0)
        self._counts[module] = count + 1
        kinds = self._detour.calls[module]
        if count >= len(kinds):
            raise _another_way(module)
        if kinds[count] == "through":
            return native(*args, **kwargs)
        if kinds[count] == "skip" and len(args) == 1 and isinstance(args[0], Tensor) and not kwargs:
            return self._given(self._next(module, args))
        leaves, tree = tree_flatten((tuple(args), dict(kwargs)))
        return self._do(module, native, leaves, tree)

    def function(self, func: Callable[..., Any], leaves: list[Any], tree: TreeSpec) -> Any:
        """A call of a function of torch with something absent."""
        if not any(isinstance(each, Absent) and each.now is None for each in leaves):
            args, kwargs = tree_unflatten([_now(each) for each in leaves], tree)
            return func(*args, **kwargs)
        return self._do(func, func, leaves, tree)

    def end(self, outputs: Any) -> Any:
        """What the pass returns, with values."""
        leaves, tree = tree_flatten(outputs)
        if any(isinstance(each, Absent) for each in leaves):
            outputs = tree_unflatten(self._looked_up(self._next(None, leaves), leaves), tree)
        self._ended = True
        if self._place != len(self._detour.entries):
            raise _another_way(self._detour.entries[self._place].what)
        return outputs

    def _do(self, what: Any, native: Callable[..., Any], leaves: Sequence[Any], tree: TreeSpec) -> Any:
        if self._ended:  # in a backward pass that computes parts again
            return self._again(what, native, leaves, tree)
        entry = self._next(what, leaves)
        if entry.how == "run":
            args, kwargs = tree_unflatten(self._looked_up(entry, leaves), tree)
            return native(*args, **kwargs)
        return self._given(entry)

    def _given(self, entry: Entry) -> Any:
        """What a call returns that is left out."""
        found = [self._made(each.index) if isinstance(each, Number) else each for each in entry.leaves]
        if entry.tree is None or (len(found) == 1 and entry.tree.num_nodes == 1):
            return found[0]
        return tree_unflatten(found, entry.tree)

    def _next(self, what: Any, leaves: Sequence[Any]) -> Entry:
        """The entry that has to be this one."""
        place = self._place
        entry = self._detour.entries[place] if place < len(self._detour.entries) else None
        taken = tuple(each.number for each in leaves if isinstance(each, Absent) and each.now is None)
        if entry is None or entry.what != what or entry.taken != taken:
            raise _another_way(what)
        self._place += 1
        return entry

    def _looked_up(self, entry: Entry, leaves: Sequence[Any]) -> list[Any]:
        """The leaves with values."""
        found, place = list(leaves), 0
        for index, each in enumerate(leaves):
            if isinstance(each, Absent) and each.now is None:
                value = self._values[entry.slots[place]]
                if entry.written[place]:
                    value = each.now = value.clone()
                self._known[each.number] = value
                found[index] = value
                place += 1
            else:
                found[index] = _now(each)
        return found

    def _made(self, number: int) -> Absent:
        """The tensor of a number."""
        if number not in self._absent:
            shape = self._detour.shapes[number]
            nothing = _nothing(shape.dtype, shape.device)
            made: Absent = torch.Tensor._make_subclass(Absent, nothing.expand(shape.at(self._n)))  # pyright: ignore[reportAttributeAccessIssue, reportAssignmentType]
            made.replay, made.number, made.now = self, number, None
            self._absent[number] = made
        return self._absent[number]

    def _again(self, what: Any, native: Callable[..., Any], leaves: Sequence[Any], tree: TreeSpec) -> Any:
        """After the pass: by the values that were looked up in it."""
        found = [
            self._known.get(each.number, each)
            if isinstance(each, Absent) and each.now is None
            else _now(each)
            for each in leaves
        ]
        if any(isinstance(each, Absent) for each in found):
            raise UserError(
                f"`module`: '{_name(what)}' takes, after the pass, a tensor of the cached prefix that was not "
                "computed; return it from the module, or remove() the CachedPrefix"
            )
        args, kwargs = tree_unflatten(found, tree)
        return native(*args, **kwargs)


@contextmanager
def replaced(
    modules: Sequence[nn.Module],
    call: Callable[[nn.Module, Callable[..., Any], Sequence[Any], Mapping[str, Any]], Any],
) -> Iterator[None]:
    """Each call of these modules is one of ``call(module, what it would do, args, kwargs)``, hooks left out."""
    # Where torch keeps what a compiled module does instead; copies and files of a module have none.
    before = [each.__dict__.get("_compiled_call_impl") for each in modules]
    try:
        for each, compiled in zip(modules, before, strict=True):
            each.__dict__["_compiled_call_impl"] = _stand_in(each, compiled or each._call_impl, call)
        yield
    finally:
        for each, compiled in zip(modules, before, strict=True):
            each.__dict__["_compiled_call_impl"] = compiled


def _stand_in(module: nn.Module, native: Callable[..., Any], call: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: call(module, native, args, kwargs)


@functools.cache
def _nothing(dtype: torch.dtype, device: torch.device) -> Tensor:
    """(), nan where there is one."""
    wrong = torch.nan if dtype.is_floating_point or dtype.is_complex else 1
    return torch.full((), wrong, dtype=dtype, device=device)


def _now(value: Any) -> Any:
    """What has taken the place of a tensor that was written into."""
    return value.now if isinstance(value, Absent) and value.now is not None else value


def _name(what: Any) -> str:
    if what is None:
        return "its outputs"
    return type(what).__name__ if isinstance(what, nn.Module) else getattr(what, "__name__", str(what))


def _another_way(what: Any) -> UserError:
    return UserError(
        f"`module`: at '{_name(what)}' a pass takes another way than the one that was cached; call clear() of the "
        "CachedPrefix after a change of the module, or remove() it where the way hangs on values"
    )
