"""How far a kernel has moved, and how well it agrees with another one or with the labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from regimes.control.width import rates
from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.state import State
from regimes.measure.kernel.factor import Reduce
from regimes.measure.kernel.ntk import ntk
from regimes.measure.probe import Snapshot

__all__ = ["KernelDrift", "alignment", "drift", "kernel_distance", "one_hot"]


def _check_pair(k: Tensor, k0: Tensor) -> None:
    if k.shape != k0.shape:
        raise UserError(
            f"`k`: got shape {tuple(k.shape)}, expected {tuple(k0.shape)}, that of `k0`; use the same probe"
        )


@checked
def drift(k: Float[Tensor, " ..."], k0: Float[Tensor, " ..."]) -> float:
    """The kernel change dK = ||K - K0||_F / ||K0||_F: 0 in the lazy limit, of order one with features.

    Args:
        k: K, a kernel of any shape.
        k0: the kernel at the start, of the same shape.

    Returns:
        dK; inf if K0 is 0 and K is not, 0 if both are.

    Raises:
        UserError: if the shapes differ.

    Source: Geiger, Spigler, Jacot, Wyart 2020.

    >>> drift(2 * torch.eye(3), torch.eye(3))
    1.0
    """
    _check_pair(k, k0)
    moved = torch.linalg.vector_norm(k - k0)
    return float(moved / torch.linalg.vector_norm(k0)) if moved else 0.0


@checked
def kernel_distance(k: Float[Tensor, " ..."], k0: Float[Tensor, " ..."]) -> float:
    """1 - <K, K0> / (||K||_F ||K0||_F): like :func:`drift`, but blind to a kernel that only grows.

    Args:
        k: K, a kernel of any shape.
        k0: another kernel of the same shape.

    Returns:
        A number from 0 (proportional) to 1 (orthogonal), for positive semi-definite kernels; nan if one is 0.

    Raises:
        UserError: if the shapes differ.

    Source: Fort et al. 2020, "Deep learning versus kernel learning".

    >>> kernel_distance(2 * torch.eye(2), torch.eye(2)) < 1e-6
    True
    """
    _check_pair(k, k0)
    a, b = _unit(k), _unit(k0)
    # |a - b|^2 / 2 = 1 - <a, b> on the unit sphere, without the cancellation.
    return float((a - b).square().sum() / 2)


def _unit(k: Tensor) -> Tensor:
    return k / torch.linalg.vector_norm(k)


@checked
def alignment(
    k: Float[Tensor, "n n"], y: Shaped[Tensor, " n"] | Float[Tensor, "n c"], *, centered: bool = False
) -> float:
    """The kernel-label alignment <K, y y^T> / (||K||_F ||y y^T||_F).

    For one output this is y^T K y / (||K||_F ||y||^2).

    Args:
        k: K, (n, n), for instance ``ntk(..., reduce="trace")``.
        y: targets: (n,) or (n, c) real numbers, or (n,) class indices, which count as one-hot rows.
        centered: subtract the means of rows and columns of K, and of y: centred kernel alignment.

    Returns:
        A number from 0 to 1 for a positive semi-definite K; nan if K or y is 0.

    Raises:
        UserError: if the sizes differ.

    Source: Cristianini et al. 2001 (alignment); Cortes, Mohri, Rostamizadeh 2012 (centred).

    >>> y = torch.tensor([1.0, -1.0])
    >>> alignment(torch.outer(y, y), y)
    1.0
    """
    if k.dim() != 2 or k.shape[0] != k.shape[1] or len(y) != len(k):
        raise UserError(
            f"`k`: got shape {tuple(k.shape)} with {len(y)} targets, expected (n, n); "
            'a kernel with outputs takes reduce="trace"'
        )
    targets = one_hot(y).to(k.dtype)
    columns = targets if targets.dim() == 2 else targets[:, None]
    if centered:
        columns = columns - columns.mean(0)
        k = k - k.mean(0) - k.mean(1, keepdim=True) + k.mean()
    size = torch.linalg.vector_norm(k) * torch.linalg.vector_norm(columns.mT @ columns)
    return float((columns * (k @ columns)).sum() / size)


def one_hot(y: Tensor) -> Tensor:
    """Class indices (n,) as rows (n, classes) of 0 and 1; real targets as they are."""
    if y.is_floating_point():
        return y
    if y.dim() != 1 or (len(y) and int(y.min()) < 0):
        raise UserError(
            f"`y`: got {y.dtype} targets that are no class indices, expected (n,) numbers from 0 on; "
            "give real targets as floats"
        )
    return torch.nn.functional.one_hot(y.long()).double()


@checked
@dataclass(frozen=True, eq=False)
class KernelDrift(Snapshot):
    """How far the tangent kernel of a member has moved since its start, on fixed inputs.

    Where a law of width gives layers rates of their own (muP), the kernel is that of the training dynamics, the
    sum over layers of rate times the kernel of the layer: F moves by minus that kernel times the slope of the loss.

    Values: ``dK`` (:func:`drift`), ``kernel_distance``, and with targets ``alignment`` and ``alignment0``,
    that of the kernel at the start. The first look computes two kernels, later ones one each.

    Attributes:
        inputs: the probe, (n, ...).
        targets: y on the probe, for the alignment.
        reduce: which kernel: "trace" (n n numbers), or "full" (n n c c) as the papers have it for many
            outputs; with one output they are the same.
        centered: whether the alignments are centred.
        memory: bytes of working memory, as in :func:`regimes.measure.ntk`.
    """

    inputs: Tensor
    targets: Tensor | None = None
    reduce: Reduce = "trace"
    centered: bool = False
    memory: int | None = None
    _start: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def look(self, state: State) -> Mapping[str, float]:
        """Compare the kernel now with that at the start."""
        if "k" not in self._start:
            self._start["k"] = self._kernel(state.initial())
        k0, k = self._start["k"], self._kernel(state)
        values = {"dK": drift(k, k0), "kernel_distance": kernel_distance(k, k0)}
        if self.targets is not None:
            values["alignment"] = self._alignment(k)
            values["alignment0"] = self._alignment(k0)
        return values

    def _kernel(self, state: State) -> Tensor:
        """The sum over layers of rate times kernel; the factor that all rates share is left out."""
        speeds = _layer_rates(state.module)
        if len(set(speeds.values())) <= 1:
            return ntk(
                state.module, self.inputs, reduce=self.reduce, memory=self.memory, parameters=state.parameters
            )
        layers = ntk(
            state.module,
            self.inputs,
            reduce=self.reduce,
            by_layer=True,
            memory=self.memory,
            parameters=state.parameters,
        )
        return torch.stack([speeds[name] * k for name, k in layers.items()]).sum(0)

    def _alignment(self, k: Tensor) -> float:
        assert self.targets is not None
        if self.reduce == "full":
            k = k.diagonal(dim1=2, dim2=3)
        trace = k if self.reduce == "trace" else k.mean(-1)
        return alignment(trace, self.targets, centered=self.centered)


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
