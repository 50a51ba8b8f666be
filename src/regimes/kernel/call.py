"""A call of a function of torch as a value: its tensors, and the same call on others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

__all__ = ["Call"]


@dataclass(frozen=True, eq=False)
class Call:
    """function(*args, **kwargs); tensors may also stand in lists, as in ``torch.cat``."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __call__(self) -> Any:
        """The outcome."""
        return self.function(*self.args, **self.kwargs)

    @property
    def name(self) -> str:
        """Of the function."""
        return getattr(self.function, "__name__", "")

    @property
    def in_place(self) -> bool:
        """Whether it changes its first argument."""
        name = self.name
        return (name.endswith("_") and not name.endswith("__")) or (
            name.startswith("__i") and name not in ("__invert__", "__index__", "__int__")
        )

    def tensors(self) -> Iterator[Tensor]:
        """Its tensors, in order."""
        for value in (*self.args, *self.kwargs.values()):
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, list | tuple):
                yield from (one for one in value if isinstance(one, Tensor))

    def map(self, function: Callable[[Tensor], Tensor]) -> Call:
        """The same call on other tensors."""

        def mapped(value: Any) -> Any:
            if isinstance(value, Tensor):
                return function(value)
            if isinstance(value, list | tuple) and any(isinstance(one, Tensor) for one in value):
                return type(value)(function(one) if isinstance(one, Tensor) else one for one in value)
            return value

        kwargs = {name: mapped(value) for name, value in self.kwargs.items()}
        return replace(self, args=tuple(mapped(value) for value in self.args), kwargs=kwargs)

    def on(self, values: Sequence[Tensor]) -> Any:
        """The outcome with these in place of its tensors, in order."""
        left = iter(values)
        return self.map(lambda _: next(left))()

    def with_first_copied(self) -> Call:
        """The same call with a copy of its first argument, to be changed in place."""
        return replace(self, args=(self.args[0].clone(), *self.args[1:]))
