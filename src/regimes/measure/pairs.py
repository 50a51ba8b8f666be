r"""Statistics of kernels over pairs of different points, with the interval that the jackknife gives.

The points of a probe are a sample of a distribution of inputs, and a kernel holds each of them with itself: n of its
n^2 entries, and often its largest ones. A statistic of all entries is therefore biased by its diagonal, by more than
its scatter where points are few or their dimension is high. Sums over pairs of different points have no such bias
(U-statistics), and each point can be left out of all of them at the price of one sum over rows. In simulations the
jackknife of these statistics holds what it promises from about 32 points on, on the logarithm for drift and distance
and on Fisher's scale (artanh) for alignments; the jackknife of the statistics with the diagonal does not.

Source: Hoeffding 1948; Arvesen 1969, "Jackknifing U-statistics"; Song et al. 2012, "Feature selection via dependence
maximization", for the centred sums.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from regimes.core.batch import check_finite
from regimes.core.error import UserError
from regimes.core.estimate import Estimate, Scatter, delete_one

__all__ = [
    "check_interval",
    "check_kernel",
    "defined",
    "paired_alignment",
    "paired_distance",
    "paired_drift",
]

# A kernel of points with themselves is symmetric but for rounding, of which half precision has much.
_ASYMMETRY = 1e-2
_ROUNDING = 1e-24
# Without one of them, a number per pair must leave something to compare: two points have one pair alone.
_LEAST, _LEAST_CENTRED = 4, 5


def check_kernel(k: Any, name: str) -> None:
    """Raise unless it is a tensor of finite real numbers, at least one."""
    if not isinstance(k, Tensor) or not k.is_floating_point() or not k.numel():
        came = f"{k.dtype} {tuple(k.shape)}" if isinstance(k, Tensor) else type(k).__name__
        raise UserError(
            f"`{name}`: got {came}, expected a kernel, a tensor of real numbers such as measure.ntk returns"
        )
    check_finite(k, f"`{name}`", "the network has diverged, or its inputs are too large")


def check_interval(interval: Any) -> None:
    """Raise unless it is a coverage, or None."""
    number = isinstance(interval, float | int) and not isinstance(interval, bool)
    if interval is not None and not (number and 0 < interval < 1):
        raise UserError(
            f"`interval`: got {interval!r}, expected the coverage wanted, a number between 0 and 1 such as 0.95, or "
            "None for the bare number"
        )


def defined(found: Estimate, why: str) -> Estimate:
    """The estimate; raise where it has no value, and say why."""
    if math.isnan(found.value):
        raise UserError(
            f"{why}, so that nothing can be said of pairs; leave `interval` out for the bare number"
        )
    return found


def paired_drift(k: Float[Tensor, " ..."], k0: Float[Tensor, " ..."], level: float) -> Estimate:
    """||K - K0|| / ||K0|| over pairs of different points; 0 where both are 0, inf where only K0 is."""
    k, k0 = _symmetric(k, "k", _LEAST), _symmetric(k0, "k0", _LEAST)
    top = max(_top(k), _top(k0))
    moved, size = _sums((k / top - k0 / top).square()), _sums((k0 / top).square())
    ratio = np.divide(moved, size, out=np.where(moved > 0, np.inf, 0.0), where=size > 0)
    return _estimate(np.sqrt(ratio), "log", level)


def paired_distance(k: Float[Tensor, " ..."], k0: Float[Tensor, " ..."], level: float) -> Estimate:
    """1 - <K, K0> / (||K|| ||K0||) over pairs of different points; nan where one of them is 0."""
    k, k0 = _symmetric(k, "k", _LEAST), _symmetric(k0, "k0", _LEAST)
    k, k0 = k / _top(k), k0 / _top(k0)
    size = _sums(k0.square())
    share = float(_sums(k * k0)[0] / size[0]) if size[0] else 0.0
    # Of D = K - share K0: 1 - cos = sin^2 / (1 + cos) without the cancellation.
    rest = k - share * k0
    far, along = _sums(rest.square()), _sums(rest * k0)
    with np.errstate(invalid="ignore", divide="ignore"):
        whole = (far + 2 * share * along + share**2 * size) * size
        cosine = (along + share * size) / np.sqrt(whole)
        sine = np.maximum(far * size - along**2, 0.0) / whole
        values = np.where(cosine > 0, sine / (1 + cosine), 1 - cosine)
    return _estimate(values, "log", level)


def paired_alignment(
    k: Float[Tensor, "n n"], columns: Float[Tensor, "n c"], centered: bool, level: float
) -> Estimate:
    """<K, y y^T> / (||K|| ||y y^T||) over pairs of different points; nan where one of them is 0."""
    k = _symmetric(k, "k", _LEAST_CENTRED if centered else _LEAST)
    columns = columns.to(k)
    columns = columns / _top(columns)
    labels = columns @ columns.mT
    k, labels = k / _top(k), labels / _top(labels)
    product = _centred if centered else _plain
    size = product(k, k) * product(labels, labels)
    # What centring leaves of constant entries is rounding.
    kept = size > _ROUNDING * _plain(k, k) * _plain(labels, labels)
    with np.errstate(invalid="ignore"):
        values = product(k, labels) / np.sqrt(np.where(kept, size, np.nan))
    return _estimate(values, "fisher", level)


def _symmetric(k: Tensor, name: str, least: int) -> Tensor:
    """The kernel in double precision, if it is one of enough points with themselves."""
    if k.dim() < 2 or k.shape[0] != k.shape[1] or len(k) < least:
        raise UserError(
            f"`interval`: `{name}` has shape {tuple(k.shape)}, expected a kernel of at least {least} points with "
            "themselves, (n, n, ...); leave `interval` out for the bare number"
        )
    k = k.detach().double()
    turned = k.permute(1, 0, 3, 2) if k.dim() == 4 else k.transpose(0, 1)
    if not (k - turned).abs().max() <= _ASYMMETRY * k.abs().max():
        raise UserError(
            f"`interval`: `{name}` is not symmetric, expected a kernel of points with themselves; leave `interval` out "
            "for the bare number of a cross kernel"
        )
    return k


def _top(k: Tensor) -> float:
    """The largest entry, to divide by, so that no square overflows."""
    return float(k.abs().max()) or 1.0


def _sums(terms: Float[Tensor, "n n ..."]) -> np.ndarray:
    """Sums over pairs of different points: of all points, then without each one, (1 + n,)."""
    pairs = terms.reshape(*terms.shape[:2], -1).sum(2).fill_diagonal_(0)
    rows = pairs.sum(0)
    whole = rows.sum()
    return torch.cat([whole[None], whole - 2 * rows]).cpu().numpy()


def _plain(a: Float[Tensor, "n n"], b: Float[Tensor, "n n"]) -> np.ndarray:
    """<A, B> over pairs of different points, as :func:`_sums`."""
    return _sums(a * b)


def _centred(a: Float[Tensor, "n n"], b: Float[Tensor, "n n"]) -> np.ndarray:
    """<A, B> of the centred matrices without bias (Song et al. 2012, equation 5), as :func:`_sums`."""
    # Constants of rows and columns do not matter; taken out before, they cost no digits.
    a, b = (each - each.mean(0) - each.mean(1, keepdim=True) + each.mean() for each in (a, b))
    a, b = (each.clone().fill_diagonal_(0) for each in (a, b))
    row_a, row_b, whole = a.sum(0), b.sum(0), (a * b).sum(0)
    inner = torch.dot(row_a, row_b)
    left = inner - row_a * row_b - a @ row_b - b @ row_a + whole
    rows = torch.cat([inner[None], left]).cpu().numpy()
    n = np.concatenate([[len(a)], np.full(len(a), len(a) - 1.0)])
    total = _sums(a) * _sums(b) / ((n - 1) * (n - 2))
    return (_sums(a * b) + total - 2 * rows / (n - 2)) / (n * (n - 3))


def _estimate(values: np.ndarray, scale: Scatter, level: float) -> Estimate:
    """From the value of all points and those without each one."""
    n = len(values) - 1
    method = f"pairs of {n} points; jackknife, {100 * level:g} %"
    return delete_one(float(values[0]), values[1:], scale=scale, level=level, method=method)
