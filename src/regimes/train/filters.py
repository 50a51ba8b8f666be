r"""What K steps, and what damping, make of each eigenvalue of a kernel: two filters, and how far they are apart.

Along an eigenvector with the eigenvalue k of J J^T / n, K steps of rate :math:`\eta` fit the share
:math:`1 - (1 - \eta k)^K` of the error of the squared loss, a step with the damping :math:`\lambda` the share
:math:`k / (k + \lambda)`. At :math:`\lambda = 1 / (\eta K)` both are :math:`\eta K k` to first order, and there
alone do they agree.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.train.discrete import check_count, check_step

__all__ = ["damping_filter", "descent_filter", "filter_gap"]


@checked
def descent_filter(spectrum: Float[Tensor, " k"], steps: int, lr: float) -> Float[Tensor, " k"]:
    r"""The share :math:`1 - (1 - \eta k)^K` of the error that K steps of gradient descent fit.

    Args:
        spectrum: eigenvalues k of J J^T / n, such as ``torch.linalg.eigvalsh(K) / n``; 0 or more.
        steps: K.
        lr: eta.

    Raises:
        UserError: if a number is out of range, or the rate above 2 / k for the largest k.

    >>> import torch
    >>> descent_filter(torch.tensor([0.0, 0.5, 1.0]), 2, 1.0)
    tensor([0.0000, 0.7500, 1.0000])
    """
    k = _checked(spectrum)
    check_count("steps", steps)
    check_step(lr, 0.0)
    if lr * float(k.max()) > 2:
        raise UserError(
            f"`lr`: got {lr:g}, above {2 / float(k.max()):g} = 2 / (largest eigenvalue), beyond which the steps "
            "diverge; give less"
        )
    if not steps:
        return k * 0
    # Small shares to all digits: log1p, and expm1 of it; beyond 1 / eta the factor is negative.
    small = (lr * k).clamp(max=0.5)
    fine = -((steps * (-small).log1p()).expm1())
    return fine.where(lr * k <= 0.5, 1 - (1 - lr * k) ** steps)


@checked
def damping_filter(spectrum: Float[Tensor, " k"], damping: float) -> Float[Tensor, " k"]:
    r"""The share :math:`k / (k + \lambda)` of the error that one damped Gauss-Newton step fits.

    Args:
        spectrum: eigenvalues k of J J^T / n; 0 or more.
        damping: lambda, positive; :math:`1 / (\eta K)` is that of K steps at the rate eta.

    >>> import torch
    >>> damping_filter(torch.tensor([0.0, 0.5, 1.5]), 0.5)
    tensor([0.0000, 0.5000, 0.7500])
    """
    k = _checked(spectrum)
    if not 0 < float(damping) < float("inf"):
        raise UserError(f"`damping`: got {damping!r}, expected a positive finite number")
    return k / (k + damping)


@checked
def filter_gap(spectrum: Float[Tensor, " k"], steps: int, lr: float) -> Float[Tensor, " k"]:
    r"""A bound of \|descent - damping\| for each eigenvalue, at :math:`\lambda = 1 / (\eta K)`.

    With :math:`z = \eta k K`: for :math:`\eta k \le 1` the filter of the steps is at least that of damping, since
    :math:`(1 - \eta k)^K \le e^{-z} \le 1 / (1 + z)`, and no more than z and than 1. So the gap is at most
    :math:`\min(z, 1) - z / (1 + z)`: :math:`z^2` to first order, 1/2 at most, where z = 1. For :math:`\eta k` up to 2
    the steps overshoot by at most :math:`|1 - \eta k|^K`, and the gap is at most that and :math:`1 / (1 + z)` together.

    Args:
        spectrum: eigenvalues k of J J^T / n; 0 or more.
        steps: K.
        lr: eta.

    >>> import torch
    >>> filter_gap(torch.tensor([0.0, 0.01, 0.1]), 10, 1.0)
    tensor([0.0000, 0.0091, 0.5000])
    """
    k = _checked(spectrum)
    check_count("steps", steps, 1)
    check_step(lr, 0.0)
    z = lr * k * steps
    below = (z * z).clamp(max=1) / (1 + z)
    return below.where(lr * k <= 1, (1 - lr * k).abs() ** steps + 1 / (1 + z))


def _checked(spectrum: Tensor) -> Tensor:
    """Eigenvalues of a positive semi-definite matrix; those below 0 by rounding are 0."""
    if spectrum.dim() != 1 or not len(spectrum) or spectrum.dtype not in (torch.float32, torch.float64):
        raise UserError(
            f"`spectrum`: got {spectrum.dtype} {tuple(spectrum.shape)}, expected eigenvalues (k,), at least one"
        )
    if not bool(spectrum.isfinite().all()):
        raise UserError("`spectrum`: has an entry that is not finite, expected eigenvalues of 0 or more")
    if float(spectrum.min()) < -1e-6 * float(spectrum.abs().max()):
        raise UserError(
            f"`spectrum`: got {float(spectrum.min()):g}, expected eigenvalues of 0 or more, up to rounding; compute "
            "the kernel in float64"
        )
    return spectrum.clamp(min=0)
