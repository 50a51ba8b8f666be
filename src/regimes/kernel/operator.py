"""The tangent kernel as a linear operator: products with it, without forming it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn

from regimes.core import batch
from regimes.core.batch import Inputs
from regimes.core.check import checked
from regimes.core.derivative import Output, exact, plain
from regimes.core.error import UserError
from regimes.core.tree import norm
from regimes.kernel import spectrum
from regimes.kernel.products import Jacobian, prepared
from regimes.kernel.request import request
from regimes.kernel.spectrum import Eigenpairs, StochasticEstimate

__all__ = ["TangentOperator", "ntk_operator"]


@final
class TangentOperator(LinearOperator):
    r"""K = J J^T, of shape (n c, n c); row i c + a belongs to output a of sample i. From :func:`ntk_operator`.

    A ``scipy.sparse.linalg.LinearOperator``: ``K @ v``, sums and products with other operators, and the
    solvers of scipy all take it. Vectors are numpy arrays on the CPU, wherever the network is.

    A product is u = J^T v, one pass backward, then J u, one pass in forward mode. ``K @ V`` goes column by column.
    """

    def __init__(self, jacobian: Jacobian, factor: float, like: Tensor) -> None:
        self._jacobian = jacobian
        self._factor = factor
        self._like = like
        size = batch.count(jacobian.x) * like.shape[1]
        super().__init__(_numpy_type(like), (size, size))

    @property
    def samples(self) -> int:
        """n."""
        return batch.count(self._jacobian.x)

    @property
    def outputs(self) -> int:
        """c, outputs per sample."""
        return self._like.shape[1]

    def _rows(self, v: np.ndarray) -> Tensor:
        """A vector as (n, c)."""
        copied = np.array(v, dtype=self.dtype, order="C").reshape(-1, self.outputs)
        return torch.from_numpy(copied).to(self._like.device)

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        if np.iscomplexobj(x):
            return self._matvec(np.real(x)) + 1j * self._matvec(np.imag(x))
        return (self._factor * self._jacobian.square(self._rows(x))).flatten().cpu().numpy()

    def _adjoint(self) -> TangentOperator:
        return self

    def _transpose(self) -> TangentOperator:
        return self

    def _quadratic(self, v: np.ndarray) -> float:
        """v^T K v = ||J^T v||^2, by the backward pass alone."""
        return self._factor * float(norm(self._jacobian.pull(self._rows(v)))) ** 2

    def eigenpairs(self, k: int, *, tolerance: float = 0.0, seed: int = 0) -> Eigenpairs:
        """The k largest eigenvalues and their vectors, by Lanczos iteration.

        The cost is some dozens of products, more for large k and where eigenvalues lie close to each other,
        and k more for the residuals; some 2 k + 1 vectors of length n c are held, at least 20.

        Args:
            k: how many, fewer than n c.
            tolerance: relative accuracy of the eigenvalues; 0 asks for all that the dtype holds.
            seed: of the start vector.

        Returns:
            Eigenvalues, the largest first, eigenvectors, and the residuals ||K v - lambda v||.

        Raises:
            UserError: if k is out of range, or the iteration does not converge.
        """
        return spectrum.leading(self, k, tolerance, seed)

    def trace(self, probes: int = 64, seed: int = 0) -> StochasticEstimate:
        r"""tr K = sum_ia ||df_a(x_i)/dw||^2, with its standard error; unbiased.

        Hutch++: with S random signs, Q an orthonormal basis of K S, and g random signs again,

        .. math:: \mathrm{tr}\, K = \mathrm{tr}\, Q^T K Q + \mathbb{E}\, \|J^T (1 - Q Q^T) g\|^2.

        The first term is exact and holds what the leading eigenvalues add, which in a tangent kernel is most
        of it; only the second one scatters, and its spread over g is the error. S and Q take a quarter of the
        probes each (none of fewer than four: that is Hutchinson's estimate). With few probes the error is
        itself not well known: take sixteen or more.

        Args:
            probes: the number of vectors; S costs a product each, the others a backward pass each.
            seed: of the random signs.

        Raises:
            UserError: if there are fewer than two probes.

        Source: Hutchinson 1990; Meyer, Musco, Musco, Woodruff 2021, algorithm 1.
        """
        return spectrum.trace(self._matvec, self._quadratic, self.shape[0], probes, seed)

    def effective_rank(self, probes: int = 64, seed: int = 0) -> StochasticEstimate:
        r"""(tr K)^2 / tr K^2 = (tr K)^2 / ||K||_F^2, with its standard error.

        1 where one eigenvalue is all, n c where all are equal, 0 for a kernel that is 0. tr K is estimated as
        by :meth:`trace`, and from the same products

        .. math:: \mathrm{tr}\, K^2 = \|K Q\|_F^2 + \mathbb{E}\, \|K (1 - Q Q^T) g\|^2.

        Both are unbiased; their ratio is consistent, with a bias that falls faster than the error: the part
        in 1/probes is estimated (delta method) and taken off. The standard error is that of the delta method.

        Args:
            probes: the number of products.
            seed: of the random signs.

        Raises:
            UserError: if there are fewer than two probes.

        Source: as :meth:`trace`; for the name Bartlett, Long, Lugosi, Tsigler 2020, definition 3 (R_0).
        """
        return spectrum.effective_rank(self._matvec, self.shape[0], probes, seed)


@checked
def ntk_operator(
    module: nn.Module,
    x: Inputs,
    *,
    output: Output | None = None,
    memory: int | None = None,
    parameters: Mapping[str, Tensor] | None = None,
) -> TangentOperator:
    r"""The empirical tangent kernel of x with itself as a linear operator, for n too large to form it.

    .. math:: (K v)_{ia} = \sum_{jb} \Big\langle \frac{\partial f_a(x_i)}{\partial w},
        \frac{\partial f_b(x_j)}{\partial w} \Big\rangle v_{jb}

    The operator is ``ntk(module, x).permute(0, 2, 1, 3).reshape(n * c, n * c)`` without the (n c)^2 numbers:
    a product costs one pass backward and one in forward mode, two to three steps of training on x. Where an
    operation has no forward mode, or one that is not the transpose of its backward pass, a second backward pass
    takes its place. Each sample counts as a batch of one; a module that treats samples otherwise in company is
    given one at a time, which is slow. For a module from :func:`regimes.control.scale` it is the kernel of F.

    The parameters are copied: the operator stays what it is while training goes on. Inputs and buffers are not.

    Args:
        module: f, with outputs (n,) or (n, c).
        x: n samples: a tensor, a tuple for ``module(*x)``, or a mapping for ``module(**x)``.
        output: what picks the outputs from what the module returns, e.g. ``lambda out: out.logits``.
        memory: bytes of working memory (default: 2^30), besides some four times that of the parameters and a
            few vectors of length n c. It bounds how many samples a pass takes; that is at least one.
        parameters: w by name (default: the parameters of the module), as in ``State.parameters``.

    Returns:
        K, with :meth:`~TangentOperator.eigenpairs`, :meth:`~TangentOperator.trace` and
        :meth:`~TangentOperator.effective_rank`; its dtype is that of the outputs.

    Raises:
        UserError: if the inputs are empty or not finite; nothing in the module requires grad; its outputs have
            another shape, or are neither float32 nor float64; it is random, has layers that couple samples, or
            an operation with neither a forward mode nor a second derivative.

    Source: Jacot, Gabriel, Hongler 2018; for the products Pearlmutter 1994, and Novak, Sohl-Dickstein,
    Schoenholz 2022.

    >>> k = ntk_operator(nn.Linear(2, 1), torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    >>> k @ np.array([1.0, 0.0])
    array([6., 3.], dtype=float32)
    >>> k.eigenpairs(1).values
    array([7.6055512], dtype=float32)
    >>> round(k.trace().value, 3)
    8.0
    """
    batch.check(x, "x")
    with exact(batch.device_of(x)):
        asked = request(module, x, None, "full", output, memory, parameters, "x")
        network = asked.network
        values = {
            name: network.values.get(name, plain(p)).clone() for name, p in network.module.named_parameters()
        }
        jacobian, like = prepared(replace(network, values=values), asked.rows, asked.memory)
        return TangentOperator(jacobian, asked.scale, like)


def _numpy_type(outputs: Tensor) -> np.dtype[Any]:
    """The dtype of vectors."""
    if outputs.dtype not in (torch.float32, torch.float64):
        raise UserError(
            f"`module`: gave outputs of type {outputs.dtype}, expected torch.float32 or torch.float64: half "
            "precision is too coarse for a kernel; call .float() on the module and on its inputs"
        )
    return np.dtype(str(outputs.dtype).removeprefix("torch."))
