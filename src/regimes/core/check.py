"""What an argument may be, read off its annotation: the same rule for every public function.

Numbers may be Python's, numpy's, or tensors of shape (); nan is none. Tensors are tensors, and dense: what can be
made one is not, since a copy of other precision, or on another device, would go unseen. Paths may be strings.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
import os
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from regimes.core.error import UserError, nearest

__all__ = ["checked"]

Checked = TypeVar("Checked", bound=Callable[..., Any])
WRONG = object()
LARGE = 2**31


@dataclass(frozen=True)
class Kind:
    """What a value may be: in words, and a function from it to what is handed on (``WRONG`` if it is none)."""

    words: str
    take: Callable[[Any], Any]
    names: tuple[str, ...] = ()


def checked(function: Checked) -> Checked:
    """A public function, or class, that refuses an argument that is not what its annotation says.

    Raises:
        UserError: names the argument, what came, what was expected and the way out. Also where the module among
            the arguments does not take the inputs among them.

    >>> @checked
    ... def double(width: int) -> int:
    ...     return 2 * width
    >>> double("3")
    Traceback (most recent call last):
    regimes.core.error.UserError: `width`: got '3', expected a whole number of at most 64 bits
    """
    if inspect.isclass(function):
        function.__init__ = _checked(function.__init__)
        return typing.cast(Checked, function)
    return typing.cast(Checked, _checked(function))


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(function)

    @functools.cache
    def kinds() -> dict[str, tuple[Any, Kind]]:
        hints = _hints(function)
        return {name: (hints[name], kind_of(hints[name])) for name in signature.parameters if name in hints}

    @functools.wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        try:
            bound = signature.bind(*args, **named)
        except TypeError:
            return function(*args, **named)  # Python says it best
        for name, value in bound.arguments.items():
            if name in kinds():
                bound.arguments[name] = _every(signature.parameters[name], kinds()[name][1], value)
        try:
            return function(*bound.args, **bound.kwargs)
        except UserError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError, MemoryError, ArithmeticError) as error:
            inputs = [name for name, (hint, _) in kinds().items() if _is_inputs(hint)]
            found = _too_large(bound.arguments, error) or _misfit(bound.arguments, inputs)
            if found is None:
                raise
            raise found from error

    return call


def _too_large(arguments: Mapping[str, Any], error: Exception) -> UserError | None:
    """What to say where a size is so large that nothing of the kind can be made, whatever failed over it."""
    sizes = {name: value for name, value in arguments.items() if type(value) is int and value >= LARGE}
    if not sizes:
        return None
    name = max(sizes, key=lambda each: sizes[each])
    return UserError(
        f"`{name}`: got {sizes[name]}, which is too large ({str(error).splitlines()[0]}); take less"
    )


def _misfit(arguments: Mapping[str, Any], inputs: Sequence[str]) -> UserError | None:
    """What to say of the first of these inputs that the module among the arguments does not take."""
    if "module" not in arguments or not inputs:
        return None
    from regimes.core.batch import misfit  # a study without networks needs no PyTorch

    given = ((name, arguments.get(name)) for name in inputs)
    found = (misfit(arguments["module"], x, name) for name, x in given if x is not None)
    return next((each for each in found if each is not None), None)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations, evaluated."""
    plain = inspect.unwrap(function)
    return typing.get_type_hints(plain, vars(sys.modules[plain.__module__]), include_extras=True)


def _is_inputs(hint: Any) -> bool:
    """Whether the annotation is that of the inputs of a network (``core.batch.Inputs``), or of those or None."""
    return all(each in get_args(hint) for each in (Sequence[Any], Mapping[str, Any]))


def _every(parameter: inspect.Parameter, kind: Kind, value: Any) -> Any:
    """The value of a parameter, each one of ``*args`` and ``**named``."""
    if parameter.kind is parameter.VAR_POSITIONAL:
        return tuple(_take(parameter.name, kind, each) for each in value)
    if parameter.kind is parameter.VAR_KEYWORD:
        return {name: _take(name, kind, each) for name, each in value.items()}
    return _take(parameter.name, kind, value)


