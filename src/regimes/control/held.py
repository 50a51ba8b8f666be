"""A linearised module on one batch that comes again and again: what does not hang on w is computed once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from regimes.control.eager import as_written
from regimes.control.tape import Tape
from regimes.control.unchanged.computed import Computed
from regimes.control.unchanged.contents import Contents
from regimes.core.derivative import plain
from regimes.core.error import UserError
from regimes.core.forward import nested

if TYPE_CHECKING:
    from regimes.control.linear import Linearized

__all__ = ["HeldBatch", "forecast"]

_PLAIN = (Tensor, bool, int, float, complex, str, type(None), torch.dtype, torch.device)
_AGAIN = "hold the batch again"
# Samples that tell what all would keep: of fewer than two, some networks lose an axis.
_FEW, _MORE = 2, 4


@final
class HeldBatch:
    r"""F(w, x) of a :class:`Linearized` on one batch, at the parameters it has when it is called.

    f(a, x), the inputs of the layers and the derivatives of the activations at the anchor are kept, so that a call
    costs J v alone and its backward pass J^T u: 4 matrix products a layer, where ``linear(x)`` takes 5 and the network
    itself 3. The numbers are those of ``linear(x)``, up to rounding.

    Nothing is stale. At each call a checksum of the batch is compared; the anchor, frozen parameters, buffers, modes,
    attributes and hooks are compared as those of a ``CachedPrefix`` are. Where one of them is another, all is computed
    anew. What was written to a weight of more than 128 KB behind torch's back (``.data``, numpy) is found within 16
    calls, and is an error. What a closure or a global variable holds is not seen.

    Attributes:
        bytes: of what is kept besides the parameters, the anchor, the buffers and the batch: 0 where an operation has
            no forward mode or nothing can be kept for another reason; then each call costs what ``linear(x)`` does.
    """

    def __init__(self, linear: Linearized, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        self._linear, self._given = linear, (args, dict(named))
        self._record()

    def __call__(self) -> Tensor:
        """F(w, x), with a graph that leads to w; there are no gradients by x."""
        return as_written(self._run)

    def _run(self) -> Tensor:
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                return self._run()
        self._check()
        if self._changed():
            self._record()
        args, named = self._given
        if self._tape is None or nested():
            return self._linear(*args, **named)
        anchor, own = self._linear.anchored()
        return self._tape([own[name] for name in anchor])

    @property
    def bytes(self) -> int:
        """Bytes that are kept."""
        return 0 if self._tape is None else self._tape.bytes

    def _record(self) -> None:
        self._check()
        self._tape: Tape | None = None  # what was kept goes before the next comes
        with torch.inference_mode(False):
            args, named = tree_map(
                lambda each: plain(each) if isinstance(each, Tensor) else each, self._given
            )
            self._tape = self._linear.tape(args, named)
        tensors = {
            str(i): each for i, each in enumerate(tree_leaves(self._given)) if isinstance(each, Tensor)
        }
        self._kinds = _kinds(self._given)
        self._batch = Contents(tensors, ("`x`", _AGAIN), turns=1)
        network, anchor = self._linear.nonlinear, self._linear.anchor
        modules = {**dict(network.named_modules()), **dict(anchor.named_modules(prefix="anchor"))}
        w = dict(network.named_parameters())
        moving = [w[name] for name, _ in anchor.named_buffers()]
        # A write that changes no number is one, to autograd.
        every = [*anchor.buffers(), *network.parameters(), *network.buffers(), *tensors.values()]
        left = {id(each) for each in moving}
        self._tensors = [each for each in every if id(each) not in left and not each.is_inference()]
        self._versions = [each._version for each in self._tensors]
        self._known = Computed(modules, modules.values(), moving, ("`linear`", _AGAIN))

    def _changed(self) -> bool:
        """Whether anything that the tape hangs on is another, or was written to: autograd takes no such tensor."""
        if [each._version for each in self._tensors] != self._versions:
            return True
        if _kinds(self._given) != self._kinds or not self._batch.same():
            return True
        return self._known.changed() is not None

    def _check(self) -> None:
        for each in tree_leaves(self._given):
            if not isinstance(each, _PLAIN):
                raise UserError(
                    f"`x`: has a {type(each).__name__} in it, the changes of which are not seen; expected tensors and "
                    "plain values, in tuples, lists and dictionaries"
                )
            if isinstance(each, Tensor) and each.requires_grad:
                raise UserError(
                    "`x`: requires grad, and what is held has no gradient by the inputs; detach it, or call the "
                    "linearised module itself"
                )


def forecast(linear: Linearized, args: tuple[Any, ...], named: Mapping[str, Any]) -> int:
    """Bytes that would be kept of a batch: those of 2 and of 4 of its samples tell."""
    first = next(
        (each for each in tree_leaves((args, named)) if isinstance(each, Tensor) and each.dim()), None
    )
    if first is None:
        raise UserError("`x`: has no tensor with the samples in front, expected at least one")
    samples = len(first)

    def kept(some: int) -> int:
        def part(each: Any) -> Any:
            of_samples = isinstance(each, Tensor) and each.dim() and len(each) == samples
            return each[:some].clone() if of_samples else each

        return HeldBatch(linear, tree_map(part, args), tree_map(part, dict(named))).bytes

    if samples <= _MORE:
        return kept(samples)
    few, more = kept(_FEW), kept(_MORE)
    return few + (more - few) * (samples - _FEW) // (_MORE - _FEW)


def _kinds(given: Any) -> list[Any]:
    """What inputs are besides the numbers in their tensors."""
    return [
        (each.dtype, each.shape, each.device) if isinstance(each, Tensor) else (type(each), each)
        for each in tree_leaves(given)
    ]
