"""The layers of a module by depth: found from a pass on a few samples, not from the names of classes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from regimes.control.linear import Linearized
from regimes.core.batch import Inputs, feed, transform
from regimes.core.error import UserError, nearest
from regimes.core.tree import trainable

__all__ = ["Depths", "as_written", "by_depth", "inside", "outputs_of", "undisturbed", "upwards"]


def inside(module: nn.Module) -> nn.Module:
    """The module in DistributedDataParallel and ``torch.compile``: names are the same with them and without."""
    if isinstance(module, DistributedDataParallel):
        return inside(module.module)
    compiled = module._modules.get("_orig_mod")
    return module if compiled is None else inside(compiled)


def outputs_of(value: Any) -> Iterator[Tensor]:
    """The tensors in what a module returns."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from outputs_of(each)
    elif hasattr(value, "__dataclass_fields__"):
        yield from outputs_of(vars(value))


@dataclass(frozen=True)
class Depths:
    """The layers of a module, from the bottom, next to the inputs, to the top.

    Attributes:
        layers: their names.
        parameters: the names of the parameters of each.
        calls: when the modules ran for the first time, by name.
    """

    layers: tuple[str, ...]
    parameters: tuple[tuple[str, ...], ...]
    calls: Mapping[str, int]


def by_depth(module: nn.Module, example: Inputs, layers: Sequence[str] | None) -> Depths:
    """The parameters that require grad, by layer, the layers from the bottom to the top.

    A layer is above another if it is used after it. In the graph of autograd that is the first node at which a
    parameter of the layer meets anything that other layers have had a part in; weights that are prepared in
    advance count where they are used. The parameters and buffers of the module, and the generators, are left as they
    are.

    Args:
        module: without wrappers (:func:`inside`).
        example: inputs that it takes.
        layers: names of modules that are one layer each with all below them, ``*`` for any part of a name; what is in
            none of them goes by the module that owns it.

    Raises:
        UserError: if there is no parameter that requires grad, they are sharded, one has no part in the outputs, or
            activations require grad without them.
    """
    own = trainable(module)
    if not own:
        raise UserError(
            "`module`: has no parameter that requires grad, expected at least one; nothing can move"
        )
    _refuse_sharded(module)
    patterns = _known(module, own, layers)
    with undisturbed(module), as_written(module), _nonlinear(module):
        for parameter in own.values():
            parameter.requires_grad_(False)
        _refuse_stray_graph(module, example)
        for parameter in own.values():
            parameter.requires_grad_(True)
        ends, calls = _traced(module, example)
    groups = _grouped(module, own, patterns, calls)
    keys = _depths(
        ends, {id(own[name]): place for place, names in enumerate(groups.values()) for name in names}
    )
    for place, (layer, names) in enumerate(groups.items()):
        if place not in keys:
            raise UserError(
                f"`module`: '{names[0]}' of layer '{layer}' has no part in the outputs for `example`; freeze it "
                "(requires_grad_(False)), or make it part of a layer that has one (`layers`). A checkpoint with "
                "use_reentrant=True hides what is inside: use False"
            )
    order = sorted(enumerate(groups.items()), key=lambda item: (*keys[item[0]], item[0]))
    return Depths(
        layers=tuple(layer for _, (layer, _) in order),
        parameters=tuple(tuple(names) for _, (_, names) in order),
        calls=calls,
    )


def _refuse_sharded(module: nn.Module) -> None:
    """Raise if parameters are in parts on several devices: a pass uses other tensors than those of the module."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    from torch.distributed.fsdp import (
        FSDPModule,
        FullyShardedDataParallel,
    )  # slow to import, and rarely there

    for name, part in module.named_modules():
        if isinstance(part, FSDPModule | FullyShardedDataParallel):
            raise UserError(
                f"`module`: the parameters of '{name}' are sharded (fully sharded data parallel), which is not "
                "supported: a pass uses other tensors than those that the optimiser holds; take "
                "DistributedDataParallel, or drop what rests (`state`) where memory is short"
            )


def _known(module: nn.Module, own: Mapping[str, Tensor], layers: Sequence[str] | None) -> Sequence[str]:
    """The patterns, each of which some module with parameters goes by."""
    modules = {name for name, _ in module.named_modules(remove_duplicate=False)}
    holding = [name for name in modules if name and any(each.startswith(f"{name}.") for each in own)]
    for pattern in layers or ():
        if not any(fnmatchcase(name, pattern) for name in holding):
            raise UserError(
                f"`layers`: got '{pattern}', expected names of modules that have parameters that require grad"
                f"{nearest(pattern, holding)}"
            )
    return layers or ()


def _grouped(
    module: nn.Module, own: Mapping[str, Tensor], patterns: Sequence[str], calls: Mapping[str, int]
) -> dict[str, list[str]]:
    """The names of the parameters by layer. One that several layers share belongs to the one that runs first."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    groups: dict[str, list[str]] = {}
    for name, parameter in own.items():
        owners = [_owner(each) for each in names[id(parameter)]]
        owner = min(owners, key=lambda each: calls.get(each, math.inf))
        parts = owner.split(".")
        outer = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
        layer = next((each for each in outer if any(fnmatchcase(each, one) for one in patterns)), owner)
        groups.setdefault(layer, []).append(name)
    return groups


