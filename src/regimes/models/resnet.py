"""ResNet-18 for small images, without normalisation or with group norm."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.layer import SpatialMean
from regimes.core.stream import generator
from regimes.models.mlp import check_positive, check_sizes, check_start
from regimes.models.symmetry import check_channels, symmetrize
from regimes.models.xavier import Start

__all__ = ["Norm", "resnet"]

Norm = Literal["none", "group"]

_STAGES = (64, 128, 256, 512)
_GROUP = 16


@checked
def resnet(
    channels: int = 3,
    outputs: int = 10,
    *,
    width_factor: float = 1.0,
    norm: Norm = "none",
    gain: float = 1.0,
    symmetric: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> nn.Sequential:
    r"""ResNet-18 with the stem for small images: one 3 x 3 convolution, eight blocks, the mean over positions.

    A block computes relu(conv(relu(conv(x))) + shortcut(x)) with 3 x 3 convolutions; the shortcut is x itself,
    or a 1 x 1 convolution where size or channels change. Four stages of two blocks have 64, 128, 256 and 512
    channels, each count times ``width_factor`` and rounded; the last three halve the image. Weights start
    Xavier-normal times ``gain``, biases at 0. Any size of image will do, 32 x 32 and 28 x 28 among them.

    The wide network of figure 3(b) has ``width_factor=7`` and ``gain=1.2``.

    Batch norm is not offered: in training it couples the samples of a batch, so that no sample has a tangent
    kernel, and the correspondence of the scaled network with its linearisation breaks.

    Args:
        channels: of the input image.
        outputs: C, the number of classes.
        width_factor: what multiplies the channels of every convolution.
        norm: "none", or "group" for a group norm after every convolution, in groups of 16 channels (one group of
            all where 16 does not divide them); the convolutions then have no biases.
        gain: what multiplies the weights of the start.
        symmetric: start with f(w0, x) = 0 for every x, as in :func:`regimes.models.mlp`: channels come in pairs.
        seed: of the start. Networks of one seed and equal channels (in every stage) and outputs start from the same
            draws of N(0, 1), whatever gain, norm and ``symmetric``; those of other sizes from independent ones.
        dtype: of the parameters. At a large output scale alpha the centred network needs float64.

    Returns:
        A ``Sequential`` from (n, channels, height, width) to (n, C).

    Raises:
        UserError: if a size is no positive whole number, a factor not positive, the norm unknown, a number of
            channels or of groups is odd where pairs are asked for, or the seed is no whole number or the dtype no
            floating one.

    Source: Chizat, Oyallon, Bach 2019, section 3.2; He, Zhang, Ren, Sun 2016, with the strides of the version
    for CIFAR; Wu, He 2018 (group norm).
    """
    check_sizes({"channels": channels, "outputs": outputs})
    check_positive({"width_factor": width_factor, "gain": gain})
    if norm not in ("none", "group"):
        raise UserError(
            f"`norm`: got {norm!r}, expected 'none' or 'group'; batch norm would couple the samples of a batch"
        )
    check_start(seed, dtype)
    maps, *wider = (max(1, round(count * width_factor)) for count in _STAGES)
    start = Start(generator(seed, "resnet", channels, outputs, maps, *wider), gain, dtype)
    for channels_here in (maps, *wider):
        check_channels(symmetric, channels_here, _groups(channels_here) if norm == "group" else 1)
    stem = [start.conv(channels, maps, bias=norm == "none"), _normed(maps, norm, dtype), nn.ReLU()]
    blocks = [_Block(maps, maps, 1, norm, start), _Block(maps, maps, 1, norm, start)]
    for more in wider:
        blocks += [_Block(maps, more, 2, norm, start), _Block(more, more, 1, norm, start)]
        maps = more
    network = nn.Sequential(*stem, *blocks, SpatialMean(), start.linear(maps, outputs))
    if symmetric:
        symmetrize(network)
    return network


def _groups(channels: int) -> int:
    return 1 if channels % _GROUP else channels // _GROUP


def _normed(channels: int, norm: Norm, dtype: torch.dtype) -> nn.Module:
    if norm == "none":
        return nn.Identity()
    return nn.GroupNorm(_groups(channels), channels, dtype=dtype)


class _Block(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x))."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm, start: Start) -> None:
        super().__init__()
        bias, dtype = norm == "none", start.dtype
        self.branch = nn.Sequential(
            start.conv(inputs, outputs, stride=stride, bias=bias),
            _normed(outputs, norm, dtype),
            nn.ReLU(),
            start.conv(outputs, outputs, bias=bias),
            _normed(outputs, norm, dtype),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            narrow = start.conv(inputs, outputs, 1, stride=stride, bias=bias)
            self.shortcut = nn.Sequential(narrow, _normed(outputs, norm, dtype))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(n, in, h, w) -> (n, out, h / stride, w / stride)."""
        return self.relu(self.branch(x) + self.shortcut(x))