def _take(name: str, kind: Kind, value: Any) -> Any:
    found = kind.take(value)
    if found is WRONG:
        near = nearest(value, kind.names) if isinstance(value, str) else ""
        raise UserError(f"`{name}`: got {shown(value)}, expected {kind.words}{near}{_way_out(kind, value)}")
    return found


def _way_out(kind: Kind, value: Any) -> str:
    words = f" {kind.words}"
    if " tensor" in words and (type(value).__module__ == "numpy" or isinstance(value, list | tuple)):
        return "; torch.as_tensor makes one"
    if " a path" in words and isinstance(value, str | os.PathLike) and os.fspath(value)[:1] in ("~", b"~"):
        return "; no user of that name has a home here, and a directory of that name is written with ./ before it"
    if "nn.Module" in words and isinstance(value, type):
        return f"; call it first: {value.__name__}(...)"
    if "nn.Module" in words and isinstance(value, Mapping):
        return "; a state_dict goes into one by module.load_state_dict"
    return ""


def shown(value: Any) -> str:
    """What came, on one line.

    >>> shown("1GB"), shown([1, 2]), shown(dict)
    ("'1GB'", '[1, 2]', 'the class dict')
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        kind = "a tensor" if type(value).__module__.startswith("torch") else "an array"
        layout = "" if _dense(value) else f" ({value.layout}, on {value.device})"
        return f"{kind} of {value.dtype} {tuple(value.shape)}{layout}"
    try:
        text = repr(value)
    except Exception:  # an object may be broken in any way, and an integer too long to be written
        text = "\n"
    return text if len(text) <= 80 and text.isprintable() else f"an object of type {type(value).__name__}"


def kind_of(hint: Any) -> Kind:
    """The kind of value that an annotation means; anything where it says nothing that can be checked."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return kind_of(args[0])
    if origin in (Union, types.UnionType):
        paths = Path in args or any(get_origin(each) is os.PathLike for each in args)
        return _one_of([kind_of(each) for each in args if not (paths and each is str)])
    if origin is os.PathLike:
        return _SIMPLE[Path]
    if origin is Literal:
        names = tuple(map(str, args))
        return Kind(f"one of {', '.join(names)}", functools.partial(_literal, args), names)
    if hint in _SIMPLE:
        return _SIMPLE[hint]
    if origin is type:
        return Kind(f"a class of {args[0].__name__}", functools.partial(_subclass, args[0]))
    if hasattr(hint, "array_type"):  # a tensor with its shape, of jaxtyping
        return kind_of(hint.array_type)
    if origin is not None and inspect.isclass(origin):
        return _container(origin, args)
    if not inspect.isclass(hint) or hint is object:
        return Kind("anything", lambda value: value)
    if getattr(hint, "_is_protocol", False):
        names = tuple(name for name in vars(hint) if not name.startswith("_"))
        return Kind(f"an object with {', '.join(names)}", functools.partial(_described, names))
    name = f"{hint.__module__}.{hint.__qualname__}"
    if name == "torch.Tensor":
        return Kind("a dense tensor", functools.partial(_tensor, hint))
    words = "a torch.nn.Module" if name == "torch.nn.modules.module.Module" else f"a {name}"
    return Kind(words, functools.partial(_instance, hint))


def _one_of(kinds: Sequence[Kind]) -> Kind:
    def take(value: Any) -> Any:
        found = (kind.take(value) for kind in kinds)
        return next((each for each in found if each is not WRONG), WRONG)

    words = list(dict.fromkeys(kind.words for kind in kinds))
    return Kind(", or ".join(words), take, tuple(name for kind in kinds for name in kind.names))


def _literal(known: Sequence[Any], value: Any) -> Any:
    return value if any(type(value) is type(each) and value == each for each in known) else WRONG


def _subclass(parent: type, value: Any) -> Any:
    return value if isinstance(value, type) and issubclass(value, parent) else WRONG


def _instance(kind: type, value: Any) -> Any:
    return value if isinstance(value, kind) else WRONG


def _described(names: Sequence[str], value: Any) -> Any:
    return value if not isinstance(value, type) and all(hasattr(value, name) for name in names) else WRONG


