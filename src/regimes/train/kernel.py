"""Training from a frozen kernel: the dynamics of a lazy network without the network."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float, Shaped
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.loss import Loss, Squared, squared
from regimes.train.frozen_kernel import FrozenKernel, KernelMatrix, KernelOperator
from regimes.train.path import ClosedPath, FlowPath, KernelPath, PathSettings
from regimes.train.step import Tolerance
from regimes.train.target import as_start, as_targets, check_targets

__all__ = ["kernel"]


@checked
def kernel(
    kernel: Float[Tensor, "n n"] | Float[Tensor, "n n c"] | Float[Tensor, "n n c c"] | LinearOperator,
    targets: Shaped[Tensor, " n"] | Float[Tensor, "n c"],
    *,
    loss: Loss = squared,
    alpha: float = 1.0,
    ridge: float = 0.0,
    start: Shaped[Tensor, " n"] | Shaped[Tensor, "n c"] | None = None,
    tolerance: Tolerance | None = None,
    max_steps: float = math.inf,
    max_seconds: float = math.inf,
) -> KernelPath:
    r"""Train a function from a frozen kernel: what gradient flow does to a network in the lazy limit.

    .. math:: \dot F(x) = -\frac{1}{\alpha^2 n} \sum_j K(x, x_j) \left(\partial_F \mathrm{loss}(F(x_j), y_j)
              + \rho c_j\right), \qquad F(x) = F_0(x) + \sum_j K(x, x_j)\, c_j

    with time t in the units of ``train.flow``. For the squared loss the path is known in closed form, without a
    margin stop: one decomposition, then every t at the price of two products; t = inf is kernel regression,
    the solution of (K + rho) c = y - F0 (of least norm without a ridge; eigenvalues within rounding count as
    0). With a ridge, t = inf alone takes a Cholesky factorisation instead; no jitter is added to it. For other
    losses it is a flow with the steps and the margin stop of ``train.flow``; like that one it has no end where
    the margins cannot be met, unless ``max_steps`` says so.

    With F = alpha (f - f0) the kernel is alpha^2 times that of f and the loss is divided by alpha^2: alpha
    cancels. So give the kernel of f (``measure.ntk(f, x)``) and leave ``alpha`` out, or the kernel of the
    scaled module with its alpha. Where a law of width has rates of its own, K is the sum over layers of rate
    times kernel.

    Args:
        kernel: K on the training set: (n, n), of one output or shared by all (``reduce="trace"``), (n, n, c) one
            for each (``"diagonal"``), (n, n, c, c), or an operator (``measure.ntk_operator``) where that does
            not fit; an operator is only multiplied (conjugate gradients, or one product a step).
        targets: y, (n,): -1 or +1 as floats, or class indices; for the squared loss any floats, (n,) or (n, c).
        loss: the closed form for ``Squared``, a flow for others.
        alpha: the scale of the module whose kernel this is.
        ridge: rho, which adds (rho / 2) ||w - w0||^2 = (rho / 2) c . K c to the sum of the losses.
        start: F0 on the training set, (n, c) or (n,); 0 if left out, as for a centred module.
        tolerance: of one step of a flow.
        max_steps: accepted steps of a flow; products with an operator, for the squared loss.
        max_seconds: wall-clock of one pass over a flow.

    Returns:
        The path: ``at(t)``, a :class:`KernelState` that predicts on other points from the cross kernel;
        ``after(steps, lr=, momentum=)``, that of gradient descent in discrete time; iteration over its states;
        ``best(cross, targets)``, early stopping on validation data.

    Raises:
        UserError: if shapes do not go together, the kernel is not symmetric or not positive semi-definite (by
            how much), the targets are not what the loss needs, or a setting is out of range.

    Source: Geiger, Spigler, Jacot, Wyart 2020, appendix C (version 1); Jacot, Gabriel, Hongler 2018.

    >>> path = kernel(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([1.0, -1.0]))
    >>> [round(float(path.at(t).outputs[0, 0]), 3) for t in (0.0, 1.0, 2.0, math.inf)]
    [0.0, 0.393, 0.632, 1.0]
    >>> round(float(path.at(math.inf).predict(torch.tensor([[0.0, 1.0]]))), 3)
    -1.0
    """
    alpha = _number("alpha", alpha, "a positive finite number", lambda value: 0 < value < math.inf)
    ridge = _number("ridge", ridge, "a finite number of 0 or more", lambda value: 0 <= value < math.inf)
    max_steps = _number("max_steps", max_steps, "0 or more", lambda value: value >= 0)
    max_seconds = _number("max_seconds", max_seconds, "0 or more", lambda value: value >= 0)
    if not isinstance(loss, Loss):
        raise UserError(f"`loss`: got {loss!r}, expected a loss such as regimes.core.loss.squared")
    if not isinstance(tolerance, Tolerance | None):
        raise UserError(f"`tolerance`: got {tolerance!r}, expected a regimes.train.Tolerance")
    frozen = _frozen(kernel, targets)
    outputs = _outputs(frozen, targets, start)
    wanted = as_targets(targets, frozen.samples, outputs, loss).to(frozen.device)
    zero = torch.zeros(frozen.samples, outputs, dtype=torch.float64, device=frozen.device)
    origin = zero if start is None else zero + as_start(start, frozen.samples, outputs).to(zero)
    speed = 1 / (alpha**2 * frozen.samples)
    settings = PathSettings(loss, speed, ridge, tolerance or Tolerance(), max_steps, max_seconds)
    return (ClosedPath if isinstance(loss, Squared) else FlowPath)(frozen, wanted, settings, origin)


def _frozen(kernel: Any, targets: Any) -> FrozenKernel:
    """The kernel, checked."""
    if not isinstance(kernel, Tensor | LinearOperator):
        raise UserError(f"`kernel`: got {type(kernel).__name__}, expected a tensor or a scipy LinearOperator")
    check_targets(targets)
    frozen = KernelMatrix(kernel) if isinstance(kernel, Tensor) else KernelOperator(kernel, len(targets))
    if len(targets) != frozen.samples:
        raise UserError(
            f"`targets`: got {len(targets)}, expected one for each of {frozen.samples} rows of `kernel`"
        )
    return frozen


def _outputs(frozen: FrozenKernel, targets: Tensor, start: Any) -> int:
    """c: that of the kernel, of F0, of the targets, or the largest class and one."""
    if frozen.outputs is not None:
        return frozen.outputs
    if isinstance(start, Tensor) and start.dim() == 2:
        return start.shape[1]
    if targets.dim() == 2:
        return targets.shape[1]
    return 1 if targets.is_floating_point() or start is not None else max(int(targets.max()) + 1, 2)


def _number(name: str, value: Any, kind: str, right: Callable[[float], bool]) -> float:
    """A setting as a number, a tensor of shape () among them."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    number = number or (isinstance(value, Tensor) and value.dim() == 0 and not value.is_complex())
    if not number or not right(float(value)):
        raise UserError(f"`{name}`: got {value!r}, expected {kind}")
    return float(value)
