"""Per kind of use: from the gradient of its outcome to the gradients of its parameters, sample by sample."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap
from torch.nn import functional

from regimes.kernel.site import Axis, IrregularError, Site
from regimes.kernel.use import Kind, Reference, Use

__all__ = ["Rule", "TokenRule", "parameter_gradients", "rule_of"]


class Rule(ABC):
    """One use on one batch of samples.

    Args:
        site: what the plan knows of it.
        use: what the recorder noted.
        samples: n.
    """

    def __init__(self, site: Site, use: Use, samples: int) -> None:
        self.site = site
        self.use = use
        self.samples = samples
        self.references: Mapping[str, Reference] = use.draft.references

    def first(self, tensor: Tensor, axis: Axis | None = None) -> Tensor:
        """A tensor laid out like the outcome (or along another axis), the samples in front."""
        return (axis or self.site.out).first(tensor, self.samples)

    @abstractmethod
    def parts(self, back: Tensor, wanted: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """From the gradient of the outcome: for each part wanted that of each sample, (n, *shape of the part)."""


class TokenRule(Rule):
    """A use of the form y[t] = W a[t] + b, so that the gradient of W is the sum over t of y'[t] a[t]^T."""

    @abstractmethod
    def tokens(self) -> Tensor:
        """What W was given: (n, T, D), or the rows (n, T) it was asked for."""

    @abstractmethod
    def grads(self, back: Tensor) -> Tensor:
        """The gradient of the outcome in the same order: (n, T, E)."""


