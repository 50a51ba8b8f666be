r"""Solutions u of (H K + N lambda) u = g: by a factorisation, or by conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from regimes.core.error import UserError
from regimes.train.newton.curvature import Curvature, SquaredCurvature, model_of

__all__ = ["Solution", "by_factor", "by_products", "by_trace"]

# How often the damping is multiplied by 10 before a batch is given up.
_RAISES = 30
# How often a solution in float32 is refined, and the relative residual that is enough for a kernel of float32.
_REFINEMENTS, _REFINED = 6, 1e-8
# Steps of conjugate gradients with the trace kernel, each of which is one small product.
_SMALL = 2000


@dataclass(frozen=True, eq=False)
class Solution:
    """A solution of one batch.

    Attributes:
        u: (n, c), float64.
        model: g . K u and K u . H K u, with the K that was solved: by what the quadratic model of N times the loss
            falls along -J^T u at first, and how it bends.
        damping: lambda of it.
        products: products with K.
        residual: relative, in the norm of the parameters; 0 for a factorisation.
        raised: how often lambda was multiplied by 10.
    """

    u: Tensor
    model: tuple[float, float]
    damping: float
    products: int = 0
    residual: float = 0.0
    raised: int = 0


def by_factor(k: Float[Tensor, "k k"], curvature: Curvature, damping: float) -> Solution:
    """By a Cholesky factorisation of S^T K S + N lambda.

    Args:
        k: K, (n c, n c); overwritten.
        curvature: g, H and S.
        damping: lambda.

    Raises:
        UserError: if K is not finite.
    """
    matrix, right = curvature.whitened(k)
    w, damping, raised = _solved(matrix, right[:, None], damping, len(curvature.slope))
    # S^T K S w, by the equation that w solves.
    image = right - len(curvature.slope) * damping * w[:, 0]
    model = float(right @ image), float(image @ image)
    return Solution(curvature.coloured(w[:, 0]), model, damping, raised=raised)


def by_trace(k: Float[Tensor, "k k"], curvature: Curvature, damping: float, tolerance: float) -> Solution:
    """With K taken as K_trace x 1 over the outputs of a sample.

    Args:
        k: K_trace; overwritten.
        curvature: g and H.
        damping: lambda.
        tolerance: relative residual, where H couples the outputs.

    Raises:
        UserError: if K is not finite.
    """
    samples, g = len(k), curvature.slope
    if isinstance(curvature, SquaredCurvature):
        w, damping, raised = _solved(k, g.reshape(samples, -1), damping, len(g))
        image = g - len(g) * damping * w.view_as(g)
        return Solution(w.view_as(g), model_of(curvature, image), damping, raised=raised)
    _check(k)
    wide = k.double()
    return by_products(
        lambda v: (wide @ v.reshape(samples, -1)).view_as(v), curvature, damping, tolerance, _SMALL
    )


def _solved(matrix: Tensor, right: Tensor, damping: float, terms: int) -> tuple[Tensor, float, int]:
    """(matrix + terms x damping)^-1 right; the damping that it took, and how often it was raised."""
    _check(matrix)
    wide = matrix.double()
    diagonal = wide.diagonal().clone()
    for raised in range(_RAISES):
        wide.diagonal().copy_(diagonal + terms * damping)
        found = None
        if matrix.dtype != torch.float64:
            matrix.diagonal().copy_(wide.diagonal())
            found = _refined(matrix, wide, right)
        if found is None:
            found = _factored(wide, right)
        if found is not None:
            return found, damping, raised
        damping *= 10
    raise UserError(
        f"`damping`: the kernel of this batch is not positive definite even with {damping:.3g}; scale the inputs, or "
        "take kernel='products'"
    )


def _factored(matrix: Tensor, right: Tensor) -> Tensor | None:
    """matrix^-1 right; None where the matrix is not positive definite to rounding."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return None if failed else torch.cholesky_solve(right, factor)


def _refined(matrix: Tensor, wide: Tensor, right: Tensor) -> Tensor | None:
    """The same of a float32 matrix by a factor in float32, a third of the time; None where that does not do.

    Residuals are taken in float64, each entry against what it is the difference of, so that small ones count too.

    Args:
        matrix: in float32.
        wide: the same in float64.
        right: in float64.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        return None
    found, left = torch.zeros_like(right), right
    diagonal = wide.diagonal()[:, None]
    for _ in range(_REFINEMENTS):
        found = found + torch.cholesky_solve(left.to(matrix.dtype), factor).double()
        left = right - wide @ found
        if bool((left.abs() <= _REFINED * torch.maximum(right.abs(), diagonal * found.abs())).all()):
            return found
    return None


def _check(matrix: Tensor) -> None:
    if not matrix.sum().isfinite():
        raise UserError(
            "`module`: the tangent kernel of this batch is not finite; scale inputs or parameters"
        )


def by_products(
    product: Callable[[Tensor], Tensor], curvature: Curvature, damping: float, tolerance: float, limit: int
) -> Solution:
    r"""By conjugate gradients with products K v.

    H K is self-adjoint in the inner product u^T K v, which is that of the parameters, <J^T u, J^T v>. In it the
    iterates -J^T u are those of conjugate gradients for (J^T H J + N lambda) Delta = -J^T g: each lowers the quadratic
    model, wherever one stops.

    Args:
        product: v -> K v, (n, c) each.
        curvature: g and H.
        damping: lambda.
        tolerance: relative residual in the norm of the parameters.
        limit: the most products.
    """
    shift = damping * len(curvature.slope)
    residual, u = curvature.slope.clone(), torch.zeros_like(curvature.slope)
    along, k_along, k_u = torch.zeros_like(u), torch.zeros_like(u), torch.zeros_like(u)
    first = before = rho = 0.0
    count = 0
    for count in range(1, limit + 1):
        k_residual = product(residual)
        rho = float((residual * k_residual).sum())
        first = rho if count == 1 else first
        if rho <= tolerance**2 * first:
            break
        beta = rho / before if before else 0.0
        along, k_along = residual + beta * along, k_residual + beta * k_along
        image = curvature.times(k_along) + shift * along
        slope = float((k_along * image).sum())
        if not slope > 0:  # rounding: there is nothing left to gain
            break
        u += rho / slope * along
        k_u += rho / slope * k_along
        residual -= rho / slope * image
        before = rho
    relative = (max(rho, 0.0) / first) ** 0.5 if first > 0 else 0.0
    return Solution(u, model_of(curvature, k_u), damping, count, relative)
