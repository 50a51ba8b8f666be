"""Bad values for every public function: which of them it refuses, and how.

``python -m tests.arguments [--all]`` calls every public function and class of the folders below with one bad value
in the place of each good one, and prints a line of JSON per fault. It runs in a process of its own, without the
checks of shapes that the tests switch on: as a user has it.

A value may be refused (by a ``UserError`` of one line that names the parameter), or taken, if a rule
in ``tests/arguments_taken.py`` says so.
"""

from __future__ import annotations

import collections.abc
import functools
import importlib
import inspect
import json
import math
import os
import random
import signal
import sys
import tempfile
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import regimes.core
from regimes.core import check
from regimes.core.error import UserError
from regimes.core.state import State
from regimes.measure.probe import Probe, observe
from tests.arguments_base import ABSTRACT, BASES, ENDLESS, FILES, FOLDERS, RECORDS, network
from tests.arguments_taken import RULES, Rule

__all__ = ["Case", "cases", "public", "run"]

SECONDS = 60
# What a message may name in the place of these parameters: an option of the command line, or what they hold.
ALIASES: Mapping[tuple[str, str], Sequence[str]] = {
    # The name that the message shall say is itself the bad value.
    ("core.estimate.positive", "name"): ("",),
    ("core.estimate.array", "name"): ("",),
    ("report.table.need", "name"): ("",),
    ("study.bisection", "axis"): ("` is no field of", "no such thing"),
    ("study.forecast_study", "on"): ("--on",),
    ("study.run_study", "on"): ("--on",),
    ("study.load_study_file", "path"): ("study` is",),
    # A probe hands its fields to the function that it stands for.
    ("measure.Gap", "inputs"): ("x", "module"),
    ("measure.Error", "inputs"): ("module",),
    ("measure.Outputs", "inputs"): ("module",),
    ("measure.Pattern", "inputs"): ("x", "module"),
    ("measure.KernelDrift", "inputs"): ("x1", "module"),
    ("measure.KernelDrift", "targets"): ("y", "k"),
}
HUGE = (10**15, 2**63, 10**400)


@dataclass(frozen=True)
class Case:
    """One call: of which function, with which bad value (by its name) in the place of which parameter."""

    function: str
    parameter: str
    bad: str
    value: Any = None


def public() -> dict[str, Callable[..., Any]]:
    """Every public function and class of the folders and files by its name, those of public modules as well."""
    found: dict[str, Callable[..., Any]] = {}
    for folder in (*FOLDERS, *FILES):
        module = importlib.import_module(f"regimes.{folder}")
        for name in module.__all__:
            value = getattr(module, name)
            inner = [(name, value)]
            if isinstance(value, types.ModuleType):
                inner = [(f"{name}.{each}", getattr(value, each)) for each in value.__all__]
            for each, one in inner:
                if inspect.isfunction(one) or inspect.isclass(one):
                    found[f"{folder}.{each}"] = one
    found |= {f"core.{path}": one for path, one in checked_in_core()}
    return {name: one for name, one in found.items() if name not in RECORDS and name not in ABSTRACT}


def checked_in_core() -> Iterator[tuple[str, Callable[..., Any]]]:
    """What :func:`regimes.core.check.checked` guards in ``core``: the rest is given what was checked before."""
    for file in regimes.core.__all__:
        module = importlib.import_module(f"regimes.core.{file}")
        for name in module.__all__:
            one = getattr(module, name)
            call = one.__init__ if inspect.isclass(one) else one
            code = getattr(call, "__code__", None)
            if code is not None and hasattr(call, "__wrapped__") and code.co_filename == check.__file__:
                yield f"{file}.{name}", one


def hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of the parameters, evaluated."""
    plain = inspect.unwrap(function.__init__ if inspect.isclass(function) else function)
    found = typing.get_type_hints(plain, vars(sys.modules[plain.__module__]))
    return {name: hint for name, hint in found.items() if name not in ("return", "self")}


def bad_tensors(x: Tensor) -> Iterator[tuple[str, Any]]:
    """Tensors that are no inputs and no targets, like a good one ``x``; and what is no tensor."""
    yield from {
        "array": np.ones((2, 3)),
        "list": [1.0, 2.0],
        "number": 2.5,
        "nested list": [[1.0], [2.0]],
    }.items()
    yield "empty", x[:0]
    yield "shape ()", torch.tensor(1.0)
    yield "on meta", x.to("meta")
    yield "sparse", x.to_sparse()
    yield "complex", torch.complex(x.double(), x.double())
    yield "nan", torch.full_like(x, math.nan, dtype=torch.float64)
    yield "infinite", torch.full_like(x, math.inf, dtype=torch.float64)
    yield "wider", torch.cat([x, x], -1) if x.dim() > 1 else torch.cat([x, x])
    yield "one axis more", x[None].expand(2, *x.shape)
    yield "one axis less", x[0]
    yield "whole numbers", x.to(torch.int32)
    yield "half precision", x.to(torch.float16)
    yield "truths", x > 0


def bad_trees(tree: Mapping[str, Tensor]) -> Iterator[tuple[str, Any]]:
    """Parameters that are none, like good ones."""
    first = next(iter(tree))
    yield from {"empty": {}, "list": list(tree.values()), "number as name": {0: tree[first]}}.items()
    yield "unknown name", {"nope": tree[first]}
    yield "other shape", {**tree, first: torch.ones(1, 2, 3, 4)}
    yield "array", {**tree, first: np.ones(3)}
    yield "nan", {**tree, first: torch.full_like(tree[first], math.nan)}
    yield "on meta", {**tree, first: tree[first].to("meta")}


def function() -> None:
    """No module."""


WRONG: Mapping[str, Any] = {"None": None, "text": "1GB", "object": object(), "bytes": b"x", "class": dict}
BY_KIND: Mapping[Any, Mapping[str, Any]] = {
    bool: {"one": 1, "half": 0.5, "yes": "yes", "list": []},
    int: {
        "true": True,
        "part": 2.5,
        "nan": math.nan,
        "infinite": math.inf,
        "list": [3],
        "complex": 3j,
        "minus one": -1,
        "zero": 0,
        **{f"huge {i}": value for i, value in enumerate(HUGE)},
        "minus huge": -HUGE[2],
        "array": np.arange(2),
    },
    float: {
        "true": True,
        "nan": math.nan,
        "list": [0.1],
        "complex": 0.1j,
        "minus one": -1,
        "zero": 0,
        "infinite": math.inf,
        "minus infinite": -math.inf,
        "huge": HUGE[2],
        "array": np.ones(2),
    },
    str: {"number": 3, "empty": "", "nonsense": "no such thing", "list": ["mnist"]},
    nn.Module: {
        "class": nn.Linear,
        "function": function,
        "state_dict": nn.Linear(2, 1).state_dict(),
        "number": 3,
        "list": [1],
        "empty list": [],
        "without parameters": nn.ReLU(),
    },
    torch.dtype: {"text": "float32", "numpy": np.float32, "whole": torch.int64, "complex": torch.complex64},
    Path: {
        "number": 3,
        "list": [],
        "zero byte": "a\0b",
        "not there": "/dev/null/there",
        "user": "~no_such_user",
    },
    pd.DataFrame: {
        "empty": pd.DataFrame(),
        "other columns": pd.DataFrame({"a": [1]}),
        "list": [],
        "number": 3,
        "mapping": {"width": [1]},
    },
    np.ndarray: {
        "list of numbers": [1.0, 2.0],
        "shape ()": np.array(1.0),
        "empty": np.ones(0),
        "words": np.array([["a", "b"], ["c", "d"]]),
        "complex": np.ones((3, 3), complex),
        "nan": np.full((3, 3), math.nan),
        "one row": np.ones((1, 3)),
        "tensor": torch.ones(3, 3),
    },
    collections.abc.Callable: {"number": 3, "tensor": torch.ones(2)},
    collections.abc.Sequence: {
        "number": 3,
        "set": {1},
        "of objects": [object()],
        "of None": [None],
        "empty": [],
    },
    collections.abc.Mapping: {"list": [], "number": 3},
}


def kinds(hint: Any) -> set[Any]:
    """The plain kinds in an annotation."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return set().union(*(kinds(each) for each in args))
    if origin is typing.Literal:
        return {str}
    if hasattr(hint, "array_type"):
        return {hint.array_type}
    return {origin or hint}


def values(name: str, hint: Any, good: Any) -> Iterator[tuple[str, Any]]:
    """The bad values for a parameter, by their names."""
    found = kinds(hint)
    if found & {Any, object, typing.TypeVar}:
        return
    is_tree = isinstance(good, Mapping) and good and all(isinstance(each, Tensor) for each in good.values())
    if isinstance(good, Tensor) and found & {Tensor, collections.abc.Sequence}:
        yield from bad_tensors(good)
    elif is_tree:
        yield from bad_trees(typing.cast(Mapping[str, Tensor], good))
    for kind in found:
        yield from BY_KIND.get(kind, {}).items()
    yield from ((bad, value) for bad, value in WRONG.items() if not fits(bad, found))
    if inspect.isclass(hint) and hint not in BY_KIND and hint is not Tensor:
        yield from {"number": 3, "its class": hint}.items()


def fits(bad: str, found: set[Any]) -> bool:
    """Whether a value of the wrong kind is of one of these kinds."""
    return {"None": type(None), "text": str, "class": collections.abc.Callable}.get(bad, bytes) in found or (
        bad == "text" and Path in found
    )


