"""A kernel on the training set as a linear map of outputs (n, c), and what can be taken from it once."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import eigh_tridiagonal
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from regimes.core.batch import check_finite
from regimes.core.error import UserError

__all__ = ["FrozenKernel", "KernelMatrix", "KernelOperator", "KernelSpectrum"]

# A solution is as good as its residual, relative to the right-hand side: in double precision, and in single.
_RESIDUAL, _RESIDUAL_SINGLE = 1e-8, 3e-4
# Products with an operator that is to be trusted for many more.
_PROBES = 20
_ADVICE = (
    "the tangent kernel of one set of points is symmetric and positive semi-definite: compute it in float64, or give "
    "it in the dtype it was computed in"
)


@dataclass(frozen=True, eq=False)
class KernelSpectrum:
    r"""A decomposition of K as far as a right-hand side r sees it: functions of K times r in a few products.

    Attributes:
        values: :math:`\theta`, (b, k), 0 where an eigenvalue is no more than rounding.
        basis: Q, (b, m, k), with orthonormal columns.
        weights: :math:`Q^\top r`, (b, k, p).
        edge: (b, k), what K puts outside the span of Q: 0 where that is everything.
        size: the norm of r.
    """

    values: Tensor
    basis: Tensor
    weights: Tensor
    edge: Tensor
    size: float

    def solution(self, time: float, ridge: float) -> tuple[Tensor, Tensor, float]:
        r"""z(t) of :math:`\dot z = r - (K + \rho) z` from 0, K z(t), (b, m, p) each, and the relative residual."""
        s = self.values + ridge
        live = s > 0
        safe = torch.where(live, s, 1.0)
        gain = torch.where(live, -torch.expm1(-safe * time) / safe, 0.0)
        inner = gain[..., None] * self.weights
        # What is no more than rounding moves by r t, too, and has its part in the sum.
        moved = gain if time == math.inf else torch.where(live, gain, time)
        missed = float((self.edge[..., None] * moved[..., None] * self.weights).sum(1).norm())
        z, image = self.basis @ inner, self.basis @ (self.values[..., None] * inner)
        return z, image, missed / self.size if self.size else 0.0


class FrozenKernel(ABC):
    """K as a linear map of the outputs on n training points, (n, c).

    Attributes:
        samples: n.
        outputs: c, or None where every number of outputs shares the kernel.
        axes: the axes of a kernel of this kind, 2 to 4.
        device: where its products are.
        residual: what a solution may leave, relative to the right-hand side.
    """

    samples: int
    outputs: int | None
    axes: int
    device: torch.device
    residual: float = _RESIDUAL

    @abstractmethod
    def check(self) -> None:
        """Raise if K is not symmetric or not positive semi-definite, as far as a few products tell."""

    @abstractmethod
    def apply(self, u: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """K u."""

    @abstractmethod
    def spectrum(self, r: Float[Tensor, "n c"], ridge: float, products: float) -> KernelSpectrum:
        """What functions of K, or of K + ridge, times r need; at most so many products with an operator."""

    @abstractmethod
    def columns(self, u: Float[Tensor, "n c"]) -> Float[Tensor, "b m p"]:
        """Outputs as the columns that K multiplies."""

    @abstractmethod
    def rows(self, columns: Float[Tensor, "b m p"]) -> Float[Tensor, "n c"]:
        """Columns as outputs."""


class KernelMatrix(FrozenKernel):
    """A kernel in memory: (n, n) shared by the outputs, (n, n, c) one for each, or (n, n, c, c), in float64.

    Raises:
        UserError: if the shape is none of these, a number is not finite, or the kernel is not symmetric or not
            positive semi-definite beyond the rounding of its dtype.
    """

    def __init__(self, kernel: Tensor) -> None:
        shape = tuple(kernel.shape)
        axes = kernel.dim()
        square = axes in (2, 3, 4) and shape[0] == shape[1] and (axes < 4 or shape[2] == shape[3])
        if not square or 0 in shape or not kernel.is_floating_point():
            raise UserError(
                f"`kernel`: got shape {shape} of {kernel.dtype}, expected real numbers (n, n), (n, n, c) or "
                "(n, n, c, c) between the training points"
            )
        check_finite(kernel, "`kernel`", "compute it again in float64")
        self.samples, self.axes, self.device = len(kernel), axes, kernel.device
        self.outputs = shape[2] if axes > 2 else None
        precision = torch.finfo(kernel.dtype).eps
        blocks = kernel.detach().to(torch.float64)
        if axes == 4:
            side = shape[0] * shape[2]
            blocks = blocks.permute(0, 2, 1, 3).reshape(1, side, side)
        else:
            blocks = blocks[None] if axes == 2 else blocks.permute(2, 0, 1)
        self._precision, self._tolerance = precision, precision * max(blocks.shape[-1], 100)
        self._blocks = _symmetric(blocks, 1e3 * precision)
        self._check_positive()

    def check(self) -> None:
        """Nothing: all of it has been looked at."""

    def _check_positive(self) -> None:
        """Raise unless K + tolerance ||K|| has a Cholesky factor, or at least no eigenvalue below -tolerance."""
        size = torch.linalg.matrix_norm(self._blocks)
        if not bool((torch.linalg.cholesky_ex(self._shifted(self._tolerance * size))[1] > 0).any()):
            return
        values = torch.linalg.eigvalsh(self._blocks)
        _check_spectrum(values[:, 0], values[:, -1], self._tolerance)

    def _shifted(self, amount: Tensor | float) -> Tensor:
        """K + amount I, block by block."""
        found = self._blocks.clone()
        found.diagonal(dim1=1, dim2=2).add_(
            torch.as_tensor(amount, dtype=found.dtype).reshape(-1, 1).to(found)
        )
        return found

    def columns(self, u: Tensor) -> Tensor:
        """(n, c) as (1, n, c), (c, n, 1) or (1, n c, 1)."""
        if self.axes == 2:
            return u[None]
        return u.T[..., None] if self.axes == 3 else u.reshape(1, -1, 1)

    def rows(self, columns: Tensor) -> Tensor:
        """The inverse of :meth:`columns`."""
        if self.axes == 2:
            return columns[0]
        return columns[..., 0].T if self.axes == 3 else columns.reshape(self.samples, -1)

    def apply(self, u: Tensor) -> Tensor:
        """K u."""
        return self.rows(self._blocks @ self.columns(u))

    def spectrum(self, r: Tensor, ridge: float, products: float) -> KernelSpectrum:
        """The eigenvalues and eigenvectors of K, computed once."""
        values, vectors = self.eigen
        weights = vectors.mT @ self.columns(r)
        kept = _beyond_rounding(values, vectors.shape[1], self._precision)
        return KernelSpectrum(kept, vectors, weights, torch.zeros_like(kept), float(r.norm()))

    @cached_property
    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (b, m) in ascending order, and eigenvectors (b, m, m)."""
        found = torch.linalg.eigh(self._blocks)
        return found[0], found[1]

    def solve(self, r: Tensor, ridge: float) -> Tensor:
        """(K + ridge)^-1 r for a ridge above 0, by a Cholesky factorisation.

        Raises:
            UserError: if the ridge is too small for one.
        """
        factor, info = torch.linalg.cholesky_ex(self._shifted(ridge))
        if bool((info > 0).any()):
            raise UserError(
                f"`ridge`: got {ridge:g}, too little for K + ridge to have a Cholesky factor in float64; give "
                "more, or 0 for the solution of least norm"
            )
        return self.rows(torch.cholesky_solve(self.columns(r), factor))


