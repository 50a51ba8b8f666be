"""Which parameters and layers move: the change of each, and the sets of active ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.state import State
from regimes.core.tree import Tree, by_layer, is_finite, size
from regimes.measure.movement import compared, double
from regimes.measure.probe import Columns, Snapshot, numbers

__all__ = ["ActiveSet", "Activity", "Changes", "LayerChange", "RelativeTo", "activity"]

RelativeTo = Literal["layer", "itself", "nothing"]
"""What a change is divided by: the scale of its layer at the start, its own start, or 1."""


@dataclass(frozen=True)
class LayerChange:
    r"""How far one layer has moved: the parameters of one submodule, N_l of them.

    Attributes:
        count: N_l; a complex parameter counts once.
        share: N_l / N, its share of all parameters.
        scale: :math:`\sigma_l = \|w_l(0)\| / \sqrt{N_l}`, the root mean square of its start.
        absolute: :math:`\|w_l - w_l(0)\|`.
        relative: :math:`\|w_l - w_l(0)\| / \|w_l(0)\|`; inf where it started at 0 and moved, 0 where it did not move.
        moved: :math:`\|w_l - w_l(0)\|^2 / \|w - w(0)\|^2`, its share of the squared movement; nan if nothing moved.
    """

    count: int
    share: float
    scale: float
    absolute: float
    relative: float
    moved: float


@dataclass(frozen=True, eq=False)
class Changes:
    """How far each parameter has moved: what :func:`activity` gives. A copy, which no later step changes.

    Attributes:
        absolute: ``|w_i - w_i(0)|`` by name, in double precision on the CPU.
        start: ``|w_i(0)|``, likewise.
        layers: each layer by the name of its submodule, in the order of the parameters.
    """

    absolute: Mapping[str, Tensor] = field(repr=False)
    start: Mapping[str, Tensor] = field(repr=False)
    layers: Mapping[str, LayerChange]

    def __str__(self) -> str:
        """A line for each layer: its share of the parameters, its relative change, its share of the movement."""
        width = max(len("layer"), *(len(name) for name in self.layers)) if self.layers else len("layer")
        lines = [f"{'layer':<{width}}  parameters   share  change  movement"]
        lines += [
            f"{name:<{width}}  {one.count:>10}  {one.share:>6.1%}  {one.relative:>6.3g}  {one.moved:>8.1%}"
            for name, one in self.layers.items()
        ]
        return "\n".join(lines)

    @property
    def total(self) -> int:
        """N, the number of parameters."""
        return sum(layer.count for layer in self.layers.values())

    @property
    def participation(self) -> float:
        r"""The participation ratio of the squared movement, as a share of the parameters.

        .. math:: \Big(\sum_i \Delta_i^2\Big)^2 \Big/ \Big(N \sum_i \Delta_i^4\Big)

        1 where all moved equally far, 1/N where one moved alone, nan where none did.
        """
        top = max((float(value.max()) for value in self.absolute.values() if value.numel()), default=0.0)
        if not top:
            return math.nan
        squares = [(value / top).square() for value in self.absolute.values()]
        second, fourth = sum(float(s.sum()) for s in squares), sum(float(s.square().sum()) for s in squares)
        return second**2 / (self.total * fourth)

    @checked
    def relative(self, relative_to: RelativeTo = "layer") -> dict[str, Tensor]:
        r"""The change of each parameter by name: :math:`|\Delta_i| / \sigma_l`, :math:`|\Delta_i| / |w_i(0)|`, or bare.

        inf where it is divided by 0, but 0 for a parameter that did not move. By its own start a parameter that
        started near 0 has a change that says little.
        """
        if relative_to == "nothing":
            return dict(self.absolute)
        found = {}
        for name, value in self.absolute.items():
            layer = self.layers[name.rpartition(".")[0]]
            found[name] = _ratio(value, self.start[name] if relative_to == "itself" else layer.scale)
        return found

    @checked
    def above(self, threshold: float = 1.0, *, relative_to: RelativeTo = "layer") -> ActiveSet:
        """The parameters whose relative change is above a threshold c.

        Raises:
            UserError: if the threshold is negative.
        """
        if not 0 <= threshold < math.inf:
            raise UserError(f"`threshold`: got {threshold}, expected a finite number of 0 or more")
        values = self.relative(relative_to)
        return ActiveSet({name: value > threshold for name, value in values.items()}, self, relative_to)

    @checked
    def top(self, share: float = 0.01, *, relative_to: RelativeTo = "layer") -> ActiveSet:
        """The share q of all parameters with the largest relative change: round(q N), at least one if q is above 0.

        Of parameters that have changed equally the first ones are taken, so that the set has its size whatever the
        ties. Where fewer than q N moved, it holds some that did not.

        Raises:
            UserError: if the share is not between 0 and 1.
        """
        count = self._wanted(share)
        return ActiveSet(_largest(self.relative(relative_to), count), self, relative_to)

    @checked
    def bottom(self, share: float = 0.01, *, relative_to: RelativeTo = "layer") -> ActiveSet:
        """The share q with the smallest relative change, as :meth:`top`."""
        values = self.relative(relative_to)
        masks = _largest({name: -value for name, value in values.items()}, self._wanted(share))
        return ActiveSet(masks, self, relative_to)

    def _wanted(self, share: float) -> int:
        if not 0 <= share <= 1:
            raise UserError(f"`share`: got {share}, expected a number from 0 to 1, such as 0.01")
        return max(math.floor(share * self.total + 0.5), int(share > 0))


def _ratio(value: Tensor, by: Tensor | float) -> Tensor:
    """value / by, and 0 where the value is 0."""
    return torch.where(value == 0, value, value / by)


def _largest(values: Tree, count: int) -> dict[str, Tensor]:
    """Which of all entries are the ``count`` largest, the first ones among equals."""
    flat = torch.cat([value.reshape(-1) for value in values.values()])
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    if count:
        edge = flat.kthvalue(len(flat) - count + 1).values
        chosen = flat > edge
        ties = (flat == edge).nonzero()[:, 0]
        chosen[ties[: count - int(chosen.sum())]] = True
    parts = chosen.split([value.numel() for value in values.values()])
    return {name: part.view(values[name].shape) for name, part in zip(values, parts, strict=True)}


@dataclass(frozen=True, eq=False)
class ActiveSet:
    """Some of the parameters, such as the active ones: what :meth:`Changes.above` and :meth:`Changes.top` give.

    Attributes:
        masks: True for the parameters in the set, by name.
        changes: what it was chosen from.
        relative_to: by which change.
    """

    masks: Mapping[str, Tensor]
    changes: Changes
    relative_to: RelativeTo = "layer"

    @property
    def counts(self) -> dict[str, int]:
        """How many of each layer are in it."""
        return {
            layer: sum(int(m.sum()) for m in part.values()) for layer, part in by_layer(self.masks).items()
        }

    @property
    def count(self) -> int:
        """K, how many are in it."""
        return sum(self.counts.values())

    @property
    def share(self) -> float:
        """K / N, their share of all parameters."""
        return self.count / self.changes.total

    @property
    def moved(self) -> float:
        """Their share of the squared movement; nan if nothing moved."""
        changes = self.changes.absolute
        far = math.hypot(*(size(changes[name][mask]) for name, mask in self.masks.items()))
        return _share(far, math.hypot(*(size(value) for value in changes.values())))

    @property
    def enrichment(self) -> dict[str, float]:
        """The share of the set that lies in layer l over the layer's share of all parameters: (K_l / K) / (N_l / N).

        Above 1: the layer has more of them than its size says. nan of an empty set, and of an empty layer.
        """
        whole = self.count
        shares = {name: layer.share for name, layer in self.changes.layers.items()}
        return {
            name: count / whole / shares[name] if whole and shares[name] else math.nan
            for name, count in self.counts.items()
        }


def _share(part: float, whole: float) -> float:
    """(part / whole)^2 of norms."""
    return (part / whole) ** 2 if whole else math.nan


@checked
def activity(parameters: Tree, origin: Tree, *, module: nn.Module | None = None) -> Changes:
    r"""Which parameters and layers have moved between w0 and w: the change of each, relative to its layer's scale.

    The change of a parameter is :math:`|\Delta_i| = |w_i - w_i(0)|`; relative to its layer, the default, it is
    :math:`|\Delta_i| / \sigma_l` with the root mean square :math:`\sigma_l` of the layer's start, which makes layers
    and widths comparable. A layer is all parameters of one submodule. From what comes back follow the active sets
    (:meth:`Changes.above` a threshold, :meth:`Changes.top` share), their share in each layer
    (:attr:`ActiveSet.enrichment`), and :func:`regimes.measure.reset_test`.

    A layer that starts at 0 everywhere (B of a low-rank adapter) has no scale: what moved there has changed by inf,
    and comes first. Compare such networks by ``relative_to="nothing"``.

    Both may be state dicts; buffers do not count, and with ``module`` tied parameters count once and frozen ones not
    at all, as in :func:`regimes.measure.movement`. Cost: 16 bytes of memory for each parameter. Of a
    :class:`~regimes.core.state.State` take ``activity(state.parameters, state.origin, module=state.module)``.

    Args:
        parameters: w by name, or a state dict.
        origin: w0, by the same names.
        module: whose parameters these are.

    Raises:
        UserError: if the names or shapes differ, or a value is no tensor or not finite.

    Source: Li, Banerjee 2021, arXiv:2102.13522, who say that few parameters are active and where they lie. The
    abstract alone was at hand, so the definitions of scale, threshold, share and enrichment are those of this library.

    >>> start = {"0.weight": torch.ones(3), "1.weight": torch.ones(1)}
    >>> end = {"0.weight": torch.tensor([1.0, 1.0, 3.0]), "1.weight": torch.ones(1)}
    >>> found = activity(end, start)
    >>> found.layers["0"].moved, found.above(1.0).counts, found.above(1.0).enrichment["0"]
    (1.0, {'0': 1, '1': 0}, 1.3333333333333333)
    """
    now, start = compared(parameters, origin, module)
    changes = {name: (double(now[name].cpu()) - double(start[name].cpu())).abs() for name in now}
    starts = {name: double(start[name].cpu()).abs() for name in now}
    total = sum(value.numel() for value in changes.values())
    if not total:
        raise UserError("`parameters`: hold no numbers, expected at least one parameter that is not empty")
    far = math.hypot(*(size(value) for value in changes.values()))
    layers = {
        name: _layer(list(part.values()), [starts[each] for each in part], total, far)
        for name, part in by_layer(changes).items()
    }
    return Changes(changes, starts, layers)


def _layer(changes: list[Tensor], starts: list[Tensor], total: int, far: float) -> LayerChange:
    """One layer; ``far`` is how far all have moved."""
    count = sum(value.numel() for value in changes)
    moved, whole = (math.hypot(*(size(value) for value in values)) for values in (changes, starts))
    return LayerChange(
        count=count,
        share=count / total,
        scale=whole / math.sqrt(count) if count else 0.0,
        absolute=moved,
        relative=0.0 if not moved else moved / whole if whole else math.inf,
        moved=_share(moved, far),
    )


_NUMBERS = ("active", "median_change", "participation", "top_moved", "unmoved")
_LISTS = ("layer_change", "layer_enrichment", "layer_moved", "layer_share")


@checked
@dataclass(frozen=True)
class Activity(Snapshot):
    """Which parameters and layers of a member have moved since its start (:func:`activity`).

    Networks differ in their layers, tables do not: the layers are lists, one number for each layer in the order of
    ``module.named_parameters()``.

    Values:
        - ``active``: the share of parameters whose relative change is above ``threshold``;
        - ``median_change``: the median relative change of the parameters;
        - ``participation``: see :attr:`Changes.participation`;
        - ``top_moved``: the share of the squared movement that the top ``share`` of the parameters carries;
        - ``unmoved``: how many tensors that require grad have not moved at all (:func:`regimes.measure.unmoved` says
          why);
        - ``layer_change``: the relative change of each layer;
        - ``layer_enrichment``: that of the top ``share``;
        - ``layer_moved``: the layer's share of the squared movement;
        - ``layer_share``: its share of all parameters.

    All but ``layer_share`` are nan of a member that has diverged; what is relative to a movement is nan at the start.

    Attributes:
        threshold: c, of the relative change.
        share: q, of all parameters.
        relative_to: what the changes of parameters are divided by.
    """

    threshold: float = 1.0
    share: float = 0.01
    relative_to: RelativeTo = "layer"

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < math.inf:
            raise UserError(f"`threshold`: got {self.threshold}, expected a finite number of 0 or more")
        if not 0 < self.share <= 1:
            raise UserError(f"`share`: got {self.share}, expected a number above 0 and up to 1, such as 0.01")

    @property
    def columns(self) -> Columns:
        """Five numbers, and four lists with one number for each layer."""
        return {**numbers(*_NUMBERS), **dict.fromkeys(_LISTS, list[float])}

    def look(self, state: State) -> Mapping[str, float | list[float]]:
        """All of it now."""
        if not is_finite(state.parameters):
            layers = activity(state.origin, state.origin, module=state.module).layers.values()
            nothing = [math.nan] * len(layers)
            found = dict.fromkeys(_NUMBERS, math.nan) | dict.fromkeys(_LISTS, nothing)
            return found | {"layer_share": [layer.share for layer in layers]}
        changes = activity(state.parameters, state.origin, module=state.module)
        top = changes.top(self.share, relative_to=self.relative_to)
        every = torch.cat([value.reshape(-1) for value in changes.relative(self.relative_to).values()])
        still = [value for value in changes.absolute.values() if value.numel() and not value.any()]
        return {
            "active": changes.above(self.threshold, relative_to=self.relative_to).share,
            "median_change": float(every.median()),
            "participation": changes.participation,
            "top_moved": top.moved,
            "unmoved": float(len(still)),
            "layer_change": [layer.relative for layer in changes.layers.values()],
            "layer_enrichment": list(top.enrichment.values()),
            "layer_moved": [layer.moved for layer in changes.layers.values()],
            "layer_share": [layer.share for layer in changes.layers.values()],
        }
