"""Two-layer networks as sums of neurons, with the scalings of the lazy and of the mean-field limit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import nn

from regimes.core.activation import ScaledTanh, Softplus
from regimes.core.check import checked
from regimes.core.error import UserError, nearest
from regimes.core.layer import Linear, Scaling
from regimes.core.stream import generator
from regimes.models.mlp import check_activation, check_positive, check_sizes, check_start
from regimes.models.symmetry import check_symmetric, symmetrize

__all__ = ["two_layer"]

_POWERS: Mapping[str, float] = MappingProxyType({"1": 0.0, "1/sqrt(m)": -0.5, "1/m": -1.0})
# What the activations of core multiply the plain ones by.
_FACTORS: Mapping[str, float] = MappingProxyType(
    {"softplus": Softplus().a, "relu": math.sqrt(2), "tanh": ScaledTanh.a}
)


@checked
def two_layer(
    inputs: int,
    width: int,
    *,
    scaling: str | float = "1/sqrt(m)",
    tau: float = 1.0,
    symmetric: bool = False,
    activation: str = "relu",
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> nn.Sequential:
    r"""f(w, x) = m^p sum_j a_j sigma(b_j . x), with m neurons, no biases, and a_j, b_j ~ N(0, tau^2) at the start.

    With the ReLU the model is 2-homogeneous: tau at p = 0 is an output scale of tau^2 on the network with tau = 1.
    Where m m^p grows with m, training becomes lazy as the network widens, so under "1/sqrt(m)"; "1/m" is the
    critical scaling, that of the mean-field limit. The tangent kernel is of order m^(1 + 2 p), and the learning
    rate is that of the weights as they are: for times that go with those under "1/sqrt(m)", multiply it by m
    under "1/m" and by 1/m under "1".

    The neurons are the rows of ``network[0].weight``, b of (m, d), and ``network[2].weight``, a of (1, m).

    Args:
        inputs: d, the entries of one input.
        width: m, the neurons.
        scaling: "1", "1/sqrt(m)" or "1/m", or the power p of m: 0, -0.5 and -1 for these.
        tau: the standard deviation of a_j and b_j at the start.
        symmetric: the second half of the neurons copies the first with a_j flipped, so that f(w0, x) = 0 (up to
            the rounding of the sum).
        activation: sigma: "relu", "tanh", or "softplus", ln(1 + exp(5 z)) / 5. They are plain, not normalised to
            unit variance as in :func:`regimes.models.mlp`.
        seed: of the start. Students of one seed and equal inputs and width start from the same draws of N(0, 1),
            whatever tau, scaling, activation and ``symmetric``; those of another width from independent ones.
        dtype: of the parameters.

    Returns:
        A ``Sequential`` from (n, d) to (n, 1), whose members train as one stack.

    Raises:
        UserError: if a size is below 1, tau is not positive, the scaling or the activation is unknown, the width is
            odd where pairs are asked for, or the seed is no whole number or the dtype no floating one.

    Source: Chizat, Oyallon, Bach 2019, section 3.1; figure 1 has scaling "1" and ``symmetric=True``, figure 2(a)
    the other two scalings.

    >>> net = two_layer(3, 8, scaling="1/m", tau=0.1)
    >>> a, b, x = net[2].weight[0], net[0].weight, torch.ones(1, 3, dtype=torch.float64)
    >>> torch.allclose(net(x)[:, 0], (x @ b.T).relu() @ a / 8)
    True
    """
    check_sizes({"inputs": inputs, "width": width})
    check_positive({"tau": tau})
    check_start(seed, dtype)
    sigma = check_activation(activation)
    check_symmetric(symmetric, width)
    source = generator(seed, "two-layer", inputs, width)
    # The activations of core stack; their constant factor goes into the multiplier of the next layer.
    last = Scaling(multiplier=width ** _power(scaling) / _FACTORS[activation], std=tau)
    network = nn.Sequential(
        Linear(inputs, width, scaling=Scaling(std=tau), generator=source, dtype=dtype),
        sigma(),
        Linear(width, 1, scaling=last, generator=source, dtype=dtype),
    )
    if symmetric:
        symmetrize(network)
    return network


def _power(scaling: str | float) -> float:
    """The power of m."""
    if isinstance(scaling, str):
        if scaling in _POWERS:
            return _POWERS[scaling]
        raise UserError(
            f"`scaling`: got '{scaling}', expected one of {', '.join(_POWERS)}, or the power of m as a number"
            f"{nearest(scaling, _POWERS)}"
        )
    if isinstance(scaling, bool) or not isinstance(scaling, int | float) or not math.isfinite(scaling):
        raise UserError(
            f"`scaling`: got {scaling!r}, expected a finite power of m, such as -0.5 for 1/sqrt(m)"
        )
    return float(scaling)
