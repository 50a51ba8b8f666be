"""Where the samples lie in the tensors of a use, and what must be the same each time the network runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from regimes.kernel.use import Kind, Use

__all__ = ["Axis", "IrregularError", "Site", "locate"]


class IrregularError(RuntimeError):
    """The network does not use its parameters as when the plan was made; never reaches a user."""


@dataclass(frozen=True)
class Axis:
    """The axis of a tensor that the samples run along.

    Attributes:
        dim: which.
        fold: entries per sample: more than one where tokens or frames were folded into it.
        outer: whether the samples run slowest in it.
    """

    dim: int
    fold: int
    outer: bool = True

    def first(self, tensor: Tensor, samples: int) -> Tensor:
        """The tensor with the samples in front, (n, ...); what was folded in has an axis of its own."""
        if self.fold == 1:
            return tensor.movedim(self.dim, 0)
        sizes = (samples, self.fold) if self.outer else (self.fold, samples)
        return tensor.unflatten(self.dim, sizes).movedim(self.dim + (0 if self.outer else 1), 0)

    def fits(self, shape: Sequence[int], samples: int) -> bool:
        """Whether the axis has room for so many samples."""
        return self.dim < len(shape) and shape[self.dim] == samples * self.fold


def _axis(one: Sequence[int], two: Sequence[int]) -> Axis | None:
    """From the shapes that one sample and two samples gave; None where they are the same."""
    if len(one) != len(two):
        raise IrregularError("another number of axes")
    changed = [dim for dim, (a, b) in enumerate(zip(one, two, strict=True)) if a != b]
    if not changed:
        return None
    if len(changed) > 1 or two[changed[0]] != 2 * one[changed[0]]:
        raise IrregularError("samples along several axes")
    return Axis(changed[0], one[changed[0]])


def _form(shape: Sequence[int], axis: Axis | None) -> tuple[int, ...]:
    """A shape without the number of samples."""
    return tuple(0 if axis is not None and dim == axis.dim else size for dim, size in enumerate(shape))


@dataclass(frozen=True)
class Site:
    """One use as the plan knows it, whatever the number of samples.

    Attributes:
        kind: the rule.
        names: the parameters by their part.
        options: the geometry.
        out: where the samples are in the outcome.
        inputs: where they are in the inputs; None in those that have none.
        parameters: where they are in what was computed from parameters (a class token, repeated).
        form: the shape of the outcome without the number of samples.
        factors: for each part the factor of the parameter in it, or None where it is no multiple of one.
        outward: whether a weight stands as (out, in).
        copied: whether the inputs are changed in place later, so that they have to be copied.
    """

    kind: Kind
    names: tuple[tuple[str, tuple[str, ...]], ...]
    options: tuple[Any, ...]
    out: Axis
    inputs: tuple[Axis | None, ...]
    parameters: tuple[Axis | None, ...]
    form: tuple[int, ...]
    factors: tuple[float | None, ...]
    outward: bool
    copied: bool = False

    @property
    def trains(self) -> frozenset[str]:
        """The parameters in it."""
        return frozenset(name for _, every in self.names for name in every)

    @property
    def positions(self) -> int:
        """How often it is used per sample: tokens, pixels, frames."""
        channels = 1 if self.kind in ("convolution", "transposed convolution") else len(self.form) - 1
        sizes = [s for axis, s in enumerate(self.form) if axis not in (self.out.dim, channels)]
        return math.prod(sizes) * self.out.fold

    def factor_of(self, name: str) -> float | None:
        """The factor of a parameter, or None where it enters in another way."""
        pairs = zip(self.names, self.factors, strict=True)
        return next(factor for (_, names), factor in pairs if name in names)

    def matches(self, use: Use, samples: int) -> bool:
        """Whether a use of another pass is this one."""
        draft = use.draft
        same = (self.kind, self.names, self.options) == (draft.kind, _names(use), draft.options)
        return (
            same
            and self.out.fits(use.shape, samples)
            and self.form == _form(use.shape, self.out)
            and len(self.inputs) == len(draft.inputs)
            and all(
                axis is None or axis.fits(x.shape, samples)
                for axis, x in zip(self.inputs, draft.inputs, strict=True)
            )
        )

    def inner(self) -> Site:
        """The same with the samples running fastest where tokens are folded in."""
        return replace(
            self,
            out=replace(self.out, outer=False),
            inputs=tuple(None if axis is None else replace(axis, outer=False) for axis in self.inputs),
        )


def _outward(use: Use) -> bool:
    weight = use.draft.references.get("weight")
    return (use.draft.options == ("out, in",)) != (weight is not None and weight.transposed)


def _names(use: Use) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple((part, reference.names) for part, reference in use.draft.references.items())


def locate(one: Use, two: Use) -> Site:
    """The site of a use, from a pass of one sample and a pass of two.

    Raises:
        IrregularError: if they do not fit together, or have no axis for the samples.
    """
    same = (one.draft.kind, _names(one), one.draft.options) == (
        two.draft.kind,
        _names(two),
        two.draft.options,
    )
    if not same or len(one.draft.inputs) != len(two.draft.inputs):
        raise IrregularError("another use")
    out = _axis(one.shape, two.shape)
    if out is None:
        raise IrregularError("no axis for the samples")
    inputs = tuple(_axis(a.shape, b.shape) for a, b in zip(one.draft.inputs, two.draft.inputs, strict=True))
    pairs = zip(one.draft.references.values(), two.draft.references.values(), strict=True)
    parameters = tuple(_axis(a.tensor.shape, b.tensor.shape) for a, b in pairs)
    site = Site(
        two.draft.kind, _names(two), two.draft.options, out, inputs, parameters, _form(two.shape, out),
        tuple(reference.factor for reference in two.draft.references.values()), _outward(two), not two.intact,
    )  # fmt: skip
    _supported(site, two)
    return site


def _supported(site: Site, use: Use) -> None:
    """Raise where the rule of the kind does not reach."""
    axes = [axis for axis in (site.out, *site.inputs, *site.parameters) if axis is not None]
    if site.kind == "operation":
        regular = all(axis.fold == 1 for axis in axes)
    elif site.kind == "linear":
        regular = site.out.dim < len(use.shape) - 1 and site.inputs[0] is not None
    elif site.kind == "norm" and site.options[0] is None:
        parameter = next(iter(use.draft.references.values())).tensor
        regular = site.out.dim < len(use.shape) - parameter.dim() and site.inputs[0] is not None
    else:
        regular = site.out.dim == 0 and site.inputs[0] is not None
    if site.kind == "embedding":
        regular = site.inputs[0] is not None and site.out.dim < len(use.shape) - 1
    if not regular or (site.kind != "operation" and any(axis is not None for axis in site.parameters)):
        raise IrregularError("the rule does not reach this use")
