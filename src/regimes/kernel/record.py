"""A forward pass under watch: which operation uses which parameter, found by the identity of the parameter.

Every function of torch that a module calls passes through here. What it does with parameters alone (a transpose,
a slice, a normalised weight) is noted as a reference; what it does with parameters and data is noted as a use, and
the parameters are kept out of the graph, so that a backward pass never forms their gradients.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from regimes.core.batch import Inputs, tensors
from regimes.core.error import UserError
from regimes.core.graph import reached
from regimes.kernel.call import Call
from regimes.kernel.parse import multiple, operation, parse
from regimes.kernel.use import Reference, Use

__all__ = ["Recorder"]

# Reading a number out of a tensor: what follows can depend on it in ways that no derivative shows.
_DECISIONS = frozenset(
    {Tensor.__bool__, Tensor.item, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.tolist}
)
_RANDOM = frozenset(
    {
        torch.bernoulli,
        torch.multinomial,
        torch.normal,
        torch.poisson,
        torch.rand,
        torch.rand_like,
        torch.randn,
    }
    | {torch.randn_like, torch.randint, torch.randperm, Tensor.bernoulli_, Tensor.normal_, Tensor.uniform_}
)
_DROPOUT = frozenset(
    {functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d}
    | {functional.alpha_dropout, functional.feature_alpha_dropout}
)
_WATCHED = _DECISIONS | _RANDOM | _DROPOUT | {functional.batch_norm, functional.scaled_dot_product_attention}


class Recorder(TorchFunctionMode):
    """Notes the uses of some parameters while it is active.

    Attributes:
        uses: the uses, in order.
        rest: parameters used in a way that no rule describes.
        closed: set once the forward pass is over; from then on operations get the same treatment, but leave
            no note.

    Args:
        module: f.
        leaves: what stands in for its parameters, by name.
        x: the samples.
        copied: the uses, by their place in the order, whose inputs are to be copied.
    """

    def __init__(
        self, module: nn.Module, leaves: Mapping[str, Tensor], x: Inputs, copied: Collection[int] = ()
    ) -> None:
        super().__init__()
        self.uses: list[Use] = []
        self.rest: set[str] = set()
        self.closed = False
        self._module = module
        self._copied = copied
        self._names = {id(leaf): name for name, leaf in leaves.items()}
        self._references = {
            id(leaf): Reference((name,), leaf, 1.0, version=leaf._version) for name, leaf in leaves.items()
        }
        for tensor in tensors(x).values():
            _mark(tensor, tensor.is_floating_point())

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        call = Call(func, args, kwargs or {})
        found: list[Reference] = []
        data: bool | None = None
        for tensor in call.tensors():
            reference = self._references.get(id(tensor))
            if reference is not None:
                found.append(reference)
            else:
                data = _either(data, _marking(tensor))
        if func in _WATCHED:
            self._refuse(call, bool(data))
        if not found:
            return _marked(call, call(), data)
        if data is None:
            return self._derived(call, found)
        return self._used(call)

    def _derived(self, call: Call, found: list[Reference]) -> Any:
        """Of parameters alone: what comes out is a reference as well."""
        out = call()
        factor, transposed = (None, False) if call.in_place else multiple(call, found)
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, Tensor) and one.requires_grad and not one.is_leaf:
                self._references[id(one)] = Reference((), one, factor, transposed, one._version)
        return out

    def _settle(self, call: Call) -> None:
        """Bring the references of a call up to date: what was computed may have been changed in place since."""
        for tensor in call.tensors():
            reference = self._references.get(id(tensor))
            if reference is not None and not tensor.is_leaf:
                found = reached(tensor)
                names = tuple(name for leaf, name in self._names.items() if leaf in found)
                kept = reference.version == tensor._version and len(names) == 1
                self._references[id(tensor)] = replace(
                    reference, names=names, factor=reference.factor if kept else None
                )

    def _used(self, call: Call) -> Any:
        """Of parameters and data: run without the parameters in the graph, and note the use."""
        self._settle(call)
        draft = parse(call, self._references)
        if draft is None and _is_composite(call.function):
            with self:
                return _opened(call.function)(*call.args, **call.kwargs)
        noting = torch.is_grad_enabled() and not self.closed
        if draft is None and noting:
            # To be done again from its arguments, one that works in place needs them as they were.
            draft = operation(call.with_first_copied() if call.in_place else call, self._references)
        if draft is not None and len(self.uses) in self._copied:
            draft = replace(draft, inputs=tuple(x.clone() for x in draft.inputs))
        versions = tuple(x._version for x in draft.inputs) if draft is not None else ()
        out = _marked(call, self._without_parameters(call)(), True)
        smooth = isinstance(out, Tensor) and (out.is_floating_point() or out.is_complex())
        if not noting or (isinstance(out, Tensor) and not smooth):
            return out
        if draft is None or not smooth or out.is_complex() or not out.requires_grad:
            used = (self._references[id(t)] for t in call.tensors() if id(t) in self._references)
            self.rest.update(name for reference in used for name in reference.names)
            return out
        self.uses.append(Use(draft, versions, get_gradient_edge(out), out.shape))
        return out

    def _without_parameters(self, call: Call) -> Call:
        """The call with plain values; where nothing else has a graph, they start one, for what follows."""
        first = not any(t.requires_grad for t in call.tensors() if id(t) not in self._references)

        def bare(tensor: Tensor) -> Tensor:
            if id(tensor) not in self._references:
                return tensor
            value = tensor.detach()
            return value.requires_grad_() if first else value

        return call.map(bare)

    def _refuse(self, call: Call, numbers: bool) -> None:
        """Raise for what gives no kernel: control flow that depends on data, chance, coupled samples."""
        function = call.function
        if function in _DECISIONS:
            if numbers and not _inside_function():
                raise UserError(
                    f"`module`: {self._where()} reads a number out of its data ({call.name}): data-dependent "
                    "control flow has no tangent kernel; write it with torch.where"
                )
        elif function is functional.batch_norm:
            if _arguments(call)["training"]:
                raise UserError(
                    f"`module`: {self._where()} couples the samples of a batch (batch norm in train mode), so that "
                    "none has a gradient of its own; call .eval(), or use GroupNorm"
                )
        elif function in _RANDOM:
            raise UserError(
                f"`module`: {self._where()} draws random numbers in its forward ({call.name}); call .eval(), "
                "or take them out"
            )
        elif function in _DROPOUT:
            given = _arguments(call)
            if given["training"] and given["p"] > 0:
                raise UserError(f"`module`: {self._where()} drops out at random ({call.name}); call .eval()")
        elif call.kwargs.get("dropout_p", call.args[4] if len(call.args) > 4 else 0.0):
            raise UserError(f"`module`: {self._where()} drops out at random (attention); call .eval()")

    def _where(self) -> str:
        """The innermost submodule whose code runs now, by name and class."""
        names = {id(sub): name for name, sub in self._module.named_modules()}
        frame = sys._getframe(1)
        while frame is not None:
            owner = frame.f_locals.get("self")
            if id(owner) in names and isinstance(owner, nn.Module):
                name = names[id(owner)]
                return f"'{name}' ({type(owner).__name__})" if name else type(owner).__name__
            frame = frame.f_back
        return type(self._module).__name__


def _inside_function() -> bool:
    """Whether a custom autograd Function runs: it brings its own derivative, whatever it decides inside."""
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("cls") if frame.f_code.co_name == "apply" else None
        if isinstance(owner, type) and issubclass(owner, torch.autograd.Function):
            return True
        frame = frame.f_back
    return False


def _mark(tensor: Tensor, numbers: bool) -> None:
    """Note on a tensor that it comes from the samples; ``numbers``: from floating-point ones."""
    tensor._of_samples = numbers  # type: ignore[attr-defined]


def _marking(tensor: Tensor) -> bool | None:
    # What autograd of torch itself made (a custom Function) carries no mark, but a graph.
    return True if tensor.requires_grad else getattr(tensor, "_of_samples", None)


def _either(a: bool | None, b: bool | None) -> bool | None:
    return b if a is None else a if b is None else a or b


def _marked(call: Call, out: Any, data: bool | None) -> Any:
    """The outcome, marked as its arguments are."""
    if data is None:
        return out
    # How long the sequences are is known beside the numbers in them.
    counts = call.name in ("_pack_padded_sequence", "_pad_packed_sequence")
    changed = call.args[:1] if call.in_place or call.name == "__setitem__" else ()
    for one in (*changed, *(out if isinstance(out, tuple | list) else (out,))):
        if isinstance(one, Tensor):
            before = getattr(one, "_of_samples", None)
            _mark(one, bool(_either(data and not (counts and not one.is_floating_point()), before)))
    return out


def _arguments(call: Call) -> Mapping[str, Any]:
    bound = inspect.signature(call.function).bind(*call.args, **call.kwargs)
    bound.apply_defaults()
    return bound.arguments


def _is_composite(function: Any) -> bool:
    return isinstance(function, FunctionType) and function.__module__ == "torch.nn.functional"


def _opened(function: FunctionType) -> FunctionType:
    """A function of torch.nn.functional that does its work without handing itself to the mode again.

    It is made at each call: what it calls may have been replaced since the last one.
    """

    def never(*_args: Any) -> bool:
        return False

    checks = {name: never for name in function.__globals__ if name.startswith("has_torch_function")}
    made = FunctionType(
        function.__code__, {**function.__globals__, **checks}, function.__name__, function.__defaults__
    )
    made.__kwdefaults__ = function.__kwdefaults__
    return made
