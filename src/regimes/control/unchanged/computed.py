"""What a part of a network computes, as a value that is another one after any change of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks_of_all

from regimes.control.unchanged.contents import Contents
from regimes.control.unchanged.roster import Roster

__all__ = ["Computed", "precision"]

_LEFT = {"_parameters", "_buffers", "_modules", "_compiled_call_impl", "_is_full_backward_hook"}
_WHOLE = (bool, int, float, complex, str, type(None), torch.dtype, torch.device, Tensor, nn.Module, type)
_GLOBAL = ("_global_forward_hooks", "_global_forward_pre_hooks")


@final
class Computed:
    """What modules compute: their tensors by content, mode, attributes and hooks, and the settings of torch.

    Args:
        modules: by name, each with what is its own.
        holding: those whose tensors count.
        moving: tensors that do not count.
        whose: the argument, and the way out, that an error names.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        holding: Iterable[nn.Module],
        moving: Iterable[Tensor],
        whose: tuple[str, str],
    ) -> None:
        left = {id(each) for each in moving}
        self._modules = [*modules.items()]
        counting = {id(each) for each in holding}
        self._roster = Roster(modules.values(), buffers=True)
        tensors = {
            id(each): (f"{name}.{key}", each)
            for name, module in self._modules
            if id(module) in counting
            for part in (module._parameters, module._buffers, vars(module))
            for key, each in part.items()
            if isinstance(each, Tensor) and id(each) not in left
        }
        self._tensors = [*tensors.values()]
        self._held: list[Any] = []
        self._known = dict(self._parts(self._held))
        self._known_rest = [*self._rest()]
        # What is held has no successor at its address; what can change in place is looked at each time.
        self._owns = [vars(each) for _, each in self._modules]
        self._held += [[*each.values()] for each in self._owns]
        self._ids = [[*map(id, each.values())] for each in self._owns]
        self._inner = [
            (value, _plain(value, {}, self._held))
            for each in self._owns
            for key, value in each.items()
            if key not in _LEFT and not _whole(value)
        ]
        self._empty = [
            value for each in self._owns for value in each.values() if isinstance(value, dict) and not value
        ]
        self._contents = Contents(dict(self._tensors), whose)

    def changed(self) -> str | None:
        """What is not as it was, None if all is."""
        if not self._roster.same():
            return "a parameter, a buffer or a module in it is another object"
        if not self._contents.same():
            return "values of parameters or buffers"
        seen: dict[int, Any] = {}
        if (
            not any(self._empty)
            and [*self._rest()] == self._known_rest
            and all([*map(id, each.values())] == ids for each, ids in zip(self._owns, self._ids, strict=True))
            and all(_plain(value, seen, []) == known for value, known in self._inner)
        ):
            return None
        now = dict(self._parts([]))
        if now == self._known:
            return None
        names = [*now.keys() - self._known.keys(), *self._known.keys() - now.keys()]
        return next((name for name in now if now[name] != self._known.get(name)), (names or ["it"])[0])

    def _parts(self, hold: list[Any]) -> Iterable[tuple[str, Any]]:
        """What the value is made of besides tensors, by name."""
        seen: dict[int, Any] = {}
        for name, module in self._modules:
            for key, value in vars(module).items():
                if key not in _LEFT:
                    yield f"{name}.{key}", _plain(value, seen, hold)
        yield from zip(
            ("forward", "hooks of all modules", "autocast", "settings of torch", "kinds of tensors"),
            self._rest(),
            strict=True,
        )

    def _rest(self) -> Iterable[Any]:
        """What is none of the modules' own."""
        yield [type(module).forward for _, module in self._modules]
        yield [tuple(vars(hooks_of_all)[each]) for each in _GLOBAL]
        yield [_autocast(kind) for kind in ("cpu", "cuda")]
        yield torch.get_default_dtype(), precision()
        yield [(each.dtype, each.shape, each.device) for _, each in self._tensors]


def precision() -> tuple[str, ...]:
    """How float32 is multiplied on a GPU: "ieee" and "none" are with all digits."""
    parts = (torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv", None))
    if all(hasattr(each, "fp32_precision") for each in parts):  # once they were set the older names raise
        return tuple(str(getattr(each, "fp32_precision", "")) for each in parts)
    exact = torch.get_float32_matmul_precision() == "highest"
    return "ieee" if exact else "tf32", "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"


def _whole(value: Any) -> bool:
    """Whether a value is another object when it is another value, or is looked at elsewhere."""
    if isinstance(value, tuple):
        return all(map(_whole, value))
    return isinstance(value, _WHOLE) or value == {}


def _autocast(device: str) -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


def _plain(value: Any, seen: dict[int, Any], hold: list[Any], depth: int = 4) -> Any:
    """A value by its content where that can be compared, and by its identity where it is an object."""
    if value is None or isinstance(value, bool | int | float | complex | str | torch.dtype | torch.device):
        return type(value), value
    if isinstance(value, dict) and not value:
        return dict, []
    if depth and isinstance(value, list | tuple | set | frozenset):
        return type(value), [_plain(each, seen, hold, depth - 1) for each in value]
    if depth and isinstance(value, Mapping):
        return dict, [(key, _plain(each, seen, hold, depth - 1)) for key, each in value.items()]
    if id(value) not in seen:
        hold.append(value)  # lest another has its address
        seen[id(value)] = id(value)
        if depth and hasattr(value, "__dict__") and not isinstance(value, Tensor | nn.Module | type):
            inner = {key: _plain(each, seen, hold, depth - 1) for key, each in vars(value).items()}
            seen[id(value)] = (id(value), inner)
    return seen[id(value)]
