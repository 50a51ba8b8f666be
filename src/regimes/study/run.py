"""One experiment as a frozen value, and the key by which its rows are found again."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_jsonable_python

from regimes.core.error import UserError, nearest

__all__ = ["Run", "canonical", "explain", "key_of", "shorten"]

RESERVED = frozenset(
    {"key", "run", "batch", "cap", "cost", "perform", "version", "columns", "canonical", "all_but"}
)
WHOLE = 2**63
"""Beyond it a whole number has no column to be stored in."""


class Run(BaseModel):
    """One experiment: the smallest piece of work that is finished, stored and never repeated.

    A subclass declares its parameters as pydantic fields, what it measures in ``columns``, and how several
    runs are carried out as members of one program in ``perform``. A change of ``perform`` that changes the
    numbers is told by a higher ``version``: the keys change and the runs are done again.

    Attributes:
        version: counts the meanings of the numbers; part of the key.
        columns: measured columns, name -> ``float``, ``int``, ``bool``, ``str`` or ``list[float]`` (also of
            ``int``, ``str``). ``int`` must be given in every row; the others may be missing (null, which
            pandas reads as nan).

    Raises:
        UserError: a field is unknown, missing, not finite or not of its type.

    >>> class Walk(Run):
    ...     columns = {"distance": float}
    ...     steps: int
    ...     seed: int = 0
    ...     @classmethod
    ...     def perform(cls, runs, data, tick):
    ...         for run in runs:
    ...             yield run, [{"distance": run.steps**0.5}]
    >>> Walk(steps=4).key == Walk(seed=0, steps=4.0).key != Walk(steps=5).key
    True
    >>> Walk(steps="many")
    Traceback (most recent call last):
    regimes.core.error.UserError: `steps` of Walk is 'many': input should be a valid integer, ...
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    __slots__ = ("_key",)

    version: ClassVar[int] = 1
    columns: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, /, **values: Any) -> None:
        # pydantic's own constructor, so that a mistake in any study file is one line instead of a listing
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise explain(error, type(self).__name__, type(self).model_fields) from None
        for name, value in self:
            if isinstance(value, int) and not -WHOLE <= value < WHOLE:
                raise UserError(
                    f"`{name}` of {type(self).__name__} is too large: expected a whole number of at most 64 bits"
                )

    @classmethod
    def __pydantic_init_subclass__(cls) -> None:
        taken = sorted(
            (RESERVED & {*cls.model_fields, *cls.columns}) | (cls.model_fields.keys() & cls.columns.keys())
        )
        if taken:
            raise UserError(
                f"`{taken[0]}` cannot name a field or column of {cls.__name__}: taken; choose another name"
            )

    @classmethod
    @abstractmethod
    def perform(
        cls, runs: Sequence[Run], data: Path | None, tick: Callable[[str], None]
    ) -> Iterator[tuple[Run, list[dict[str, Any]]]]:
        """Carry out runs of equal ``batch`` as members of one program.

        Args:
            runs: the members, at most ``cap`` of them.
            data: directory of the data sets, or None for the default one.
            tick: takes a short text, the metric of the moment; cheap, to be called often.

        Yields:
            Each run with its rows (measured columns only; the parameters are added by the store), as soon as
            it is finished and in any order. A member that diverges is finished: it yields rows that say so.
        """

    @property
    def canonical(self) -> str:
        """Canonical JSON of class name, version and fields: equal experiments have equal texts."""
        content = {"run": type(self).__name__, "version": self.version, "fields": canonical(dict(self))}
        return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    @property
    def key(self) -> str:
        """The first 20 hexadecimal digits of the SHA-256 of ``canonical``."""
        # kept in a slot, of which no copy with other fields takes a value along
        try:
            return self._key
        except AttributeError:
            object.__setattr__(self, "_key", key_of(self.canonical))
            return self._key

    @property
    def batch(self) -> Hashable:
        """What members of one program must share. The default is the key: every run by itself."""
        return self.key

    @property
    def cap(self) -> int:
        """Most members of one program; the smallest value among the members counts."""
        return 64

    def __hash__(self) -> int:
        return hash(self.key)

    def cost(self) -> float:
        """Rough seconds on one worker; only ratios matter once the first runs are finished."""
        return 1.0

    def all_but(self, *names: str) -> str:
        """Canonical JSON of the other fields: a ready ``batch`` for members that differ in ``names`` only."""
        unknown = sorted(set(names) - type(self).model_fields.keys())
        if unknown:
            hint = nearest(unknown[0], type(self).model_fields)
            raise UserError(f"`{unknown[0]}` is no field of {type(self).__name__}{hint}")
        rest = {name: value for name, value in dict(self).items() if name not in names}
        return json.dumps(canonical(rest), sort_keys=True, separators=(",", ":"))


def key_of(run: str) -> str:
    """The key of a run, given its canonical JSON."""
    return hashlib.sha256(run.encode()).hexdigest()[:20]


def canonical(value: Any) -> Any:
    """The JSON value that stands for all equal ones: 1.0 is 1, -0.0 is 0, a set is sorted, a tuple is a list.

    >>> canonical({"b": (1.0, 2.5), "a": {3, 2}})
    {'b': [1, 2.5], 'a': [2, 3]}
    """
    if value is None or (isinstance(value, bool | str) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Enum):
        return canonical(value.value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        # beyond 2^53 not every integer is a float, so that float and integer are told apart there
        return int(value) if value.is_integer() and abs(value) < 2**53 else float(value)
    if isinstance(value, Mapping):
        return {str(canonical(name)): canonical(item) for name, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((canonical(item) for item in value), key=json.dumps)
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, BaseModel):
        return canonical(dict(value))
    return canonical(to_jsonable_python(value))


def explain(error: ValidationError, name: str, fields: Mapping[str, Any]) -> UserError:
    """A pydantic error as one line: the field, what came, what was expected."""
    problems = error.errors(include_url=False)
    # a misspelt name is often missing as well; the misspelling is the mistake
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    field = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        known = nearest(field, fields) or f"; its fields are {', '.join(fields)}"
        return UserError(f"`{field}` is no field of {name}{known}{more}")
    if first["type"] == "missing":
        return UserError(f"`{field}` of {name} is missing: give a value{more}")
    expected = " ".join(first["msg"].removeprefix("Value error, ").split())
    expected = expected[:1].lower() + expected[1:]
    if not field:
        return UserError(f"{name}: {expected}{more}")
    return UserError(f"`{field}` of {name} is {shorten(first['input'])}: {expected}{more}")


def shorten(value: Any, length: int = 60) -> str:
    """``repr`` on one line, cut after ``length`` characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= length else text[: length - 3] + "..."
