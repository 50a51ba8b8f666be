r"""The largest rate at which gradient descent on a linearised network does not grow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn

from regimes.control.anchor.tangents import Tangents, curvature
from regimes.control.linear import Linearized
from regimes.control.scale import unscaled
from regimes.core.batch import Inputs, check, count, take
from regimes.core.check import checked
from regimes.core.derivative import Output
from regimes.core.error import UserError
from regimes.core.loss import Loss
from regimes.core.stream import entropy, generator
from regimes.core.tree import Layout, Tree, trainable

__all__ = [
    "GROWN",
    "MeanLoss",
    "Stable",
    "StableRate",
    "check_targets",
    "drawn",
    "growth",
    "largest",
    "limit",
    "limit_of_batches",
    "lowered",
    "mean_loss",
    "over",
    "stable_rate",
    "too_large",
]

MeanLoss = Callable[[Tensor, Any], Tensor]
"""From outputs and targets to the mean loss, as those of ``torch.nn.functional``."""
Stable = Literal["lower", "shorten", "refuse"]
"""What is done where a rate is beyond the bound of a block: the rate is lowered for the block, the block is ended
before its worst direction has grown by a factor of 2, or an error names both numbers."""
# Where a rate is lowered it comes to lie so far below the bound, at which a direction would swing for ever.
SHARE = 0.9
GROWN = math.log(2)
# The bound has to be known to a few percent: it is taken 10 % below where a rate is lowered.
_TOLERANCE = 1e-3
_VECTORS = 10


@dataclass(frozen=True)
class StableRate:
    r"""Up to which learning rate a linear block does not grow, from :func:`stable_rate`.

    Attributes:
        rate: the smaller of the two that follow; infinite where nothing is curved.
        whole: c / lambda for the loss on all samples.
        batch: 2 (1 - mu) / lambda for the worst of the batches that were tried; None without batches.
        eigenvalue: lambda, the largest eigenvalue of J^T H J / n on all samples, in the metric of the rates.
        residual: \|A v - lambda v\| of the eigenvector found; an eigenvalue lies within it of lambda.
    """

    rate: float
    whole: float
    batch: float | None
    eigenvalue: float
    residual: float


@checked
def stable_rate(
    module: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    loss: Loss | MeanLoss,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    batch_size: int | None = None,
    batches: int = 8,
    rates: Mapping[str, float] | None = None,
    output: Output | None = None,
    seed: int = 0,
) -> StableRate:
    r"""The stability bound of gradient descent on a network linearised where it is, or at the anchor it has.

    .. math:: \eta < \frac{c}{\lambda_{max}(J^T H J / n)}, \qquad
        c = 2, \quad 2 (1 + \mu), \quad \frac{2 (1 + \mu)}{1 + 2 \mu}

    for plain descent, heavy-ball momentum mu, and Nesterov's. H is the second derivative of the loss by the outputs
    there: 1 for the squared loss, diag(p) - p p^T for the cross-entropy. Along an eigenvector of eigenvalue lambda the
    steps are v <- mu v + lambda e, e <- e - eta v, with characteristic polynomial z^2 - (1 + mu - eta lambda) z + mu;
    its roots lie within the unit circle if and only if 0 < eta lambda < 2 (1 + mu). Nesterov's is
    z^2 - (1 - eta lambda)(1 + mu) z + (1 - eta lambda) mu.

    For the squared loss a rate beyond ``whole`` grows without end. The softmax's H is at most 1/2 and falls to 0 where
    outputs saturate: then the bound at the anchor is large, and holds only as long as H does not grow within the
    block. There the gradient is bounded, so that a block beyond the bound swings instead of growing exponentially.

    In mini-batches without momentum a step of the squared loss multiplies the error by I - eta J_B^T J_B / b, of norm 1
    at most if and only if eta <= 2 / lambda_B: a rate below that of every batch never increases the distance to
    weights that fit all samples. No bound of batches that divide the set is above that of the set on average
    (lambda_max is convex). With momentum c is 2 (1 - mu) for batches: along an eigenvector that random batches share,
    with k the eigenvalue of each, e' = (1 + mu - eta k) e - mu e_before has a mean square that falls if and only if

    .. math:: \eta < \frac{2 (1 - \mu^2) E k}{(1 + \mu) E k^2 - 2 \mu (E k)^2},

    which c = 2 (1 - mu) ensures for all k up to lambda_B and no larger one does (k rarely above 0; Nesterov's has the
    same). So momentum buys no stability against batches: what counts is eta / (1 - mu). In a *fixed* order of batches
    a block may resonate even below that; only eta < 2 (1 - mu)^2 / (1 + mu) / lambda_B excludes it (circle criterion).
    ``batch`` is the smallest such bound over some batches, and so an estimate from above of that over all.

    Adaptive methods (Adam) have a preconditioner that moves at every step; no bound is computed for them.

    Args:
        module: f, scaled or not, or linearised.
        inputs, targets: the training samples.
        loss: of ``regimes.core.loss`` (divided by alpha^2 for a scaled module, as engines do), or a function from
            outputs and targets to the mean loss, such as ``torch.nn.functional.cross_entropy``.
        momentum: mu, from 0 to below 1.
        nesterov: whether momentum is Nesterov's.
        batch_size: b; left out, or n and more, only the whole set is looked at.
        batches: so many random batches are tried.
        rates: factors on the rate by name of the parameter (``control.rates``), 1 where it has none: the bound is then
            that of eta in eta times the factor.
        output: what picks the outputs from what the module returns.
        seed: of batches and start vectors.

    Returns:
        Both bounds, the eigenvalue and its residual, by Lanczos iteration: 11 products with J^T H J in most cases, each
        a step of linearised training on the samples.

    Raises:
        UserError: if an argument is out of range, or the iteration does not converge.

    Source: Polyak 1964 (momentum); Cohen et al. 2021, arXiv:2103.00065, equations 1 and 2, and appendix B (both
    kinds of momentum).

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    >>> net = nn.Linear(2, 1, bias=False)
    >>> from regimes.core.loss import squared
    >>> found = stable_rate(net, x, torch.ones(2), squared)
    >>> round(found.eigenvalue, 4), round(found.rate, 4)
    (4.5, 0.4444)
    """
    if not 0 <= momentum < 1:
        raise UserError(f"`momentum`: got {momentum}, expected a number from 0 to below 1")
    for name, value in (("batch_size", batch_size), ("batches", batches)):
        if value is not None and value < 1:
            raise UserError(f"`{name}`: got {value}, expected 1 or more")
    check(inputs, "inputs")
    check_targets(inputs, targets)
    network, at, pick = _point(module, output)
    roots = _roots(module, rates)
    c, n = limit(momentum, nesterov), count(inputs)
    alpha = unscaled(module)[1]

    def bound(x: Inputs, y: Tensor) -> tuple[float, float]:
        tangents = Tangents(network, at, x, pick)
        return largest(tangents, partial(mean_loss, loss, alpha, y), roots, seed)

    value, residual = bound(inputs, targets)
    whole = over(c, value, residual)
    if batch_size is None or batch_size >= n:
        return StableRate(whole, whole, None, value, residual)
    worst = 0.0
    for index in drawn(n, batch_size, batches, seed):
        worst = max(worst, sum(bound(take(inputs, index), targets[index])))
    batch = over(limit_of_batches(momentum), worst, 0.0)
    return StableRate(min(whole, batch), whole, batch, value, residual)


def check_targets(inputs: Inputs, targets: Tensor) -> None:
    """Raise unless there is a finite target for each sample."""
    check(targets, "targets")
    if len(targets) != count(inputs):
        raise UserError(
            f"`targets`: got {len(targets)} for {count(inputs)} samples, expected one for each of `inputs`"
        )


def limit(momentum: float, nesterov: bool = False) -> float:
    """c: the largest eta lambda at which descent is stable."""
    return 2 * (1 + momentum) / (1 + 2 * momentum) if nesterov else 2 * (1 + momentum)


def limit_of_batches(momentum: float) -> float:
    """c in random batches: the largest eta lambda_B at which the mean square falls whatever share of batches has it."""
    return 2 * (1 - momentum)


def growth(step: float, momentum: float, nesterov: bool = False) -> float:
    """The factor by which descent grows along an eigenvector, eta lambda = ``step``, in a step."""
    middle, last = (
        ((1 - step) * (1 + momentum), (1 - step) * momentum) if nesterov else (1 + momentum - step, momentum)
    )
    inside = middle**2 - 4 * last
    return math.sqrt(last) if inside < 0 else (abs(middle) + math.sqrt(inside)) / 2


def lowered(rate: float, bound: float) -> float:
    """The rate, or 0.9 of the bound where it is beyond."""
    return SHARE * bound if rate > bound else rate


def too_large(rate: float, bound: float, step: int) -> UserError:
    """What to say of a rate beyond the bound."""
    return UserError(
        f"`lr`: got {rate:.4g} at step {step}, expected less than {bound:.4g}, the stability bound of the linear block "
        'there; lower it, or take stable="lower" or stable="shorten"'
    )


def over(c: float, eigenvalue: float, residual: float) -> float:
    """c / lambda, lambda as large as it may be within its residual."""
    return c / (eigenvalue + residual) if eigenvalue + residual > 0 else math.inf


def drawn(samples: int, size: int, batches: int, seed: int) -> list[Tensor]:
    """Batches of random samples, by the seed alone."""
    source = generator(seed, "anchor", "batches")
    return [torch.randperm(samples, generator=source)[:size] for _ in range(batches)]


def largest(
    tangents: Tangents, loss: Callable[[Tensor], Tensor], roots: Tree | None, seed: int
) -> tuple[float, float]:
    """The largest eigenvalue of D^1/2 J^T H J D^1/2, H that of a loss of the outputs, and its residual.

    Args:
        tangents: J.
        loss: of the outputs, a mean over the samples.
        roots: D^1/2 by name of the parameter, a number or one for each entry; None for 1.
        seed: of the start vector.

    Raises:
        UserError: if the iteration does not converge, or a product is not finite.
    """
    at = tangents.at
    layout = Layout(tuple(at), tuple(tuple(value.shape) for value in at.values()))
    like, weights = next(iter(at.values())), roots or {}
    kind = np.dtype(str(like.dtype).removeprefix("torch."))

    def product(v: np.ndarray) -> np.ndarray:
        tree = layout.split(torch.from_numpy(np.array(v, dtype=kind).reshape(-1)).to(like.device))
        scaled = {name: each * weights.get(name, 1.0) for name, each in tree.items()}
        found = tangents.curved(scaled, partial(curvature, loss))
        flat = layout.join({name: each * weights.get(name, 1.0) for name, each in found.items()})
        if not bool(torch.isfinite(flat).all()):
            raise UserError(
                "`module`: J^T H J v is not finite, so that no rate is known to be stable; start from finite weights"
            )
        return flat.cpu().numpy()

    return _top(product, layout.total, kind, seed)


def _top(
    product: Callable[[np.ndarray], np.ndarray], size: int, kind: np.dtype[Any], seed: int
) -> tuple[float, float]:
    """The largest eigenvalue of a positive matrix, and the residual."""
    start = np.random.default_rng(entropy(seed, "anchor", "start")).standard_normal(size).astype(kind)
    if size <= _VECTORS:  # as many products as a Lanczos iteration takes at least
        matrix = np.stack([product(row) for row in np.eye(size, dtype=kind)])
        return max(float(np.linalg.eigvalsh((matrix + matrix.T) / 2)[-1]), 0.0), 0.0
    if not product(start).any():
        return 0.0, 0.0
    operator = LinearOperator((size, size), matvec=product, dtype=kind)  # pyright: ignore[reportCallIssue]
    try:
        values, vectors = eigsh(operator, 1, which="LA", v0=start, tol=_TOLERANCE, ncv=_VECTORS)  # pyright: ignore[reportArgumentType]
    except ArpackNoConvergence as error:
        raise UserError(
            "`module`: the largest eigenvalue of J^T H J did not converge; look at another part of the data"
        ) from error
    value, vector = float(values[0]), vectors[:, 0]
    return max(value, 0.0), float(np.linalg.norm(product(vector) - value * vector))


def mean_loss(loss: Loss | MeanLoss, alpha: float, targets: Any, outputs: Tensor) -> Tensor:
    """L of outputs (n, c) or (n,)."""
    if isinstance(loss, Loss):
        columns = outputs if outputs.dim() > 1 else outputs[:, None]
        return loss.per_sample(columns, targets).mean() / alpha**2
    return loss(outputs, targets)


def _point(module: nn.Module, output: Output | None) -> tuple[nn.Module, Tree, Output | None]:
    """What is linearised, where, and what picks its outputs."""
    if isinstance(module, Linearized):
        return module.nonlinear, dict(module.anchor.named_buffers()), module._output
    if isinstance(unscaled(module)[0], Linearized):
        raise UserError(
            "`module`: is linearised inside the scale; give linearize(scale(f, alpha)), which is the same function"
        )
    if not trainable(module):
        raise UserError("`module`: nothing requires grad, so there is nothing to take a step with")
    return module, {name: p.detach() for name, p in trainable(module).items()}, output


def _roots(module: nn.Module, rates: Mapping[str, float] | None) -> Tree | None:
    """Square roots of the factors on the rate."""
    if rates is None:
        return None
    known = trainable(module)
    for name, rate in rates.items():
        if name not in known:
            raise UserError(
                f"`rates`: got '{name}', expected names of parameters that train, such as '{next(iter(known))}'"
            )
        if not 0 <= rate < math.inf:
            raise UserError(f"`rates`: got {rate} for '{name}', expected a finite number of 0 or more")
    return {
        name: torch.tensor(math.sqrt(rate), dtype=torch.float64).to(known[name])
        for name, rate in rates.items()
    }