class KernelOperator(FrozenKernel):
    """A kernel that is only ever multiplied: a scipy LinearOperator of side n c, with index i c + a.

    Functions of it are taken in the space of its powers on r (Lanczos, with full reorthogonalisation). At
    t = inf that is the method of conjugate gradients.
    """

    def __init__(self, operator: LinearOperator, samples: int) -> None:
        rows, side = operator.shape
        if rows != side or side % samples:
            raise UserError(
                f"`kernel`: got an operator of shape {(rows, side)}, expected (n c, n c) for n = {samples} targets"
            )
        if np.issubdtype(operator.dtype, np.complexfloating):
            raise UserError(f"`kernel`: got an operator of {operator.dtype}, expected one of real numbers")
        self.samples, self.outputs, self.axes = samples, side // samples, 4
        self.device = torch.device("cpu")
        self._operator, self._checked = operator, False
        single = operator.dtype == np.float32
        self._precision = float(np.finfo(np.float32 if single else np.float64).eps)
        self.residual = _RESIDUAL_SINGLE if single else _RESIDUAL

    def columns(self, u: Tensor) -> Tensor:
        """(n, c) as (1, n c, 1)."""
        return u.reshape(1, -1, 1)

    def rows(self, columns: Tensor) -> Tensor:
        """(1, n c, 1) as (n, c)."""
        return columns.reshape(self.samples, -1)

    def apply(self, u: Tensor) -> Tensor:
        """K u."""
        found = self._operator.matvec(u.reshape(-1).numpy())
        image = torch.from_numpy(np.asarray(found, dtype=np.float64)).reshape(self.samples, -1)
        if not image.isfinite().all() and u.isfinite().all():
            raise UserError("`kernel`: its product with finite numbers is not finite; compute it in float64")
        return image

    def check(self) -> None:
        """Look at it once, from a random vector."""
        if not self._checked:
            generator = torch.Generator().manual_seed(0)
            probe = torch.randn(self.samples, self.outputs or 1, generator=generator, dtype=torch.float64)
            self.spectrum(probe, 0.0, _PROBES)
            self._checked = True

    def spectrum(self, r: Tensor, ridge: float, products: float) -> KernelSpectrum:
        """The Ritz values and vectors in the Krylov space of r, until (K + ridge) z = r is solved in it.

        Raises:
            UserError: if the operator turns out not to be symmetric, or not positive semi-definite.
        """
        size = float(r.norm())
        if not size:
            none = torch.zeros(1, 1, dtype=torch.float64)
            return KernelSpectrum(none, torch.zeros(1, r.numel(), 1).double(), none[..., None], none, size)
        basis = _Basis(r.reshape(-1) / size)
        alphas, betas = list[float](), list[float]()
        while True:
            image = self.apply(basis.last.reshape(self.samples, -1)).reshape(-1)
            alphas.append(float(image @ basis.last))
            rest, stray = basis.outside(image)
            scale = max(map(abs, alphas))
            if stray > self._precision**0.5 * scale:
                raise UserError(f"`kernel`: is not symmetric, by {stray / scale:.1e} of its size; {_ADVICE}")
            betas.append(float(rest.norm()))
            count = len(alphas)
            done = (
                count >= min(products, r.numel())
                or betas[-1] <= _rounding(r.numel(), self._precision) * scale
            )
            if done or count % 10 == 0:
                found = self._ritz(basis.vectors, alphas, betas, size)
                if done or found.solution(math.inf, ridge)[2] <= self.residual:
                    return found
            basis.append(rest / betas[-1])

    def _ritz(self, vectors: Tensor, alphas: list[float], betas: list[float], size: float) -> KernelSpectrum:
        """The decomposition in the space found so far."""
        values, inner = (torch.from_numpy(each) for each in eigh_tridiagonal(alphas, betas[:-1]))
        side = vectors.shape[1]
        _check_spectrum(values[:1], values[-1:], self._precision * max(side, 100))
        kept = _beyond_rounding(values, side, self._precision)
        weights, edge = size * inner[0], betas[-1] * inner[-1]
        return KernelSpectrum(kept[None], (vectors.T @ inner)[None], weights[None, :, None], edge[None], size)


