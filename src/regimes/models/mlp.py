"""Fully connected networks under a law of width."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from regimes.control.width import NTK, Law
from regimes.core.activation import ACTIVATIONS
from regimes.core.error import UserError, nearest
from regimes.core.layer import Linear

__all__ = ["mlp"]


def mlp(
    inputs: int,
    width: int,
    depth: int,
    outputs: int = 1,
    *,
    law: Law = NTK,
    activation: str = "softplus",
    bias: bool = False,
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
        seed: of the start; the same seed gives the same network.
        dtype: of the parameters.

    Returns:
        A ``Sequential`` from (n, d) to (n, C).

    Raises:
        UserError: if a size is below 1 or the activation unknown.
    """
    check_sizes({"inputs": inputs, "width": width, "depth": depth, "outputs": outputs})
    sigma = check_activation(activation)
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    fan_in = inputs
    for level in range(depth + 1):
        role = "input" if level == 0 else "output" if level == depth else "hidden"
        fan_out = outputs if level == depth else width
        scaling = law.scaling(role, fan_in, width)
        layers.append(Linear(fan_in, fan_out, scaling=scaling, bias=bias, generator=generator, dtype=dtype))
        if level < depth:
            layers.append(sigma())
        fan_in = width
    return nn.Sequential(*layers)


def check_sizes(sizes: Mapping[str, int]) -> None:
    """Raise if one of the named sizes is not a whole number of at least 1."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise UserError(f"`{name}`: got {size!r}, expected a whole number of at least 1")


def check_activation(activation: str) -> type[nn.Module]:
    """The class of the activation of that name."""
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise UserError(
            f"`activation`: got '{activation}', expected one of {known}{nearest(activation, ACTIVATIONS)}"
        )
    return ACTIVATIONS[activation]
