"""Two passes, with other samples and other layers on top, and what they have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from regimes.control.layers.order import as_written, undisturbed
from regimes.control.layers.passes import Hook
from regimes.control.prefix.record import Enough, PassRecorder
from regimes.control.prefix.replay import Detour, Entry, Sizes, Slot, replaced
from regimes.control.unchanged.computed import precision
from regimes.core.error import UserError

__all__ = ["Recorded", "agree", "merge", "other_samples", "perturbed", "record", "tolerance"]


@final
@dataclass(frozen=True)
class Recorded:
    """A pass that was recorded, and what it returned."""

    recorder: PassRecorder
    outputs: Any


def record(
    network: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    moving: Sequence[Tensor],
    opaque: frozenset[nn.Module],
    stop: int | None = None,
) -> Recorded:
    """A pass under watch that leaves the module and the generators as they are, to the end or to so many values.

    Raises:
        Opaque: names a module that has to be looked into.
        UserError: if something below the cut is not the same each time, or has hooks.
    """
    names = {each: name for name, each in network.named_modules()}
    ids = {id(each) for each in moving}
    own = [(each, {id(p) for p in each.parameters()} & ids) for each in names if each is not network]
    watched = [
        each
        for each, above in own
        if not isinstance(each, torch.jit.ScriptModule)
        and (not above or each._compiled_call_impl is not None or "_orig_mod" in each._modules)
    ]
    attributes = [each for module in names for each in vars(module).values() if isinstance(each, Tensor)]
    fixed = [each for each in (*network.parameters(), *network.buffers(), *attributes) if id(each) not in ids]
    copied = tree_map_only(Tensor, lambda each: each.clone(), (tuple(args), dict(kwargs)))
    inputs = [each for each in tree_leaves(copied) if isinstance(each, Tensor)]
    recorder = PassRecorder(names, moving, fixed, inputs, opaque, stop)
    outputs = None
    with undisturbed(network), as_written(network), replaced(watched, recorder.call), recorder:
        try:
            outputs = network.forward(*copied[0], **copied[1])
            recorder.end(outputs)
        except Enough:
            return Recorded(recorder, None)
    for module in {each.what for each in recorder.entries if each.how == "skip"}:
        if isinstance(module, nn.Module):
            _refuse_hooks(module, names)
    return Recorded(recorder, outputs)


def _refuse_hooks(module: nn.Module, names: Mapping[nn.Module, str]) -> None:
    """Raise if a hook would not be called any more."""
    for part in module.modules():
        hooks = (*part._forward_hooks.values(), *part._forward_pre_hooks.values())
        if any(not isinstance(hook, Hook) for hook in hooks):
            raise UserError(
                f"`policy`: '{names[part]}' has a hook, which would not be called where its outputs are looked up; "
                "remove the hook, or do without a CachedPrefix"
            )


def other_samples(n: int) -> Tensor:
    """Places of n samples: in the other order, and one twice."""
    return torch.tensor([*reversed(range(n)), n - 1])


@contextmanager
def perturbed(moving: Sequence[Tensor]) -> Iterator[None]:
    """Other values for what may move."""
    drawn = torch.Generator().manual_seed(0)
    before = [each.data for each in moving]
    try:
        for each in moving:
            noise = torch.randn(each.shape, generator=drawn).to(each)
            each.data = 1.1 * each.data + 0.1 * noise * each.data.abs().mean()
        yield
    finally:
        for each, value in zip(moving, before, strict=True):
            each.data = value


def merge(one: PassRecorder, other: PassRecorder, n: int, m: int) -> Detour:
    """What two passes with n and m samples have in common.

    Raises:
        UserError: if they differ by more than the number of samples.
    """
    pairs = [*zip(one.entries, other.entries, strict=False)]
    strange = next((a for a, b in pairs if a.way != b.way), None)
    if strange is not None or len(one.entries) != len(other.entries) or one.calls != other.calls:
        raise UserError(
            f"`policy`: below what moves, a pass takes another way for other samples{_at(strange)}; do without a "
            "CachedPrefix, or freeze fewer layers"
        )
    if not any(each.how == "skip" for each in one.entries):
        raise UserError(
            "`policy`: nothing of its module is the same at each pass; expected frozen layers next to the inputs that "
            "are called as modules"
        )
    shapes = [
        _shape(a, b, each, n, m) for a, b, each in zip(one.shapes, other.shapes, one.results, strict=True)
    ]
    slots = [_slot(a, b, n, m) for a, b in zip(one.values, other.values, strict=True)]
    return Detour(
        tuple(one.entries),
        {module: tuple(kinds) for module, kinds in one.calls.items()},
        tuple(shapes),
        tuple(slots),
    )


def _at(entry: Entry | None) -> str:
    if entry is None:
        return ""
    what = entry.what
    return f" at '{type(what).__name__ if isinstance(what, nn.Module) else getattr(what, '__name__', what)}'"


def _shape(one: torch.Size, other: torch.Size, value: Tensor, n: int, m: int) -> Sizes:
    """Sizes as a function of the number of samples."""
    if len(one) != len(other):
        raise UserError("`policy`: below what moves, the number of axes hangs on the number of samples")
    slopes = [(b - a) // (m - n) for a, b in zip(one, other, strict=True)]
    sizes = tuple((slope, a - slope * n) for slope, a in zip(slopes, one, strict=True))
    return Sizes(sizes, value.dtype, value.device)


def _slot(one: Tensor, other: Tensor, n: int, m: int) -> Slot:
    """Which axis is that of the samples."""
    shape = _shape(one.shape, other.shape, one, n, m)
    axes = [axis for axis, (slope, _) in enumerate(shape.sizes) if slope]
    if len(axes) > 1 or any(shape.sizes[axis][1] for axis in axes):
        raise UserError(
            f"`policy`: what the layers that move take from those below has shape {tuple(one.shape)} for {n} samples "
            f"and {tuple(other.shape)} for {m}, expected one axis with a place for each sample"
        )
    order = sorted(range(one.dim()), key=lambda axis: (-one.stride(axis), axis))
    return Slot(axes[0] if axes else None, tuple(order), shape)


def tolerance(value: Tensor) -> float:
    """What a value may differ by in a batch of another size, relative to its largest entry."""
    if not value.dtype.is_floating_point and not value.dtype.is_complex:
        return 0.0
    fast = value.is_cuda and not {*precision()} <= {"ieee", "none"}
    return 1e-2 if fast else min(0.05, 256 * torch.finfo(value.dtype).eps)


def agree(found: Sequence[Tensor], kept: Sequence[Tensor], say: Callable[[int], str]) -> None:
    """Raise if values differ by more than rounding."""
    for place, (one, other) in enumerate(zip(found, kept, strict=True)):
        one, other = one.detach(), other.detach()
        same = one.shape == other.shape and one.dtype == other.dtype
        if same and not torch.equal(one, other):
            scale = float(other.abs().max()) if other.numel() else 0.0
            bound = tolerance(one) * scale
            same = torch.allclose(one, other, rtol=0.0, atol=bound, equal_nan=True)
        if not same:
            raise UserError(f"`policy`: {say(place)}")
