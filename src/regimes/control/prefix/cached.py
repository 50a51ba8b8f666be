"""What frozen layers at the bottom give for a sample, computed once and looked up from then on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from regimes.control.layers.order import outputs_of, undisturbed
from regimes.control.layers.passes import Hook
from regimes.control.layers.policy import LayerwiseSparse
from regimes.control.prefix.detour import Recorded, agree, merge, other_samples, perturbed, record
from regimes.control.prefix.record import Opaque
from regimes.control.prefix.replay import Detour, Replay, replaced
from regimes.control.prefix.table import SampleTable, check_path
from regimes.control.unchanged.computed import Computed
from regimes.control.unchanged.contents import row_keys
from regimes.core.check import checked
from regimes.core.error import UserError

__all__ = ["CachedPrefix"]

_TURNS = 3  # so many changes one after another are no accident


@final
@checked
class CachedPrefix:
    r"""Leave out what a module computes below all layers that may ever move, for samples that were seen before.

    With a static set of layers, or any policy in which the lowest layers have p_l = 0, the prefix of the module gives
    the same for a sample in each epoch. The first pass of a sample computes it; later ones look up what the upper part
    takes from it, by the content of the sample. The loop stays as it is, in any order of samples and any size of
    batch. What crosses the cut is found from two passes: one tensor, or several, in networks with connections
    around it. The gradients are those without this object, to rounding: a row was computed in the batch that the sample
    first came in.

    Nothing is looked up that is not the same. At each pass a fingerprint is compared: parameters and buffers by
    content, training mode, attributes, hooks, autocast, kind and shape of the inputs. After a change all is computed
    anew. The first pass is taken with and without the prefix and compared, with other layers on top and with its
    samples in another order; from then on each ``recheck``-th.

    Passes without gradients (an evaluation), with inputs that require grad, inside ``policy.free()`` and after
    ``policy.remove()`` are computed in full. Hooks of modules above the cut see the passes that look for it, too. What
    is kept is not in the ``state_dict``: a run that goes on fills it again.

    Args:
        policy: of the module. Its loop has to call the module as a whole.
        samples: how many different samples come, the size of the data set. Augmented inputs cannot be looked up.
        path: a file for what is kept, mapped into memory; it is overwritten. None is memory, on the module's device.
        recheck: so many passes go by until one is compared with what the prefix computes then.

    Attributes:
        skipped: the modules, and functions of torch, that are left out; empty before the first pass.
        bytes: of what is kept for all samples.
        fills: how many passes computed the prefix.
        passes: how many passes there were.

    Raises:
        UserError: if a layer next to the inputs may move; at a pass, if something below the cut is not the same each
            time (dropout, batch norm in training mode), has hooks, hangs on other samples of the batch or on what
            moves, more than ``samples`` samples came, or a check fails.

    Source: the cached prefix of Liu, Agarwal, Venkataraman 2021 (AutoFreeze), and of Wang et al. 2023 (Egeria).

    >>> import torch
    >>> from regimes import control, models
    >>> net, x, y = models.mlp(8, 16, 3), torch.randn(64, 8).double(), torch.randn(64).double()
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> policy = control.LayerwiseSparse(net, optimizer, control.Fixed(top=1), example=x[:2])
    >>> prefix = control.CachedPrefix(policy, samples=64)
    >>> for step in range(9):
    ...     optimizer.zero_grad()
    ...     rows = torch.randperm(64)[:16] if step else torch.arange(64)
    ...     (net(x[rows])[:, 0] - y[rows]).square().mean().backward()
    ...     optimizer.step()
    >>> prefix.passes, prefix.fills, prefix.skipped
    (9, 1, ('0', '1', '2', '3', '4', '5'))
    """

    def __init__(
        self, policy: LayerwiseSparse, samples: int, *, path: Path | str | None = None, recheck: int = 100
    ) -> None:
        for name, value in (("samples", samples), ("recheck", recheck)):
            if value < 1:
                raise UserError(f"`{name}`: got {value}, expected a whole number of at least 1")
        chances = policy.plan.probabilities
        if chances[0] > 0 and len(policy.parameters) == len([*policy.network.parameters()]):
            raise UserError(
                f"`policy`: its lowest layer '{policy.plan.layers[0]}' moves at a share {chances[0]:g} of the steps, "
                "so that nothing below stays the same; expected p = 0 there, as with Fixed(top=1)"
            )
        self._policy, self._network = policy, policy.network
        hooks = (getattr(each, "call", None) for each in self._network._forward_pre_hooks.values())
        if any(isinstance(getattr(each, "__self__", None), CachedPrefix) for each in hooks):
            raise UserError("`policy`: has a CachedPrefix already; call its remove() first")
        if self._network._compiled_call_impl is not None:
            raise UserError(
                "`policy`: its module is compiled as one function; compile it block by block (block.compile()) instead"
            )
        if path is not None:
            check_path(Path(path))
        self._samples, self._path, self._recheck = samples, None if path is None else Path(path), recheck
        self._moving = [p for p, chance in policy.parameters if chance]
        moving = {id(p) for p in self._moving}
        self._still = [p for p in self._network.parameters() if id(p) not in moving]
        self._names = {each: name for name, each in self._network.named_modules()}
        self.passes = self.fills = 0
        self.clear()
        self._turns, self._opened = 0, ExitStack()
        self._replay: Replay | None = None
        self._handles = [
            self._network.register_forward_pre_hook(Hook(self._begin), with_kwargs=True),
            self._network.register_forward_hook(Hook(self._end), prepend=True, always_call=True),
        ]

    def clear(self) -> None:
        """Forget all values; the next pass looks at the module anew."""
        self._kept: _Kept | None = None
        self._opaque: frozenset[nn.Module] = frozenset()

    def remove(self) -> None:
        """End it: all passes are computed in full again."""
        self.clear()
        for handle in self._handles:
            handle.remove()

    @property
    def skipped(self) -> tuple[str, ...]:
        """The modules, and the functions of torch between them, that are left out."""
        entries = () if self._kept is None else self._kept.detour.entries
        left = [each.what for each in entries if each.how == "skip"]
        names = [self._names[each] if isinstance(each, nn.Module) else each.__name__ for each in left]
        return tuple(dict.fromkeys(names))

    @property
    def bytes(self) -> int:
        """Of what is kept for all samples, 0 before the first pass."""
        return 0 if self._kept is None else self._kept.table.bytes

    def __repr__(self) -> str:
        known = 0 if self._kept is None else len(self._kept.table)
        return f"CachedPrefix(samples={known} of {self._samples}, bytes={self.bytes})"

    def _begin(self, _: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Before a pass: what is needed of its prefix is computed, or looked up."""
        leaves, tree = tree_flatten((tuple(args), dict(kwargs)))
        inputs = [each for each in leaves if isinstance(each, Tensor)]
        if self._policy.is_free or not inputs or any(p.requires_grad for p in (*inputs, *self._still)):
            return
        n = _count(inputs)
        signature = tree, [_kind(each) for each in leaves]
        self._look(signature)
        self.passes += 1
        if self._kept is None:
            if n < 2:
                return  # one sample does not show what is the same for all
            self._kept = self._start(args, kwargs, n, signature)
        kept, keys = self._kept, row_keys(inputs)
        missing = kept.table.missing(keys)
        if missing or self.passes % self._recheck == 0:
            values = self._filled(kept.detour, args, kwargs)
            kept.table.keep(keys, missing, values)
            agree(values, kept.table.values(keys), lambda place: self._stale(kept.detour, place))
        else:
            self._turns = 0
        self._replay = Replay(kept.detour, n, kept.table.values(keys))
        modules = [each for each, kinds in kept.detour.calls.items() if {*kinds} != {"through"}]
        self._opened.enter_context(replaced(modules, self._replay.call))

    def _end(self, _: nn.Module, args: Any, outputs: Any) -> Any:
        """After a pass, or after an error in it."""
        self._opened.close()
        replay, self._replay = self._replay, None
        if replay is None or outputs is None:
            return None
        return replay.end(outputs)

    def _look(self, signature: Any) -> None:
        """Forget what is of no use any more.

        Raises:
            UserError: if that is so again and again.
        """
        if self._kept is None:
            return
        new = signature != self._kept.signature
        changed = "the kind or the shape of its inputs" if new else self._kept.computed.changed()
        if changed is None:
            return
        self.clear()
        self._turns += 1
        if self._turns > _TURNS:
            raise UserError(
                f"`policy`: its module changes from pass to pass ({changed}), so that nothing can be looked up; "
                "keep that as it is while it trains, or remove() the CachedPrefix"
            )

    def _start(self, args: Sequence[Any], kwargs: Mapping[str, Any], n: int, signature: Any) -> _Kept:
        """Find what crosses the cut, and see that the pass is the same by it."""
        rows = other_samples(n)
        turned = tree_map_only(Tensor, lambda each: each[rows.to(each.device)], (tuple(args), dict(kwargs)))
        one = self._record(args, kwargs)
        with perturbed(self._moving):
            other = self._record(*turned)
        detour = merge(one.recorder, other.recorder, n, len(rows))
        agree(
            [
                value if slot.axis is None else _rows(value, slot.axis, n, rows)
                for value, slot in zip(one.recorder.values, detour.slots, strict=True)
            ],
            other.recorder.values,
            lambda place: (
                f"what '{_taker(detour, place, self._names)}' takes from the layers below hangs on other samples of "
                "the batch, on chance, or on layers that move; do without a CachedPrefix"
            ),
        )
        replay = Replay(detour, n, one.recorder.values)
        with undisturbed(self._network), replaced([*detour.calls], replay.call):
            outputs = replay.end(self._network.forward(*args, **kwargs))
        agree(
            [*outputs_of(outputs)],
            [*outputs_of(one.outputs)],
            lambda place: (
                "its module gives something else where its prefix is looked up (code in it takes what torch's "
                "functions do not see); do without a CachedPrefix"
            ),
        )
        table = SampleTable(self._samples, detour.slots, self._path)
        return _Kept(detour, self._computed(detour), table, signature)

    def _record(self, args: Sequence[Any], kwargs: Mapping[str, Any], stop: int | None = None) -> Recorded:
        """A pass under watch, with a look into what cannot be left out as a whole."""
        while True:
            try:
                return record(self._network, args, kwargs, self._moving, self._opaque, stop)
            except Opaque as found:
                self._opaque |= {found.module}

    def _filled(self, detour: Detour, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """What crosses the cut, computed."""
        self.fills += 1
        recorder = self._record(args, kwargs, len(detour.slots)).recorder
        ways = ([each.way for each in entries] for entries in (recorder.entries, detour.entries))
        found, expected = ways
        if found != expected[: len(found)] or len(recorder.values) != len(detour.slots):
            raise UserError(self._stale(detour, 0))
        return recorder.values

    def _computed(self, detour: Detour) -> Computed:
        """By the modules that are left out, with all in them and around them."""
        left = [
            each.what for each in detour.entries if each.how == "skip" and isinstance(each.what, nn.Module)
        ]
        inside = {part for each in detour.calls for part in each.modules()}
        parts = [self._names[each].split(".") for each in detour.calls]
        around = {".".join(each[:end]) for each in parts for end in range(len(each))}
        modules = {name: each for each, name in self._names.items() if each in inside or name in around}
        holding = {part for each in left for part in each.modules()} | {modules[name] for name in around}
        return Computed(modules, holding, self._moving, ("`policy`", "call clear() of the CachedPrefix"))

    def _stale(self, detour: Detour, place: int) -> str:
        """What to say where a value is another one than was kept."""
        return (
            f"what its prefix computes, which '{_taker(detour, place, self._names)}' takes, is another thing than was "
            "kept, and no parameter, buffer, attribute or hook says why (a global variable, a closure); call clear() "
            "of the CachedPrefix after such a change"
        )


@final
@dataclass(frozen=True)
class _Kept:
    """What is known: the way of a pass, what computed it, the values, and the kind of inputs that it is for."""

    detour: Detour
    computed: Computed
    table: SampleTable
    signature: Any


def _count(inputs: Sequence[Tensor]) -> int:
    """How many samples there are."""
    sizes = {tuple(each.shape[:1]) for each in inputs}
    if len(sizes) > 1 or () in sizes:
        raise UserError(
            f"`module`: got tensors with {', '.join(str(each[0]) if each else 'no' for each in sorted(sizes))} entries "
            "in front, expected as many in each, one for each sample, where a prefix is cached; let the module make "
            "the others"
        )
    return next(iter(sizes))[0]


def _kind(leaf: Any) -> Any:
    """What has to be the same of an input in each pass."""
    if isinstance(leaf, Tensor):
        return leaf.dtype, leaf.device, leaf.shape[1:]
    return leaf if isinstance(leaf, bool | int | float | str | None) else id(leaf)


def _rows(value: Tensor, axis: int, n: int, rows: Tensor) -> Tensor:
    """Those of some samples."""
    moved = value.movedim(axis, 0)
    by_sample = moved.reshape(n, -1, *moved.shape[1:])[rows.to(value.device)]
    return by_sample.flatten(0, 1).movedim(0, axis)


def _taker(detour: Detour, place: int, names: Mapping[nn.Module, str]) -> str:
    """Who takes a value."""
    found = next((each.what for each in detour.entries if place in each.slots), None)
    if found is None:
        return "the end of the pass"
    return names.get(found, "") if isinstance(found, nn.Module) else getattr(found, "__name__", str(found))