class _Basis:
    """Orthonormal vectors, one row each, with room for more."""

    def __init__(self, first: Tensor) -> None:
        self._room, self._count = first.new_empty(16, len(first)), 0
        self.append(first)

    @property
    def vectors(self) -> Tensor:
        """All of them, (k, m)."""
        return self._room[: self._count]

    @property
    def last(self) -> Tensor:
        """The last one, (m,)."""
        return self._room[self._count - 1]

    def append(self, vector: Tensor) -> None:
        """One more."""
        if self._count == len(self._room):
            self._room = torch.cat([self._room, torch.empty_like(self._room)])
        self._room[self._count] = vector
        self._count += 1

    def outside(self, image: Tensor) -> tuple[Tensor, float]:
        """What of an image is new, and what it has along all but the last two, which is 0 by symmetry."""
        inner = self.vectors @ image
        stray = float(inner[:-2].abs().max()) if len(inner) > 2 else 0.0
        rest = image - self.vectors.T @ inner
        return rest - self.vectors.T @ (self.vectors @ rest), stray


def _rounding(side: int, precision: float) -> float:
    """The rounding error of an eigenvalue of a matrix of that side, relative to the largest."""
    return precision * max(side**0.5, 10)


def _beyond_rounding(values: Tensor, side: int, precision: float) -> Tensor:
    """Eigenvalues (..., k), 0 where they are no more than rounding."""
    return torch.where(values > _rounding(side, precision) * values.amax(-1, keepdim=True), values, 0.0)


def _symmetric(blocks: Tensor, tolerance: float) -> Tensor:
    """(K + K^T) / 2, if that is K up to rounding."""
    size = float(blocks.abs().max())
    apart = float((blocks - blocks.mT).abs().max())
    if apart > tolerance * size:
        raise UserError(f"`kernel`: is not symmetric, by {apart / size:.1e} of its largest entry; {_ADVICE}")
    return (blocks + blocks.mT) / 2


def _check_spectrum(least: Tensor, largest: Tensor, tolerance: float) -> None:
    """Raise if the least eigenvalue is negative beyond rounding."""
    ratio = (least / largest.abs().maximum(least.abs())).min()
    if float(ratio) < -tolerance:
        raise UserError(
            f"`kernel`: is not positive semi-definite: its smallest eigenvalue is {float(ratio):.1e} times its "
            f"largest, beyond rounding ({tolerance:.0e}); {_ADVICE}"
        )
