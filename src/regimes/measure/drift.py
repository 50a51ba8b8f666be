"""How far a kernel has moved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regimes.control.width import rates
from regimes.core.batch import Inputs
from regimes.core.check import checked
from regimes.core.derivative import Output
from regimes.core.error import UserError
from regimes.core.estimate import Estimate
from regimes.core.state import State
from regimes.core.tree import is_finite, named_pair, size
from regimes.kernel.factor import Reduce
from regimes.kernel.ntk import ntk
from regimes.measure.alignment import bare_alignment, check_direction, label_columns
from regimes.measure.pairs import (
    check_interval,
    check_kernel,
    defined,
    paired_alignment,
    paired_distance,
    paired_drift,
)
from regimes.measure.probe import Columns, Snapshot, numbers, with_ends

__all__ = ["KernelDrift", "drift", "kernel_distance"]


def _check_pair(k: Tensor, k0: Tensor) -> None:
    check_kernel(k, "k")
    check_kernel(k0, "k0")
    if k.shape != k0.shape:
        raise UserError(
            f"`k`: got shape {tuple(k.shape)}, expected {tuple(k0.shape)}, that of `k0`; use the same probe"
        )


@overload
def drift(k: Float[Tensor, " ..."], k0: Float[Tensor, " ..."], *, interval: None = None) -> float: ...
@overload
def drift(k: Float[Tensor, " ..."], k0: Float[Tensor, " ..."], *, interval: float) -> Estimate: ...
@checked
def drift(
    k: Float[Tensor, " ..."], k0: Float[Tensor, " ..."], *, interval: float | None = None
) -> float | Estimate:
    """The kernel change dK = ||K - K0||_F / ||K0||_F: 0 in the lazy limit, of order one with features.

    Args:
        k: K, a kernel of any shape.
        k0: the kernel at the start, of the same shape.
        interval: the coverage wanted of an interval, such as 0.95. The points of the probe then count as a sample of
            all inputs, and value and interval are those of the drift over pairs of different points, which many points
            would give: without the diagonal, whose weight of 1/n biases the bare number. Kernels of points with
            themselves only, (n, n, ...), n at least 4.

    Returns:
        dK; inf if K0 is 0 and K is not, 0 if both are. With ``interval`` an :class:`~regimes.core.estimate.Estimate`
        (value, low, high), by leaving out each point in turn, on the logarithm.

    Raises:
        UserError: if the shapes differ, or a kernel is empty or holds anything but finite real numbers; with
            ``interval`` if the kernels are not those of enough points with themselves.

    Source: Geiger, Spigler, Jacot, Wyart 2020; :mod:`regimes.measure.pairs` for the interval.

    >>> drift(2 * torch.eye(3), torch.eye(3))
    1.0
    """
    _check_pair(k, k0)
    check_interval(interval)
    return _drift(k, k0) if interval is None else paired_drift(k, k0, interval)


def _drift(k: Tensor, k0: Tensor) -> float:
    far, whole = size(k - k0), size(k0)
    if not math.isfinite(far):  # the difference of two numbers may overflow
        top = max(float(k.abs().max()), float(k0.abs().max()))
        far, whole = size(k.double() / top - k0.double() / top), size(k0.double() / top)
    if far == 0.0:
        return 0.0
    return far / whole if whole else math.inf


@overload
def kernel_distance(
    k: Float[Tensor, " ..."], k0: Float[Tensor, " ..."], *, interval: None = None
) -> float: ...
@overload
def kernel_distance(k: Float[Tensor, " ..."], k0: Float[Tensor, " ..."], *, interval: float) -> Estimate: ...
@checked
def kernel_distance(
    k: Float[Tensor, " ..."], k0: Float[Tensor, " ..."], *, interval: float | None = None
) -> float | Estimate:
    """1 - <K, K0> / (||K||_F ||K0||_F): like :func:`drift`, but blind to a kernel that only grows.

    Args:
        k: K, a kernel of any shape.
        k0: another kernel of the same shape.
        interval: the coverage wanted of an interval, as in :func:`drift`.

    Returns:
        A number from 0 (proportional) to 1 (orthogonal), for positive semi-definite kernels; with ``interval`` an
        estimate, as :func:`drift`.

    Raises:
        UserError: as :func:`drift`, or if one of the kernels is 0 everywhere, or with ``interval`` everywhere but on
            its diagonal: it has no direction.

    Source: Fort et al. 2020, "Deep learning versus kernel learning".

    >>> kernel_distance(2 * torch.eye(2), torch.eye(2)) < 1e-6
    True
    """
    _check_pair(k, k0)
    check_interval(interval)
    if interval is not None:
        return defined(
            paired_distance(k, k0, interval), "`k`, `k0`: one of them is 0 between different points"
        )
    found = _distance(k, k0)
    if math.isnan(found):
        name = "k0" if k.any() else "k"
        raise UserError(
            f"`{name}`: is 0 everywhere, so that it has no direction; expected a kernel that is not 0"
        )
    return found


def _distance(k: Tensor, k0: Tensor) -> float:
    """nan where one of them is 0."""
    tops = [float(each.abs().max()) for each in (k, k0)]
    if not all(tops):
        return math.nan
    # |a - b|^2 / 2 = 1 - <a, b> on the unit sphere, without the cancellation.
    a, b = (each.double() / top for each, top in zip((k, k0), tops, strict=True))
    return float((a / size(a) - b / size(b)).square().sum() / 2)


DRIFTS, ALIGNMENTS = ("dK", "kernel_distance"), ("alignment", "alignment0")


@checked
@dataclass(frozen=True, eq=False)
class KernelDrift(Snapshot):
    """How far the tangent kernel of a member has moved since its start, on fixed inputs.

    Where a law of width gives layers rates of their own (muP), the kernel is that of the training dynamics, the
    sum over layers of rate times the kernel of the layer: F moves by minus that kernel times the slope of the loss.

    Values: ``dK`` (:func:`drift`), ``kernel_distance``, and with targets ``alignment`` and ``alignment0``,
    that of the kernel at the start; nan of a member that has diverged, and where a kernel that is 0 has none. The first
    look computes two kernels, later ones one each. With ``interval`` each value is that over pairs of different points,
    and has its ends beside it: ``dK_low``, ``dK_high`` and so on.

    Attributes:
        inputs: the probe, (n, ...), or several tensors in a tuple or a mapping, as in :func:`regimes.measure.ntk`.
        targets: y on the probe, for the alignment.
        reduce: which kernel: "trace" (n n numbers), or "full" (n n c c) as the papers have it for many
            outputs; with one output they are the same.
        centered: whether the alignments are centred.
        memory: bytes of working memory, as in :func:`regimes.measure.ntk`.
        output: what picks the outputs from what the module returns, as in :func:`regimes.measure.ntk`.
        interval: the coverage wanted of intervals, as in :func:`drift`.
    """

    inputs: Inputs
    targets: Tensor | None = None
    reduce: Reduce = "trace"
    centered: bool = False
    memory: int | None = None
    output: Output | None = None
    interval: float | None = None
    _start: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def columns(self) -> Columns:
        """``dK``, ``kernel_distance``, and with targets the alignments; with an interval their ends."""
        return numbers(*DRIFTS, *(() if self.targets is None else ALIGNMENTS), interval=self.interval)

    def look(self, state: State) -> Mapping[str, float]:
        """Compare the kernel now with that at the start."""
        check_interval(self.interval)
        now, start = named_pair(state.module, state.parameters, state.origin)
        if "k" not in self._start:
            self._start["k"] = self._kernel(state.initial().module, start)
        k0 = self._start["k"]
        k = self._kernel(state.module, now) if is_finite(now) else torch.full_like(k0, math.nan)
        return with_ends(self._compared(k, k0))

    def _compared(self, k: Tensor, k0: Tensor) -> dict[str, float | Estimate]:
        level, fits = self.interval, [bool(each.isfinite().all()) for each in (k, k0)]
        nothing = math.nan if level is None else Estimate(math.nan, math.nan, math.nan, len(k))
        found: dict[str, float | Estimate] = {"dK": nothing, "kernel_distance": nothing}
        if all(fits) and level is None:
            found = {"dK": _drift(k, k0), "kernel_distance": _distance(k, k0)}
        elif all(fits) and level is not None:
            found = {"dK": paired_drift(k, k0, level), "kernel_distance": paired_distance(k, k0, level)}
        if self.targets is not None:
            for name, each, fit in (("alignment", k, fits[0]), ("alignment0", k0, fits[1])):
                found[name] = self._alignment(each, self.targets) if fit else nothing
        return found

    def _alignment(self, k: Tensor, targets: Tensor) -> float | Estimate:
        if self.reduce == "full":
            k = k.diagonal(dim1=2, dim2=3)
        trace = k if self.reduce == "trace" else k.mean(-1)
        columns = label_columns(trace, targets)
        check_direction(columns, self.centered)
        if self.interval is None:
            return bare_alignment(trace, columns, self.centered)
        return paired_alignment(trace, columns, self.centered, self.interval)

    def _kernel(self, module: nn.Module, parameters: Mapping[str, Tensor]) -> Tensor:
        """The sum over layers of rate times kernel; the factor that all rates share is left out."""
        speeds = _layer_rates(module)
        known: dict[str, Any] = {"reduce": self.reduce, "memory": self.memory, "parameters": parameters}
        if len(set(speeds.values())) <= 1:
            return ntk(module, self.inputs, output=self.output, **known)
        layers = ntk(module, self.inputs, output=self.output, by_layer=True, **known)
        return torch.stack([speeds[name] * k for name, k in layers.items()]).sum(0)


def _layer_rates(module: nn.Module) -> dict[str, float]:
    """The rate of each layer that trains, by its name."""
    by_layer: dict[str, set[float]] = {}
    for name, rate in rates(module).items():
        by_layer.setdefault(name.rpartition(".")[0], set()).add(rate)
    every = {rate for found in by_layer.values() for rate in found}
    if len(every) > 1 and (mixed := [name for name, found in by_layer.items() if len(found) > 1]):
        raise UserError(
            f"`state`: the weights and the bias of layer '{mixed[0]}' have different rates under its law of width, "
            "which the kernel by layer cannot tell apart; build the network with bias=False"
        )
    return {name: next(iter(found)) for name, found in by_layer.items()}
