"""The convolutional network of Geiger et al. 2020, under a law of width."""

from __future__ import annotations

import torch
from torch import nn

from regimes.control.width import NTK, Law
from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.layer import Conv2d, Linear, SpatialMean
from regimes.core.stream import generator
from regimes.models.mlp import check_activation, check_law, check_sizes, check_start
from regimes.models.symmetry import check_symmetric, symmetrize

__all__ = ["cnn"]

_STRIDES = (2, 1, 2, 1)


@checked
def cnn(
    channels: int,
    width: int,
    outputs: int = 1,
    *,
    kernel: int = 5,
    padding: int = 1,
    law: Law = NTK,
    activation: str = "softplus",
    bias: bool = False,
    symmetric: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> nn.Sequential:
    """Four hidden convolutions of ``width`` channels, the mean over positions, a linear read-out.

    Kernels 5 x 5, padding 1, stride 2 on the first and third; under the NTK law every layer is divided by
    sqrt(fan-in) and every weight starts as N(0, 1) (Geiger et al. 2020; sizes from the authors' code).

    Args:
        channels: of the input image, which must be at least 19 x 19 pixels with the published kernel.
        width: h, the channels of each hidden layer.
        outputs: C.
        kernel, padding: of every convolution; 3 and 1 suit images of 14 x 14.
        law, activation, bias, symmetric, seed, dtype: as in :func:`regimes.models.mlp`.

    Returns:
        A ``Sequential`` from (n, channels, height, width) to (n, C).

    Raises:
        UserError: if a size is below 1, law or activation are unknown, the width is odd where pairs are asked for,
            or the seed is no whole number or the dtype no floating one.
    """
    check_sizes({"channels": channels, "width": width, "outputs": outputs, "kernel": kernel})
    if isinstance(padding, bool) or not isinstance(padding, int) or padding < 0:
        raise UserError(f"`padding`: got {padding!r}, expected a whole number of 0 or more")
    check_law(law)
    check_start(seed, dtype)
    sigma = check_activation(activation)
    check_symmetric(symmetric, width)
    source = generator(seed, "cnn", channels, width, outputs, kernel)
    layers: list[nn.Module] = []
    maps = channels
    for level, stride in enumerate(_STRIDES):
        scaling = law.scaling("input" if level == 0 else "hidden", maps * kernel**2, width)
        layers += [
            Conv2d(
                maps,
                width,
                kernel,
                stride=stride,
                padding=padding,
                scaling=scaling,
                bias=bias,
                generator=source,
                dtype=dtype,
            ),
            sigma(),
        ]
        maps = width
    scaling = law.scaling("output", width, width)
    layers += [
        SpatialMean(),
        Linear(width, outputs, scaling=scaling, bias=bias, generator=source, dtype=dtype),
    ]
    network = nn.Sequential(*layers)
    if symmetric:
        symmetrize(network)
    return network