class LinearRule(TokenRule):
    """y = x W^T + b, on any number of axes; W may also stand as (in, out)."""

    def __init__(self, site: Site, use: Use, samples: int) -> None:
        super().__init__(site, use, samples)
        given = self.first(use.draft.inputs[0], site.inputs[0])
        self._inputs = given.reshape(samples, -1, given.shape[-1])

    def tokens(self) -> Tensor:
        """(n, T, D)."""
        return self._inputs

    def grads(self, back: Tensor) -> Tensor:
        """(n, T, E)."""
        return self.first(back).reshape(self.samples, -1, back.shape[-1])

    def parts(self, back: Tensor, wanted: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """W as it was given, and b."""
        grads = self.grads(back)
        for part in wanted:
            if part == "bias":
                yield part, grads.sum(1)
            elif self.site.options == ("out, in",):
                yield part, grads.mT @ self._inputs
            else:
                yield part, self._inputs.mT @ grads


def patches(x: Tensor, options: Sequence[Any], places: Sequence[int]) -> Tensor:
    """What each position of a convolution sees: (N, groups, channels per group * kernel, positions)."""
    shape, stride, pads, spread, groups = options
    if any(p for pair in pads for p in pair):
        x = functional.pad(x, [p for pair in reversed(pads) for p in pair])
    x = x.contiguous()
    kernel = shape[2:]
    steps = x.stride()[2:]
    view = x.as_strided(
        (*x.shape[:2], *kernel, *places),
        (
            *x.stride()[:2],
            *(step * d for step, d in zip(steps, spread, strict=True)),
            *(step * s for step, s in zip(steps, stride, strict=True)),
        ),
    )
    per_group = x.shape[1] // groups * math.prod(kernel)
    return view.reshape(x.shape[0], groups, per_group, math.prod(places))


class ConvolutionRule(TokenRule):
    """A convolution: a linear layer on patches, one for each group of channels."""

    def __init__(self, site: Site, use: Use, samples: int) -> None:
        super().__init__(site, use, samples)
        self._groups: int = site.options[4]
        self._patches: Tensor | None = None

    def _seen(self) -> Tensor:
        """(n, groups, D, T), T over frames and positions."""
        if self._patches is None:
            self._patches = self._together(
                patches(self.use.draft.inputs[0], self.site.options, self.use.shape[2:])
            )
        return self._patches

    def _together(self, tensor: Tensor) -> Tensor:
        """(n * frames, g, d, positions) -> (n, g, d, frames * positions)."""
        if tensor.shape[0] == self.samples:
            return tensor
        tensor = self.first(tensor)
        return tensor.movedim(1, 3).flatten(3)

    def tokens(self) -> Tensor:
        """(n, T, D), for one group."""
        return self._seen()[:, 0].mT

    def grads(self, back: Tensor) -> Tensor:
        """(n, T, E), for one group."""
        return self._together(back.flatten(2)[:, None])[:, 0].mT

    def parts(self, back: Tensor, wanted: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """W and b."""
        split = back.reshape(back.shape[0], self._groups, back.shape[1] // self._groups, -1)
        grads = self._together(split)
        for part in wanted:
            if part == "bias":
                yield part, grads.sum(3).flatten(1)
            else:
                shape = self.references[part].tensor.shape
                yield part, (grads @ self._seen().mT).reshape(self.samples, *shape)


class TransposedRule(Rule):
    """A transposed convolution: input and outcome have changed places."""

    def parts(self, back: Tensor, wanted: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """W and b."""
        x = self.use.draft.inputs[0]
        groups: int = self.site.options[4]
        for part in wanted:
            shape = self.references[part].tensor.shape
            if part == "bias":
                yield part, back.flatten(2).sum(2).view(self.samples, -1, *shape).sum(1)
                continue
            seen = patches(back, self.site.options, x.shape[2:])
            given = x.reshape(x.shape[0], groups, x.shape[1] // groups, -1)
            each = (given @ seen.mT).reshape(x.shape[0], *shape)
            yield part, each if self.site.out.fold == 1 else self.first(each).sum(1)


class EmbeddingRule(TokenRule):
    """Rows of W by number."""

    def __init__(self, site: Site, use: Use, samples: int) -> None:
        super().__init__(site, use, samples)
        self._rows = self.first(use.draft.inputs[0], site.inputs[0]).reshape(samples, -1)

    def tokens(self) -> Tensor:
        """The rows asked for, (n, T)."""
        return self._rows

    def grads(self, back: Tensor) -> Tensor:
        """(n, T, E), 0 where the row is the padding, which does not train."""
        grads = self.first(back).reshape(self.samples, -1, back.shape[-1])
        padding = self.site.options[0]
        return grads if padding is None else grads.masked_fill((self._rows == padding)[..., None], 0)

    def parts(self, back: Tensor, wanted: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """W, dense: rows that were not asked for get 0."""
        grads = self.grads(back)
        table = grads.new_zeros(self.samples, *self.references["weight"].tensor.shape)
        yield "weight", table.scatter_add_(1, self._rows[..., None].expand_as(grads), grads)


class NormRule(Rule):
    """y = w * normalised(x) + b."""

    def __init__(self, site: Site, use: Use, samples: int) -> None:
        super().__init__(site, use, samples)
        again = use.draft.again
        assert again is not None
        self._normal = again(use.draft.inputs[0]) if "weight" in use.draft.references else None

    def parts(self, back: Tensor, wanted: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """w and b."""
        for part in wanted:
            shape = self.references[part].tensor.shape
            each = back
            if part == "weight":
                assert self._normal is not None
                each = back * self._normal
            each = self.first(each)
            if self.site.options[0] is None:
                yield part, each.reshape(self.samples, -1, *shape).sum(1)
            else:
                frames = self.site.out.fold > 1
                sums = each.flatten(3 if frames else 2).sum(-1) if each.dim() > (3 if frames else 2) else each
                yield part, sums.sum(1) if frames else sums


class OperationRule(Rule):
    """Any operation: done once more for each sample, under autograd."""

    def parts(self, back: Tensor, wanted: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """The parameters in their order."""
        axes, places = self.site.inputs, self.site.parameters
        again: Callable[..., Tensor] | None = self.use.draft.again
        assert again is not None
        run = again

        def one(
            data: tuple[Tensor, ...], cotangent: Tensor, values: tuple[Tensor, ...]
        ) -> tuple[Tensor, ...]:
            alone = [x if axis is None else x.unsqueeze(axis.dim) for x, axis in zip(data, axes, strict=True)]

            def outcome(*parameters: Tensor) -> Tensor:
                whole = [
                    p if place is None else p.unsqueeze(place.dim)
                    for p, place in zip(parameters, places, strict=True)
                ]
                return run(alone, whole)

            out, pull, *_ = vjp(outcome, *values)
            return pull(cotangent.unsqueeze(self.site.out.dim).reshape(out.shape))

        values = tuple(reference.tensor.detach() for reference in self.references.values())
        dims = (
            tuple(None if axis is None else axis.dim for axis in axes),
            self.site.out.dim,
            tuple(None if place is None else place.dim for place in places),
        )
        with warnings.catch_warnings():
            # Where torch falls back to a loop of its own, there is nothing that a user could do about it.
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            grads = vmap(one, dims)(self.use.draft.inputs, back, values)
        for part, grad, place in zip(self.references, grads, places, strict=True):
            if part in wanted:
                yield part, grad if place is None else grad.unsqueeze(1 + place.dim)


_RULES: Mapping[Kind, type[Rule]] = {
    "linear": LinearRule,
    "convolution": ConvolutionRule,
    "transposed convolution": TransposedRule,
    "embedding": EmbeddingRule,
    "norm": NormRule,
    "operation": OperationRule,
}


def rule_of(site: Site, use: Use, samples: int) -> Rule:
    """The rule of a use."""
    return _RULES[site.kind](site, use, samples)


def parameter_gradients(
    rule: Rule, back: Tensor, wanted: Collection[str], leaves: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """What a use gives each of the wanted parameters: (name, (n, *shape)); a name may come more than once."""
    names = {part: set(reference.names) for part, reference in rule.references.items()}
    parts = [part for part, every in names.items() if not every.isdisjoint(wanted)]
    places = dict(zip(rule.references, rule.site.parameters, strict=True))
    for part, each in rule.parts(back, parts):
        for name, grad in _pulled(rule.references[part], places[part], each, leaves):
            if name in wanted:
                yield name, grad


def _pulled(
    reference: Reference, place: Axis | None, each: Tensor, leaves: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """From gradients of what was computed from parameters, (n, *shape), to those of the parameters."""
    if reference.factor is not None and place is None:
        (name,) = reference.names
        each = each if reference.factor == 1.0 else each * reference.factor
        yield name, each.mT if reference.transposed else each
        return
    tensor = reference.tensor
    if place is not None:
        # Every sample meets the parameters in the same way: the first row stands for all.
        with torch.enable_grad():
            tensor = tensor.narrow(place.dim, 0, 1)
        if not (reference.tensor == tensor).all():
            raise IrregularError("not computed from parameters alone")
    grads = torch.autograd.grad(
        tensor,
        [leaves[name] for name in reference.names],
        each,
        True,
        is_grads_batched=True,
        allow_unused=True,
    )
    for name, grad in zip(reference.names, grads, strict=True):
        if grad is not None:
            yield name, grad
