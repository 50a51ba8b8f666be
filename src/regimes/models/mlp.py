"""Fully connected networks under a law of width."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from regimes.control.width import NTK, Law
from regimes.core.activation import ACTIVATIONS
from regimes.core.check import checked
from regimes.core.error import UserError, nearest
from regimes.core.layer import Linear
from regimes.core.stream import generator
from regimes.models.symmetry import check_symmetric, symmetrize

__all__ = ["mlp"]

# Layers are made one by one: past some depth the memory is full, and the system ends the process without a word.
DEEPEST = 100_000


@checked
def mlp(
    inputs: int,
    width: int,
    depth: int,
    outputs: int = 1,
    *,
    law: Law = NTK,
    activation: str = "softplus",
    bias: bool = False,
    symmetric: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> nn.Sequential:
    """A fully connected network with ``depth`` hidden layers of ``width`` units: depth + 1 weight matrices.

    Under the NTK law z1 = d^-1/2 W0 x, z(l+1) = h^-1/2 W_l sigma(z_l), f = h^-1/2 W_L sigma(z_L), every
    W_ij ~ N(0, 1) and every bias 0 at the start (Geiger et al. 2020, appendix B).

    Args:
        inputs: d, the entries of one input.
        width: h, the units of each hidden layer.
        depth: L, the number of hidden layers, at least 1.
        outputs: C.
        law: the law of width (``control.NTK``, ``STANDARD``, ``MEAN_FIELD``, ``MUP``).
        activation: "softplus", "relu" or "tanh", normalised to E sigma(z)^2 = 1.
        bias: whether the layers have biases.
        symmetric: start with f(w0, x) = 0 for every x, up to rounding (1e-15 of the usual outputs in float64),
            with no frozen copy to subtract: the units of every hidden layer come in pairs that say the same, and
            the last layer takes their difference. Architecture, the law of each weight and the wide limit of the
            tangent kernel stay; half of the weights are copies, so that the start scatters like that of a
            network of half the width. An output scale multiplies the rounding too: subtract the start
            (:func:`regimes.control.scale`) where that matters.
        seed: of the start. Networks of one seed and equal inputs, width, depth and outputs start from the same draws
            of N(0, 1), whatever the law, the activation, the biases and ``symmetric``, so that these compare in
            pairs. Those of other sizes start from independent draws (:func:`regimes.core.stream.generator`).
        dtype: of the parameters; in another one other numbers are drawn.

    Returns:
        A ``Sequential`` from (n, d) to (n, C).

    Raises:
        UserError: if a size is below 1, law or activation are unknown, the width is odd where pairs are asked for,
            or the seed is no whole number or the dtype no floating one.
    """
    check_sizes({"inputs": inputs, "width": width, "depth": depth, "outputs": outputs})
    if depth > DEEPEST:
        raise UserError(f"`depth`: got {depth}, expected at most {DEEPEST} hidden layers")
    check_law(law)
    check_start(seed, dtype)
    sigma = check_activation(activation)
    check_symmetric(symmetric, width)
    source = generator(seed, "mlp", inputs, width, depth, outputs)
    layers: list[nn.Module] = []
    fan_in = inputs
    for level in range(depth + 1):
        role = "input" if level == 0 else "output" if level == depth else "hidden"
        fan_out = outputs if level == depth else width
        scaling = law.scaling(role, fan_in, width)
        layers.append(Linear(fan_in, fan_out, scaling=scaling, bias=bias, generator=source, dtype=dtype))
        if level < depth:
            layers.append(sigma())
        fan_in = width
    network = nn.Sequential(*layers)
    if symmetric:
        symmetrize(network)
    return network


def check_sizes(sizes: Mapping[str, int]) -> None:
    """Raise if one of the named sizes is not a whole number of at least 1."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise UserError(f"`{name}`: got {size!r}, expected a whole number of at least 1")


def check_positive(numbers: Mapping[str, float]) -> None:
    """Raise if one of the named numbers is not positive and finite."""
    for name, number in numbers.items():
        real = isinstance(number, int | float) and not isinstance(number, bool)
        if not real or not 0 < number < math.inf:
            raise UserError(f"`{name}`: got {number!r}, expected a positive finite number")


def check_activation(activation: str) -> type[nn.Module]:
    """The class of the activation of that name."""
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        known, near = ", ".join(ACTIVATIONS), nearest(str(activation), ACTIVATIONS)
        raise UserError(f"`activation`: got {activation!r}, expected one of {known}{near}")
    return ACTIVATIONS[activation]


def check_law(law: Law) -> None:
    """Raise if this is no law of width."""
    if not isinstance(law, Law):
        raise UserError(
            f"`law`: got {law!r}, expected a law of width such as control.NTK; control.law('ntk') finds one by name"
        )


def check_start(seed: int, dtype: torch.dtype) -> None:
    """Raise if weights cannot be drawn from this seed, or in this dtype."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**64:
        raise UserError(f"`seed`: got {seed!r}, expected a whole number of at most 64 bits")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UserError(f"`dtype`: got {dtype!r}, expected a floating type such as torch.float64")
