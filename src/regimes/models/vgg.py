"""The VGG-11 of Chizat et al. 2019."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.stream import generator
from regimes.models.mlp import check_positive, check_sizes, check_start
from regimes.models.symmetry import check_channels, symmetrize
from regimes.models.xavier import Start

__all__ = ["vgg"]

# The channels of the convolutions between one pool and the next.
_STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))
# Below this the fourth pool has a single pixel to pool.
_SMALLEST = 9


@checked
def vgg(
    channels: int = 3,
    outputs: int = 10,
    *,
    size: int | tuple[int, int] = 32,
    width_factor: float = 1.0,
    gain: float = 1.0,
    symmetric: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> nn.Sequential:
    r"""VGG-11 without batch norm: eight convolutions with ReLU, five max-pools, one linear layer.

    Convolutions are 3 x 3 with padding 1 and 64, 128, 256, 256, 512, 512, 512, 512 channels, each count times
    ``width_factor`` and rounded; a 2 x 2 max-pool follows the first, second, fourth, sixth and eighth. Weights
    start Xavier-normal times ``gain``, biases at 0. A pool that meets an odd side keeps its last row, so that
    28 x 28 images go 14, 7, 4, 2, 1 where 32 x 32 ones go 16, 8, 4, 2, 1.

    The wide network of figure 3(b) has ``width_factor=8`` and ``gain=1.3``.

    Args:
        channels: of the input image.
        outputs: C, the number of classes.
        size: pixels of the image, one number for a square or (height, width), at least 9 a side.
        width_factor: what multiplies the channels of every convolution.
        gain: what multiplies the weights of the start.
        symmetric: start with f(w0, x) = 0 for every x, as in :func:`regimes.models.mlp`: channels come in pairs.
        seed: of the start. Networks of one seed and equal sizes (image, channels of every convolution, outputs) start
            from the same draws of N(0, 1), whatever gain and ``symmetric``; those of other sizes from independent ones.
        dtype: of the parameters. At a large output scale alpha the centred network needs float64.

    Returns:
        A ``Sequential`` from (n, channels, height, width) to (n, C).

    Raises:
        UserError: if a size is no positive whole number, the image is too small, a factor is not positive, a number
            of channels is odd where pairs are asked for, or the seed is no whole number or the dtype no floating one.

    Source: Chizat, Oyallon, Bach 2019, section 3.2; sizes from the authors' code, with five pools for the six in
    their list, one more than 32 x 32 pixels allow. Simonyan, Zisserman 2015, configuration A.
    """
    check_sizes({"channels": channels, "outputs": outputs})
    check_positive({"width_factor": width_factor, "gain": gain})
    check_start(seed, dtype)
    height, width = _sides(size)
    stages = [[max(1, round(count * width_factor)) for count in stage] for stage in _STAGES]
    names = ("vgg", channels, outputs, height, width, *(scaled for stage in stages for scaled in stage))
    start = Start(generator(seed, *names), gain, dtype)
    layers: list[nn.Module] = []
    maps = channels
    for stage in stages:
        for scaled in stage:
            check_channels(symmetric, scaled)
            layers += [start.conv(maps, scaled), nn.ReLU()]
            maps = scaled
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
        height, width = -(-height // 2), -(-width // 2)
    network = nn.Sequential(*layers, nn.Flatten(), start.linear(maps * height * width, outputs))
    if symmetric:
        symmetrize(network)
    return network


def _sides(size: Any) -> tuple[int, int]:
    """Height and width of the image."""
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) for side in sides):
        raise UserError(f"`size`: got {size!r}, expected a whole number of pixels, or (height, width)")
    check_sizes({"size": min(sides)})
    if min(sides) < _SMALLEST:
        raise UserError(
            f"`size`: got {sides[0]} x {sides[1]}, expected at least {_SMALLEST} pixels a side, for the pools; "
            "use models.cnn for smaller images"
        )
    return sides
