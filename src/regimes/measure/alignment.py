"""How well a kernel agrees with the labels."""

from __future__ import annotations

import math
from typing import Any, overload

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from regimes.core.batch import check_finite
from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.estimate import Estimate
from regimes.measure.pairs import check_interval, check_kernel, defined, paired_alignment

__all__ = ["alignment", "bare_alignment", "check_direction", "label_columns", "one_hot"]


@overload
def alignment(
    k: Float[Tensor, "n n"],
    y: Shaped[Tensor, " n"] | Float[Tensor, "n c"],
    *,
    centered: bool = False,
    interval: None = None,
) -> float: ...
@overload
def alignment(
    k: Float[Tensor, "n n"],
    y: Shaped[Tensor, " n"] | Float[Tensor, "n c"],
    *,
    centered: bool = False,
    interval: float,
) -> Estimate: ...
@checked
def alignment(
    k: Float[Tensor, "n n"],
    y: Shaped[Tensor, " n"] | Float[Tensor, "n c"],
    *,
    centered: bool = False,
    interval: float | None = None,
) -> float | Estimate:
    """The kernel-label alignment <K, y y^T> / (||K||_F ||y y^T||_F).

    For one output this is y^T K y / (||K||_F ||y||^2).

    Args:
        k: K, (n, n), for instance ``ntk(..., reduce="trace")``.
        y: targets: (n,) or (n, c) real numbers, or (n,) class indices, which count as one-hot rows.
        centered: subtract the means of rows and columns of K, and of y: centred kernel alignment.
        interval: the coverage wanted of an interval, such as 0.95; value and interval are then those over pairs of
            different points, as in :func:`regimes.measure.drift`, which may be below 0 where the alignment is small.
            n at least 4, centred 5.

    Returns:
        A number from 0 to 1 for a positive semi-definite K; with ``interval`` an
        :class:`~regimes.core.estimate.Estimate`, by leaving out each point in turn, on Fisher's scale.

    Raises:
        UserError: if the sizes differ, K or y holds anything but finite real numbers, or one of them is 0 everywhere
            (centred: constant), so that it has no direction.

    Source: Cristianini et al. 2001 (alignment); Cortes, Mohri, Rostamizadeh 2012 (centred).

    >>> y = torch.tensor([1.0, -1.0])
    >>> alignment(torch.outer(y, y), y)
    1.0
    """
    check_kernel(k, "k")
    check_interval(interval)
    columns = label_columns(k, y)
    check_direction(columns, centered)
    if interval is not None:
        found = paired_alignment(k, columns, centered, interval)
        return defined(found, "`k`, `y`: one of them is 0 between different points")
    if math.isnan(bare := bare_alignment(k, columns, centered)):
        kind = "constant" if centered else "0 everywhere"
        raise UserError(f"`k`: is {kind}, so that it has no direction; expected a kernel that is not")
    return bare


def label_columns(k: Tensor, y: Any) -> Tensor:
    """The targets as columns (n, c), if they are as many as the rows of K."""
    if not isinstance(y, Tensor) or y.dim() not in (1, 2) or y.is_complex() or 0 in y.shape:
        came = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise UserError(
            f"`y`: got {came}, expected targets: (n,) or (n, c) real numbers, or (n,) class indices"
        )
    if k.dim() != 2 or k.shape[0] != k.shape[1] or len(y) != len(k):
        raise UserError(
            f"`k`: got shape {tuple(k.shape)} with {len(y)} targets, expected (n, n); "
            'a kernel with outputs takes reduce="trace"'
        )
    check_finite(y, "`y`", "drop that sample, or mend it")
    rows = one_hot(y).to(k.device)
    return rows if rows.dim() == 2 else rows[:, None]


def check_direction(columns: Tensor, centered: bool) -> None:
    """Raise if the targets are 0, or are once they are centred."""
    if not (columns != columns[0] if centered else columns).any():
        kind = "the same for all samples, which centring makes 0" if centered else "0 everywhere"
        raise UserError(f"`y`: is {kind}, so that it has no direction; expected targets that differ")


def bare_alignment(k: Tensor, columns: Tensor, centered: bool) -> float:
    """nan where K is 0, or constant if it is centred."""
    if not (top := float(k.abs().max())):
        return math.nan
    k, columns = k.double() / top, columns.double() / float(columns.abs().max())
    if centered:
        columns = columns - columns.mean(0)
        k = k - k.mean(0) - k.mean(1, keepdim=True) + k.mean()
    far = float(torch.linalg.vector_norm(k))
    # What centring leaves of constant entries is rounding.
    if far <= 1e-14 * len(k):
        return math.nan
    return (
        float((columns * (k @ columns)).sum()) / far / float(torch.linalg.vector_norm(columns.mT @ columns))
    )


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
