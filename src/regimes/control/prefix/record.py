"""What a pass does with what hangs on its inputs and on frozen layers alone: seen from the outside of modules."""

from __future__ import annotations

import enum
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _pop_mode_temporarily
from torch.utils._pytree import TreeSpec, tree_flatten

from regimes.control.prefix.replay import METADATA, Entry, How, Number
from regimes.core.error import UserError

__all__ = ["Enough", "Opaque", "PassRecorder"]

_SEEN = (
    *(Tensor, bool, int, float, complex, str, slice, enum.Enum, type(None), type),
    *(torch.dtype, torch.device, torch.layout, types.FunctionType, types.BuiltinFunctionType),
)
_MOVING = "moving"


class Enough(BaseException):
    """All that was asked for is known; the rest of the pass is of no use."""


class Opaque(Exception):
    """A module returns what has tensors nobody sees in it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


@final
class PassRecorder(TorchFunctionMode):
    """Which calls of a pass can be left out, and which values the others take from them.

    A tensor is pure if nothing has a part in it but inputs, frozen parameters, buffers and constants; one that was
    seen to come from anything else, or not seen to come from anywhere, is not.

    Args:
        names: of the modules.
        moving: the parameters that may move.
        fixed: what the module keeps besides.
        inputs: of the pass.
        opaque: modules to look into.
        stop: after so many values the pass ends with :class:`Enough`.

    Attributes:
        entries: the calls that take a pure result of another.
        calls: for each module what becomes of each of its calls.
        values: of the pure tensors that others take.
        results: those that are never computed, by their number.
    """

    def __init__(
        self,
        names: Mapping[nn.Module, str],
        moving: Iterable[Tensor],
        fixed: Iterable[Tensor],
        inputs: Iterable[Tensor],
        opaque: frozenset[nn.Module],
        stop: int | None = None,
    ) -> None:
        super().__init__()
        self._names, self._opaque, self._stop = names, opaque, stop
        self._moving = [*moving]
        self._fixed = {_memory(each) for each in fixed}
        self._kept: list[Tensor] = [*inputs]
        self._why: dict[int, str | None] = dict.fromkeys([*self._fixed, *map(_memory, self._kept)])
        self._why |= {_memory(each): _MOVING for each in self._moving}
        self._numbers: dict[int, int] = {}
        self._slots: dict[tuple[int, int], int] = {}
        self._inside = False
        self.entries: list[Entry] = []
        self.calls: dict[nn.Module, list[How]] = {}
        self.values: list[Tensor] = []
        self.results: list[Tensor] = []
        self.shapes: list[torch.Size] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a function of torch, and note what it takes and gives."""
        kwargs = kwargs or {}
        if self._inside or func in METADATA:
            return func(*args, **kwargs)
        leaves, _ = tree_flatten((tuple(args), dict(kwargs)))
        tensors = _tensors(leaves)
        numbered, why = self._taken(leaves), self._reason(tensors)
        versions, states = [each._version for each in tensors], _states(tensors)
        slots = self._kept_values(numbered) if why is not None else ()
        out = func(*args, **kwargs)
        found, tree = tree_flatten(out)
        written = [each for each, old in zip(tensors, versions, strict=True) if each._version != old]
        why = why or self._chance(getattr(func, "__name__", str(func)), states, _states(tensors), written)
        if numbered and why is None and self._free(found, leaves, written):
            self._left_out(func, numbered, found, tree)
            return out
        if numbered:
            if not slots and any(each is one for each in written for one in numbered):
                raise UserError(
                    f"`policy`: '{getattr(func, '__name__', func)}' writes in place into what is to be cached; write "
                    "the module without it, or do without a CachedPrefix"
                )
            self._run(func, numbered, slots or self._kept_values(numbered), written)
        self._note([*found, *written], why)
        return out

    def call(
        self, module: nn.Module, native: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """A call of a module without parameters that may move, or of one that is compiled."""
        if self._inside:
            return native(*args, **kwargs)
        with self._busy():
            known = self._known_call(module, native, args, kwargs)
        return native(*args, **kwargs) if known is None else known[0]

    def _known_call(
        self, module: nn.Module, native: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Any] | None:
        """What a call of a module gives, None where it is to be seen from inside."""
        kinds = self.calls.setdefault(module, [])
        leaves, _ = tree_flatten((tuple(args), dict(kwargs)))
        numbered, tensors = self._taken(leaves), _tensors(leaves)
        own = [*module.parameters(), *module.buffers()]
        border = any(self._why.get(_memory(each)) == _MOVING for each in own)
        why = _MOVING if border else self._reason(tensors)
        if not border and (why is not None or module in self._opaque or not all(map(_seen, leaves))):
            self._refuse(module, why)
            kinds.append("through")
            return None
        versions = [each._version for each in (*tensors, *own)]
        states = _states((*tensors, *own))
        slots = self._kept_values(numbered) if border else ()
        out = self._quietly(native, args, kwargs)
        found, tree = tree_flatten(out)
        written = [each for each, old in zip((*tensors, *own), versions, strict=True) if each._version != old]
        if not border:
            if not all(map(_seen, found)):
                raise Opaque(module)
            why = self._chance(self._names[module], states, _states((*tensors, *own)), written)
            self._refuse(module, why)
        if why is None and self._free(found, leaves, written):
            kinds.append("skip")
            self._left_out(module, numbered, found, tree)
        elif numbered:
            kinds.append("run")
            self._run(module, numbered, slots or self._kept_values(numbered), written)
            self._note([*found, *written], why)
        else:
            kinds.append("through")
            self._note([*found, *written], why)
        return (out,)

    def end(self, outputs: Any) -> None:
        """What the pass returns."""
        with self._busy():
            leaves, _ = tree_flatten(outputs)
            if numbered := self._taken(leaves):
                self._run(None, numbered, self._kept_values(numbered), [])

    def _quietly(self, native: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """A call as it would be without this; compiled code would see it otherwise."""
        with _pop_mode_temporarily():
            return native(*args, **kwargs)

    @contextmanager
    def _busy(self) -> Iterator[None]:
        """What runs inside is not noted."""
        self._inside = True
        try:
            yield
        finally:
            self._inside = False

    def _taken(self, leaves: Iterable[Any]) -> list[Tensor]:
        """The tensors with a number among the arguments."""
        return [
            each
            for each in leaves
            if isinstance(each, Tensor) and id(each) in self._numbers and self._why[_memory(each)] is None
        ]

    def _reason(self, tensors: Sequence[Tensor]) -> str | None:
        """Why what comes from these tensors is not pure."""
        found = {self._why.get(_memory(each), _MOVING) for each in tensors} - {None}
        return _MOVING if _MOVING in found else next(iter(sorted(map(str, found))), None)

    def _chance(
        self, name: str, before: Sequence[Tensor], after: Sequence[Tensor], written: Iterable[Tensor]
    ) -> str | None:
        """Why a call is not the same at each pass, None if it is."""
        if not all(map(torch.equal, before, after)):
            return f"'{name}' draws random numbers"
        if any(_memory(each) in self._fixed for each in written):
            return f"'{name}' changes what the module keeps, as batch norm does in training mode"
        return None

    def _refuse(self, module: nn.Module, why: str | None) -> None:
        """Raise if a frozen module with parameters hangs on chance, or on the batch."""
        if why not in (None, _MOVING) and any(True for _ in module.parameters()):
            raise UserError(
                f"`policy`: '{self._names[module]}' is below all that moves, but is not the same at each pass: {why}; "
                "call .eval() on what is frozen after every .train(), or set its dropout to 0"
            )

    def _free(self, found: Sequence[Any], leaves: Sequence[Any], written: Sequence[Tensor]) -> bool:
        """Whether a call is nothing but its result: new tensors, or some of those it takes that are not computed."""
        plain = [each for each in leaves if isinstance(each, Tensor) and id(each) not in self._numbers]
        results = _tensors(found)
        ids, memories = {id(each) for each in plain}, {_memory(each) for each in plain}
        return (
            bool(results or written)
            and all(map(_seen, found))
            and not any(id(each) in ids for each in [*results, *written])
            and not any(_memory(each) in memories and each.numel() for each in results)
        )

    def _left_out(self, what: Any, numbered: Sequence[Tensor], found: Sequence[Any], tree: TreeSpec) -> None:
        """Note a call whose result is not computed."""
        taken = tuple(self._numbers[id(each)] for each in numbered)
        for each in _tensors(found):
            if id(each) not in self._numbers:
                self._numbers[id(each)] = len(self.results)
                self.results.append(each)
                self.shapes.append(each.shape)
        self._note(found, None)
        leaves = tuple(
            Number(self._numbers[id(each)]) if isinstance(each, Tensor) else each for each in found
        )
        self.entries.append(Entry(what, "skip", taken, tree=tree, leaves=leaves))

    def _run(
        self, what: Any, numbered: Sequence[Tensor], slots: Sequence[int], written: Sequence[Tensor]
    ) -> None:
        """Note a call that takes values."""
        taken = tuple(self._numbers[id(each)] for each in numbered)
        changed = {id(each) for each in written}
        flags = tuple(id(each) in changed for each in numbered)
        self.entries.append(Entry(what, "run", taken, tuple(slots), flags))
        if self._stop is not None and len(self.values) >= self._stop:
            raise Enough
        for each, flag in zip(numbered, flags, strict=True):
            if flag:
                del self._numbers[id(each)]

    def _kept_values(self, numbered: Sequence[Tensor]) -> tuple[int, ...]:
        """Where the values of these tensors are, as they are now."""
        found = []
        for each in numbered:
            key = (self._numbers[id(each)], each._version)
            if key not in self._slots:
                self._slots[key] = len(self.values)
                self.values.append(each.detach().clone(memory_format=torch.preserve_format))
            found.append(self._slots[key])
        return tuple(found)

    def _note(self, values: Iterable[Any], why: str | None) -> None:
        """What is pure from here on, and what is not."""
        for each in _tensors(values):
            self._kept.append(each)
            if why is not None or _memory(each) not in self._why:
                self._why[_memory(each)] = why


def _memory(tensor: Tensor) -> int:
    """The storage of a tensor."""
    return tensor.untyped_storage()._cdata


def _states(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The states of the random generators that a call with these tensors may draw from."""
    devices = sorted({each.device.index or 0 for each in tensors if each.device.type == "cuda"})
    return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    return [each for each in values if isinstance(each, Tensor)]


def _seen(value: Any) -> bool:
    """Whether what a value is can be told from it."""
    return isinstance(value, _SEEN)