def _tensor(kind: type, value: Any) -> Any:
    return value if isinstance(value, kind) and _dense(value) else WRONG


def _dense(value: Any) -> bool:
    odd = any(getattr(value, name, False) for name in ("is_meta", "is_nested", "is_quantized"))
    return not odd and str(getattr(value, "layout", "strided")).endswith("strided")


def _scalar(value: Any) -> Any:
    """A number of numpy or a tensor of shape () as one of Python."""
    return (
        value.item()
        if getattr(value, "shape", None) == () and hasattr(value, "item") and _dense(value)
        else value
    )


def _whole(value: Any) -> Any:
    number = _scalar(value)
    if isinstance(number, bool):
        return WRONG
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    try:
        found = operator.index(typing.cast(Any, number))
    except TypeError:
        return WRONG
    return found if -(2**63) <= found < 2**64 else WRONG


def _real(value: Any) -> Any:
    value = _scalar(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        return WRONG
    try:
        number = float(value)
    except OverflowError:
        return WRONG
    return WRONG if math.isnan(number) else value if isinstance(value, int) else number


def _flag(value: Any) -> Any:
    value = _scalar(value)
    return value if isinstance(value, bool) else WRONG


def _path(value: Any) -> Any:
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else ""
    if not isinstance(text, str) or not text or "\0" in text:
        return WRONG
    try:
        return Path(text).expanduser()
    except RuntimeError:  # of a user that there is not
        return WRONG


def _nothing(value: Any) -> Any:
    return value if value is None else WRONG


_SIMPLE: Mapping[Any, Kind] = {
    Any: Kind("anything", lambda value: value),
    type(None): Kind("None", _nothing),
    bool: Kind("True or False", _flag),
    int: Kind("a whole number of at most 64 bits", _whole),
    float: Kind("a number", _real),
    str: Kind("a string", functools.partial(_instance, str)),
    Path: Kind("a path", _path),
}


def _container(origin: type, args: tuple[Any, ...]) -> Kind:
    """A collection, each entry of which has a kind."""
    if origin is Callable:
        return Kind("a function", lambda value: value if callable(value) else WRONG)
    kinds = [kind_of(each) for each in args if each is not Ellipsis]
    if issubclass(origin, Mapping):
        words = f"a mapping{_of(kinds[1])}"
        return Kind(words, lambda value: value if _holds(origin, kinds, value) else WRONG)
    if origin is tuple and Ellipsis not in args:
        words = f"{len(kinds)} values ({', '.join(kind.words for kind in kinds)})"
        return Kind(words, functools.partial(_fixed, kinds))
    if issubclass(origin, Sequence):
        return Kind(f"a sequence{_of(kinds[0])}", functools.partial(_sequence, kinds[0]))
    if issubclass(origin, Iterable):
        return Kind("an iterable", functools.partial(_instance, Iterable))
    return Kind(f"a {origin.__name__}", functools.partial(_instance, origin))


def _of(kind: Kind) -> str:
    """What each entry is, in words."""
    return "" if kind.words == _SIMPLE[Any].words else f", each {kind.words}"


def _holds(origin: type, kinds: Sequence[Kind], value: Any) -> bool:
    if not isinstance(value, origin):
        return False
    pairs = [(kinds[0].take(name), kinds[1].take(each)) for name, each in value.items()]
    return not any(name is WRONG or each is WRONG for name, each in pairs)


def _fixed(kinds: Sequence[Kind], value: Any) -> Any:
    if not isinstance(value, list | tuple) or len(value) != len(kinds):
        return WRONG
    found = tuple(kind.take(each) for kind, each in zip(kinds, value, strict=True))
    return WRONG if any(each is WRONG for each in found) else found


def _sequence(kind: Kind, value: Any) -> Any:
    if (
        kind in (_SIMPLE[int], _SIMPLE[float])
        and len(getattr(value, "shape", ())) == 1
        and hasattr(value, "tolist")
    ):
        value = value.tolist()  # numbers of numpy, as good as a list of them
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        return WRONG
    found = [kind.take(each) for each in value]
    if any(each is WRONG for each in found):
        return WRONG
    return value if all(a is b for a, b in zip(found, value, strict=True)) else type(found)(found)