def _owner(name: str) -> str:
    """The module that a parameter is a weight of; ``torch.nn.utils.parametrize`` keeps it two modules below."""
    return (
        name.partition(".parametrizations.")[0] if ".parametrizations." in name else name.rpartition(".")[0]
    )


def _depths(ends: Sequence[Any], places: Mapping[int, int]) -> dict[int, tuple[int, int]]:
    """For each layer the first node where it meets others, and the first where it is used, by their numbers in time."""
    parts: dict[Any, int] = {}  # for each node the layers that it depends on, as bits
    keys: dict[int, tuple[int, int]] = {}
    for node in upwards(ends):
        following = [each for each, _ in node.next_functions if each is not None]
        parts[node] = mixed = _joined(parts[each] for each in following)
        if not following:
            place = places.get(id(getattr(node, "variable", None)))
            parts[node] = 0 if place is None else 1 << place
            continue
        now = node._sequence_nr()
        for each in following:
            part = parts[each]
            if part and not part & (part - 1):
                place = part.bit_length() - 1
                met, used = keys.get(place, (2**64, 2**64))
                first = not each.next_functions
                keys[place] = (min(met, now) if mixed != part else met, min(used, now) if first else used)
    return keys


def _joined(parts: Iterator[int]) -> int:
    found = 0
    for part in parts:
        found |= part
    return found


def upwards(ends: Sequence[Any]) -> list[Any]:
    """The nodes of a graph of autograd, each after all those it depends on."""
    order: list[Any] = []
    seen: set[Any] = set()
    waiting = [(end, False) for end in ends]
    while waiting:
        node, done = waiting.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            waiting.append((node, True))
            waiting += [(each, False) for each, _ in node.next_functions if each is not None]
    return order


def _run(module: nn.Module, example: Inputs) -> Any:
    """What the module gives for a copy of the example, which it may overwrite."""
    return feed(module, transform(example, lambda tensor: tensor.detach().clone()))


def _traced(module: nn.Module, example: Inputs) -> tuple[list[Any], dict[str, int]]:
    """The ends of the graph of a pass, and when each module ran for the first time, by name."""
    calls: dict[str, int] = {}

    def note(name: str) -> None:
        calls.setdefault(name, len(calls))

    hooks = [
        each.register_forward_pre_hook(lambda _, __, name=name: note(name))
        for name, each in module.named_modules(remove_duplicate=False)
        if not isinstance(each, torch.jit.ScriptModule)
    ]
    try:
        with torch.enable_grad():
            outputs = list(outputs_of(_run(module, example)))
    finally:
        for hook in hooks:
            hook.remove()
    return [each.grad_fn for each in outputs if each.grad_fn is not None], calls


def _refuse_stray_graph(module: nn.Module, example: Inputs) -> None:
    """Raise if activations require grad where no parameter does."""
    found: list[str] = []

    def look(name: str, value: Any) -> None:
        if any(each.requires_grad for each in outputs_of(value)):
            found.append(name)

    hooks = [
        each.register_forward_hook(lambda _, __, value, name=name: look(name, value))
        for name, each in module.named_modules()
        if not isinstance(each, torch.jit.ScriptModule)
    ]
    try:
        with torch.enable_grad():
            _run(module, example)
    finally:
        for hook in hooks:
            hook.remove()
    if found:
        raise UserError(
            f"`module`: the outputs of '{found[0]}' require grad where nothing moves, so that all activations above it "
            "would be kept; switch that off (disable_input_require_grads of Hugging Face, gradients taken in the pass)"
        )


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Leave the buffers, what requires grad, and the generators as they are."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    devices = {p.device.index or 0 for p in module.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)):
        try:
            yield
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


@contextmanager
def as_written(module: nn.Module) -> Iterator[None]:
    """Run without compiling, where something is compiled."""
    parts = module.modules()
    if any("_orig_mod" in each._modules or each._compiled_call_impl is not None for each in parts):
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


@contextmanager
def _nonlinear(module: nn.Module) -> Iterator[None]:
    """Run f in the place of its linearisation: J v has the depth of f, but takes up all parameters at the start."""
    linear = [each for each in module.modules() if isinstance(each, Linearized)]
    try:
        for each in linear:
            each.__dict__["forward"] = each.nonlinear
        yield
    finally:
        for each in linear:
            del each.__dict__["forward"]
