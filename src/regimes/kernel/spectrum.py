"""What products with a symmetric matrix tell of its spectrum: leading eigenpairs, trace, effective rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh

from regimes.core.error import UserError

__all__ = ["Eigenpairs", "StochasticEstimate", "effective_rank", "leading", "trace"]

Product = Callable[[np.ndarray], np.ndarray]
"""v -> K v, both (N,)."""
Quadratic = Callable[[np.ndarray], float]
"""v -> v^T K v."""


@dataclass(frozen=True)
class StochasticEstimate:
    """A number found with random probes.

    Attributes:
        value: the estimate.
        error: its standard error over the probes.
    """

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.6g} ± {self.error:.2g}"


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """The leading eigenvalues of a symmetric matrix K, with what shows how well they are known.

    Attributes:
        values: the largest first, (k,).
        vectors: one per column, orthonormal, (N, k).
        residuals: ||K v - lambda v||, (k,). Within this distance of lambda there is an eigenvalue of K.
    """

    values: Float[np.ndarray, " k"]
    vectors: Float[np.ndarray, "N k"]
    residuals: Float[np.ndarray, " k"]


def leading(operator: LinearOperator, k: int, tolerance: float, seed: int) -> Eigenpairs:
    """The k largest eigenvalues of a symmetric operator and their vectors, by ``scipy.sparse.linalg.eigsh``.

    Args:
        operator: K, (N, N).
        k: how many, 1 <= k < N.
        tolerance: relative accuracy of the eigenvalues; 0 asks for all that the dtype holds.
        seed: of the start vector.

    Raises:
        UserError: if k is out of range, or the iteration does not converge.
    """
    size = operator.shape[0]
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k < size:
        raise UserError(
            f"`k`: got {k}, expected a whole number of at least 1 and below n c = {size}; for the whole "
            "spectrum form the kernel (measure.ntk) and use torch.linalg.eigh"
        )
    start = np.random.default_rng(seed).standard_normal(size).astype(operator.dtype)
    try:
        found = eigsh(operator, k, which="LA", v0=start, tol=tolerance)  # pyright: ignore[reportArgumentType]
    except ArpackNoConvergence as error:
        raise UserError(
            f"`tolerance`: at {tolerance:g} only {len(error.eigenvalues)} of k = {k} eigenpairs converged; "
            "expected all; raise `tolerance` (1e-4, say), or ask for fewer"
        ) from error
    except ArpackError:
        # It stops where K v = 0 for the start vector, which a random one does only if K = 0.
        if operator.matvec(start).any():
            raise
        found = np.zeros(k, operator.dtype), np.eye(size, k, dtype=operator.dtype)
    order = np.argsort(found[0])[::-1]
    values, vectors = found[0][order], found[1][:, order]
    residuals = np.linalg.norm(operator.matmat(vectors) - vectors * values, axis=0)
    return Eigenpairs(values, vectors, residuals)


def trace(product: Product, quadratic: Quadratic, size: int, probes: int, seed: int) -> StochasticEstimate:
    r"""tr K, by Hutch++.

    With S random signs, Q an orthonormal basis of K S, and g random signs again,

    .. math:: \mathrm{tr}\, K = \mathrm{tr}\, Q^T K Q + \mathbb{E}\, \bar g^T K \bar g, \qquad
        \bar g = (1 - Q Q^T) g.

    The first term is exact, so the mean of the second over independent g is unbiased whatever Q is, and the
    standard error is that of this mean. A quarter of the probes makes Q, as many give the first term, the others
    are g. Fewer than four probes leave Q empty, which is Hutchinson's estimate.

    Raises:
        UserError: if there are fewer than two probes.

    Source: Hutchinson 1990; Meyer, Musco, Musco, Woodruff 2021, algorithm 1.
    """
    basis, signs = _split(product, size, probes, seed)
    known = math.fsum(quadratic(q) for q in basis.T)
    rest = np.array([quadratic(g) for g in signs])
    return StochasticEstimate(known + float(rest.mean()), float(rest.std(ddof=1)) / math.sqrt(len(rest)))


def effective_rank(product: Product, size: int, probes: int, seed: int) -> StochasticEstimate:
    r"""(tr K)^2 / tr K^2, with tr K as in :func:`trace` and tr K^2 from the same products.

    .. math:: \mathrm{tr}\, K^2 = \|K Q\|_F^2 + \mathbb{E}\, \|K \bar g\|^2

    The standard error of the ratio is that of the delta method, and the first term of its bias is taken off.

    Raises:
        UserError: if there are fewer than two probes.
    """
    basis, signs = _split(product, size, probes, seed)
    known, rest = _moments(product, basis.T), _moments(product, signs)
    x, y = known.sum(0) + rest.mean(0)
    if y == 0:
        return StochasticEstimate(0.0, 0.0)
    (xx, xy), (_, yy) = np.cov(rest, rowvar=False) / len(rest)
    ratio = x**2 / y
    # h = x^2 / y: half the second derivatives with the covariance of (x, y), then the first ones with it.
    bias = xx / y - 2 * x * xy / y**2 + x**2 * yy / y**3
    variance = 4 * ratio / y * xx - 4 * ratio * x / y**2 * xy + (ratio / y) ** 2 * yy
    return StochasticEstimate(float(ratio - bias), math.sqrt(max(float(variance), 0.0)))


def _moments(product: Product, vectors: Iterable[np.ndarray]) -> np.ndarray:
    """v^T K v and ||K v||^2 for each v, (m, 2)."""
    pairs = []
    for v in vectors:
        moved = product(v).astype(np.float64)
        pairs.append((v @ moved, moved @ moved))
    return np.array(pairs, dtype=np.float64).reshape(-1, 2)


def _split(product: Product, size: int, probes: int, seed: int) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """Q, (N, q) with q a quarter of the probes, and probes - 2 q random signs without their part in Q."""
    if not isinstance(probes, int) or isinstance(probes, bool) or probes < 2:
        raise UserError(
            f"`probes`: got {probes}, expected a whole number of at least 2; a spread needs two values"
        )
    generator = np.random.default_rng(seed)
    count = probes // 4

    def signs() -> np.ndarray:
        return generator.choice((-1.0, 1.0), size)

    def rest(basis: np.ndarray) -> Iterator[np.ndarray]:
        for _ in range(probes - 2 * count):
            g = signs()
            yield g - basis @ (basis.T @ g)

    sketch = [product(signs()).astype(np.float64) for _ in range(count)]
    basis = np.linalg.qr(np.stack(sketch, 1))[0] if sketch else np.empty((size, 0))
    return basis, rest(basis)
