"""The spread of the function over members, and what averaging over members gains."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float, Shaped
from torch import Tensor

from regimes.core.batch import check_finite
from regimes.core.check import checked
from regimes.core.decision import wrong
from regimes.core.error import UserError
from regimes.core.estimate import jackknife_variance

__all__ = ["Averaging", "Fluctuation", "averaging", "fluctuation"]


@dataclass(frozen=True)
class Fluctuation:
    """The variance of the function over members.

    Attributes:
        variance: Var F; its square root is the size of the fluctuations, delta F.
        stderr: the jackknife standard error of the variance; nan for two members.
        members: M.
    """

    variance: float
    stderr: float
    members: int


@dataclass(frozen=True)
class Averaging:
    """The error of single members against that of their average.

    Attributes:
        single: the mean error rate of a member.
        single_stderr: its standard error over members.
        ensemble: the error rate of the mean function, mean_i F_i.
        ensemble_stderr: its jackknife standard error over members.
        gain: single - ensemble.
        members: M.
    """

    single: float
    single_stderr: float
    ensemble: float
    ensemble_stderr: float
    gain: float
    members: int


def _members(outputs: Tensor) -> Tensor:
    """(M, n) or (M, n, c) as (M, n, c), M at least two."""
    if outputs.dim() not in (2, 3) or 0 in outputs.shape or not outputs.is_floating_point():
        raise UserError(
            f"`outputs`: got {outputs.dtype} {tuple(outputs.shape)}, expected floats, (members, n) or (members, n, c)"
        )
    if len(outputs) < 2:
        raise UserError("`outputs`: got 1 member, expected at least 2; run more seeds")
    return outputs if outputs.dim() == 3 else outputs[..., None]


def _jackknife(estimates: Tensor) -> float:
    """The standard error from the M estimates that leave one member out."""
    return math.sqrt(jackknife_variance(estimates.double().cpu().numpy()))


@checked
def fluctuation(outputs: Float[Tensor, "m n"] | Float[Tensor, "m n c"]) -> Fluctuation:
    r"""The variance of F over members: Var F = sum_i mean_x ||F_i(x) - mean_j F_j(x)||^2 / (M - 1).

    Args:
        outputs: F of each member on the same n test points.

    Returns:
        The variance with its standard error, from the M variances that leave one member out.

    Raises:
        UserError: if there are fewer than two members, or an output is not finite.

    Source: Geiger et al. 2020: Var F falls like 1/h in both regimes.

    >>> import torch
    >>> fluctuation(torch.tensor([[1.0, 1.0], [-1.0, -1.0]])).variance
    2.0
    """
    each = _members(outputs).double()
    check_finite(each, "`outputs`", "leave out members that diverged")
    m = len(each)
    far = (each - each.mean(0)).square().sum(-1).mean(-1)
    variance = far.sum() / (m - 1)
    if m == 2:
        return Fluctuation(float(variance), math.nan, m)
    # Leaving member i out lowers the sum of squares by M / (M - 1) times its own.
    left = ((m - 1) * variance - m / (m - 1) * far) / (m - 2)
    return Fluctuation(float(variance), _jackknife(left), m)


@checked
def averaging(
    outputs: Float[Tensor, "m n"] | Float[Tensor, "m n c"], targets: Shaped[Tensor, " n"]
) -> Averaging:
    """The mean error rate of single members, that of their average, and the difference.

    Args:
        outputs: F of each member on the same n test points.
        targets: as in :func:`regimes.measure.error_rate`.

    Returns:
        Both error rates with standard errors over members.

    Raises:
        UserError: if there are fewer than two members, or the sizes do not go together.

    Source: Geiger et al. 2020.

    >>> import torch
    >>> averaging(torch.tensor([[3.0, -1.0], [-1.0, 3.0]]), torch.tensor([1.0, 1.0])).gain
    0.5
    """
    each = _members(outputs)
    m = len(each)
    mean = each.mean(0)
    errors = wrong(each, targets).double().mean(-1)
    ensemble = float(wrong(mean, targets).double().mean())
    left = wrong((m * mean - each) / (m - 1), targets).double().mean(-1)
    single = float(errors.mean())
    return Averaging(
        single, float(errors.std()) / math.sqrt(m), ensemble, _jackknife(left), single - ensemble, m
    )
