"""The inverse relative scale: how far a model is from lazy, before it is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from regimes.control.scale import unscaled
from regimes.core.batch import Inputs, check, check_finite, count, device_of, transform
from regimes.core.check import checked
from regimes.core.derivative import (
    Output,
    call,
    check_names,
    check_separable,
    columns,
    exact,
    jvp,
    plain,
    value,
    vjp,
)
from regimes.core.error import UserError
from regimes.core.tree import Tree, dot, norm, scale, trainable
from regimes.kernel.spectrum import StochasticEstimate
from regimes.measure.alignment import one_hot

__all__ = ["kappa"]


# A start that still climbs after so many turns is taken as it is: a lower bound like any other.
_TURNS = 1000


@checked
def kappa(
    module: nn.Module,
    x: Inputs,
    y: Shaped[Tensor, " n"] | Float[Tensor, "n c"],
    *,
    parameters: Tree | None = None,
    output: Output | None = None,
    starts: int = 8,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> StochasticEstimate:
    r"""The inverse relative scale of the squared loss: training is lazy where it is far below 1.

    .. math:: \kappa_h(w) = \|h(w) - y\| \, \frac{\|D^2 h(w)\|}{\|Dh(w)\|^2}, \qquad
        \kappa_{\alpha h}(w) = \frac1\alpha \|\alpha h(w) - y\| \, \frac{\|D^2 h(w)\|}{\|Dh(w)\|^2}

    h(w) is the vector of the n c outputs on x, and the norms of its derivatives are operator norms. kappa does not
    change if the norm of the space of outputs is multiplied by a factor: mean or sum over samples, all one. A
    small kappa is sufficient for lazy training, not necessary.

    *Exact*: the distance to the targets. *To a relative 1e-4*: :math:`\|Dh\|`, the root of the largest eigenvalue of
    :math:`J J^T` by the Lanczos method. *Estimated*:

    .. math:: \|D^2 h\| = \sup_{\|q\| = \|u\| = \|v\| = 1} \langle q, D^2 h(u, v) \rangle,

    for which no method is sure: from a random q and u, v and q are in turn set to the best for the other two (the
    higher-order power method). The value rises at every turn and stops at a local maximum, so that each start gives
    a lower bound. ``value`` has the largest of them; ``error`` is the standard deviation over the starts, 0 where all
    find the same: how far a single start may be from it, not divided by their root, for a maximum is no mean. It is
    no bound on a maximum that no start has found.

    A turn costs about as much as four passes forward and backward over all of x at once, and keeps the graph of
    a second derivative; a subset of the data will often do. For a ReLU D^2 h is the second derivative away from
    the kinks, of which kappa knows nothing.

    Args:
        module: h, scaled or not (see :func:`regimes.control.scale`); then alpha is that of the module.
        x: inputs.
        y: targets, (n,) or (n, c) real numbers, or (n,) class indices, which count as one-hot rows.
        parameters: w by name (default: the parameters of the module).
        output: what picks the outputs from what the module returns.
        starts: random starts, at least 2.
        tolerance: a start ends when a turn adds less than this share to its value.
        seed: of the starts.

    Returns:
        kappa, with the standard deviation over the starts for its error.

    Raises:
        UserError: if the targets do not go with the outputs, there are too few starts, an output is not finite,
            no output depends on a parameter, names are missing or unknown, the module couples samples or is
            random, or an operation in it has no second derivative.

    Source: Chizat, Oyallon, Bach 2019, section 1.1; De Lathauwer, De Moor, Vandewalle 2000, "On the best rank-1
    and rank-(R1, ..., RN) approximation of higher-order tensors", for the power method.

    >>> net = nn.Linear(2, 1)
    >>> kappa(net, torch.ones(3, 2), torch.ones(3))
    StochasticEstimate(value=0.0, error=0.0)
    """
    check(x, "x")
    _check_settings(starts, tolerance, seed)
    given = trainable(module) if parameters is None else parameters
    check_names(module, given)
    network, alpha, _ = unscaled(module)
    check_separable(network)
    prefix = "" if network is module else "network."
    with exact(device_of(x)), torch.no_grad():
        moving = {name.removeprefix(prefix): plain(given[name]) for name in trainable(module)}
        model = _Model(network, moving, x, output)
        outputs = columns(value(module, given, x, output), count(x))
        check_finite(outputs, "`module`: outputs", "kappa is that of a model that has not diverged")
        distance = float(torch.linalg.vector_norm(outputs - _targets(y, outputs)))
        slope = _first_norm(model, outputs, seed) if moving else 0.0
        if slope == 0.0:
            raise UserError(
                "`module`: no output depends on a trainable parameter, so that Dh = 0 and kappa has no meaning"
            )
        generator = torch.Generator().manual_seed(seed)
        bends = [_climb(model, outputs, generator, tolerance) for _ in range(starts)]
    factor = distance / (alpha * slope**2)
    return StochasticEstimate(factor * max(bends), factor * float(np.std(bends, ddof=1)))


def _check_settings(starts: Any, tolerance: Any, seed: Any) -> None:
    """Raise unless these are settings of a search."""
    if isinstance(starts, bool) or not isinstance(starts, int) or starts < 2:
        raise UserError(
            f"`starts`: got {starts!r}, expected a whole number of at least 2; a spread needs two"
        )
    if not isinstance(tolerance, int | float) or not 0 < tolerance < 1:
        raise UserError(f"`tolerance`: got {tolerance!r}, expected a number between 0 and 1, such as 1e-4")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UserError(f"`seed`: got {seed!r}, expected a whole number of 0 or more")


@dataclass(frozen=True, eq=False)
class _Model:
    """h as a function of its parameters: what the products below are products with."""

    network: nn.Module
    parameters: Tree
    x: Inputs
    output: Output | None


def _targets(y: Any, outputs: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """y as rows that go with the outputs."""
    n, c = outputs.shape
    if not isinstance(y, Tensor) or y.is_complex() or not y.numel() or y.dim() not in (1, 2):
        kind = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise UserError(f"`y`: got {kind}, expected a tensor of real numbers or classes for outputs {(n, c)}")
    if not y.is_floating_point() and (c < 2 or len(y) != n or int(y.max()) >= c):
        raise UserError(
            f"`y`: got {len(y)} class indices up to {int(y.max())} with {n} samples and {c} outputs, expected one "
            "for each sample, below the number of outputs; give real targets as floats"
        )
    rows = one_hot(y)
    if not y.is_floating_point():
        rows = torch.nn.functional.pad(rows, (0, c - rows.shape[1]))
    rows = (rows if rows.dim() == 2 else rows[:, None]).to(outputs)
    if rows.shape != outputs.shape:
        raise UserError(f"`y`: got shape {tuple(y.shape)}, expected targets for outputs {(n, c)}")
    check_finite(rows, "`y`", "drop that sample, or mend it")
    return rows


def _first_norm(model: _Model, outputs: Float[Tensor, "n c"], seed: int) -> float:
    """||Dh||, the largest singular value of the Jacobian."""

    def product(vector: np.ndarray) -> np.ndarray:
        cotangent = torch.from_numpy(np.asarray(vector).reshape(outputs.shape)).to(outputs)
        pulled = vjp(model.network, model.parameters, model.x, cotangent, output=model.output)[1]
        pushed = jvp(model.network, model.parameters, model.x, pulled, output=model.output)[1]
        return pushed.reshape(-1).double().cpu().numpy()

    size = outputs.numel()
    start = np.random.default_rng(seed).standard_normal(size)
    first = product(start)
    if size == 1 or not first.any():
        return math.sqrt(abs(float(first[0] / start[0])))
    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    found = eigsh(operator, 1, which="LA", v0=start, tol=1e-4, return_eigenvectors=False)  # pyright: ignore[reportArgumentType]
    return math.sqrt(float(np.max(found)))


def _climb(
    model: _Model, outputs: Float[Tensor, "n c"], generator: torch.Generator, tolerance: float
) -> float:
    """A local maximum of <q, D2h(u, v)> over unit vectors."""
    q = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)
    u = {
        name: torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
        for name, value in model.parameters.items()
    }
    u, value = scale(u, 1 / norm(u)), 0.0
    for _ in range(_TURNS):
        v, bent = _turn(model, q / torch.linalg.vector_norm(q), u)
        found = float(torch.linalg.vector_norm(bent))
        if not found > value * (1 + tolerance):
            return max(found, value)
        q, u, value = bent, v, found
    return value


def _turn(model: _Model, q: Float[Tensor, "n c"], u: Tree) -> tuple[dict[str, Tensor], Float[Tensor, "n c"]]:
    """v, the unit vector along the Hessian of <q, h> times u, and D2h(u, v)."""
    x = transform(model.x, plain)
    # Attention written out can be differentiated three times; fused attention cannot.
    with exact(device_of(x)), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        leaves = {name: plain(value).requires_grad_() for name, value in model.parameters.items()}
        weight = plain(q).requires_grad_()
        out = columns(call(model.network, leaves, x, model.output), count(x))
        slopes = _gradients((out * weight).sum(), leaves)
        products = _gradients(dot(slopes, u), leaves)
        size = norm(products).detach()
        if not size:
            return dict(u), torch.zeros_like(q)
        v = {name: plain(value) / size for name, value in products.items()}
        # <H_q u, v> is linear in q, and D2h(u, v) is its slope.
        bent = _gradients(dot(products, v), {"q": weight}, graph=False)["q"]
    return v, bent


def _gradients(value: Tensor, leaves: Mapping[str, Tensor], graph: bool = True) -> dict[str, Tensor]:
    """The gradient by name, with a graph or without."""
    try:
        found = torch.autograd.grad(value, list(leaves.values()), create_graph=graph, materialize_grads=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"`module`: has an operation without a second derivative ({reason}); write it in others"
        ) from error
    return dict(zip(leaves, found, strict=True))