def cases(names: Sequence[str] | None = None) -> list[Case]:
    """One bad value at a time, for every parameter of every public function."""
    found = []
    for name, one in public().items():
        if names is not None and name not in names:
            continue
        good = BASES[name]()
        for parameter, hint in hints(one).items():
            seen: set[str] = set()
            for bad, value in values(parameter, hint, good.get(parameter)):
                if (name, parameter) in ENDLESS and bad.startswith("huge"):
                    continue
                if bad not in seen:
                    found.append(Case(name, parameter, bad, value))
                seen.add(bad)
    return found


class Late(BaseException):
    """The call takes too long."""


def late(*_: object) -> None:
    raise Late


def outcome(name: str, changed: Mapping[str, Any]) -> str:
    """ "refused", "taken", or what is wrong with it."""
    one = public_once()[name]
    arguments = {**BASES[name](), **changed}
    args = positional(one, arguments)
    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        found = one(*args, **arguments)
        if isinstance(found, Iterator):
            next(found, None)
        if isinstance(found, Probe):  # it looks at its fields when it is asked
            list(observe([replace(State.of(network(), step=1), status="finished")], [found]))
    except UserError as error:
        message = str(error)
        # Where two do not go together, the message may name the other one.
        aliases = [alias for each in changed for alias in ALIASES.get((name, each), ())]
        named = any(f"`{each}" in message for each in [*hints(one), *changed, *aliases])
        return "refused" if named and "\n" not in message else f"does not name {[*changed]}: {message!r}"
    except Late:
        return "takes too long"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    return "taken"


def positional(one: Callable[..., Any], arguments: dict[str, Any]) -> tuple[Any, ...]:
    """What must be handed over by its place, taken out of the arguments: any number of things, and all before them."""
    found = list(inspect.signature(one).parameters.values())
    place = next((i for i, p in enumerate(found) if p.kind is p.VAR_POSITIONAL), None)
    if place is None:
        return ()
    first = [arguments.pop(p.name) for p in found[:place] if p.name in arguments]
    rest = arguments.pop(found[place].name, ())
    return (*first, *(rest if isinstance(rest, tuple) else (rest,)))


def rules_for(case: Case) -> list[Rule]:
    """The rules that say that this value is taken."""
    return [rule for rule in RULES if rule.allows(case.function, case.parameter, case.bad)]


def fault(case: Case) -> tuple[str | None, list[Rule]]:
    """What is wrong with how a case ends, if anything is, and the rules it needed."""
    found = outcome(case.function, {case.parameter: case.value})
    if found == "refused":
        return None, []
    rules = rules_for(case) if found == "taken" else []
    return None if rules else found, rules


@functools.cache
def public_once() -> dict[str, Callable[..., Any]]:
    return public()


def combined(every: Sequence[Case], count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Two bad values at once, drawn with a seed."""
    draw = random.Random(0)
    by_name: dict[str, list[Case]] = {}
    for case in every:
        by_name.setdefault(case.function, []).append(case)
    names = [name for name, found in by_name.items() if len({case.parameter for case in found}) > 1]
    for _ in range(count):
        name = draw.choice(names)
        yield name, {case.parameter: case.value for case in draw.sample(by_name[name], 2)}


def unlisted() -> list[str]:
    """Public functions without good arguments, and good arguments without a function."""
    return sorted(set(public()) ^ set(BASES))


def run(everything: bool, count: int = 3000) -> Iterator[str]:
    """The faults, and at the end how many calls were made."""
    warnings.simplefilter("ignore")
    os.chdir(tempfile.mkdtemp())  # a path that is taken is made here
    if found := unlisted():
        raise SystemExit(f"tests/arguments_base.py has no good arguments for {', '.join(found)}")
    every = cases()
    # The fast slice: every eighth bad value.
    chosen = every if everything else [case for i, case in enumerate(every) if i % 8 == 0]
    used: set[tuple[Rule, str, str]] = set()
    for case in chosen:
        found, rules = fault(case)
        used.update((rule, case.parameter, case.bad) for rule in rules)
        if found is not None:
            yield json.dumps([case.function, case.parameter, case.bad, found])
    calls = len(chosen)
    if everything:
        stale = {(rule, *pair) for rule in RULES for pair in rule.pairs} - used
        yield from (json.dumps(["no such case", *pair, rule.reason]) for rule, *pair in stale)
        for name, changed in combined(every, count):
            found = outcome(name, changed)
            if found not in ("refused", "taken"):
                yield json.dumps([name, *changed, found])
        calls += count
    yield json.dumps({"calls": calls, "functions": len(public_once())})


if __name__ == "__main__":
    for line in run("--all" in sys.argv):
        print(line, flush=True)
