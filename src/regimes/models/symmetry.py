"""Starts whose units come in mirrored pairs, so that f(w0, x) = 0 for every x."""

from __future__ import annotations

import torch
from torch import nn

from regimes.core.error import UserError
from regimes.core.layer import Conv2d, Linear

__all__ = ["check_channels", "check_symmetric", "symmetrize"]

_LAYERS = (Linear, Conv2d, nn.Linear, nn.Conv2d)


def check_symmetric(symmetric: bool, width: int) -> None:
    """Raise if the units of a symmetric network cannot be paired."""
    if symmetric and width % 2:
        raise UserError(
            f"`width`: got {width} with symmetric=True, expected an even number, units in pairs; "
            f"take {width + 1}"
        )


def check_channels(symmetric: bool, channels: int, groups: int = 1) -> None:
    """Raise if the channels of a symmetric network cannot be paired, or a norm would see the halves differently."""
    if symmetric and (channels % 2 or (groups > 1 and groups % 2)):
        raise UserError(
            f"`width_factor`: gives {channels} channels in {groups} groups with symmetric=True, expected even numbers, "
            "or one group: channels in pairs; change it"
        )


def symmetrize(network: nn.Module) -> None:
    r"""Overwrite half of the weights of a start with copies of the other half, so that f(w0, x) = 0.

    In blocks by the two halves of the hidden units (or channels), with every block as it was drawn:

    .. math:: W_0 = \begin{pmatrix} A \\ A \end{pmatrix}, \qquad
        W_l = \begin{pmatrix} A & B \\ B & A \end{pmatrix}, \qquad
        W_L = \begin{pmatrix} A & -A \end{pmatrix}

    Unit by unit both halves of a hidden layer say the same, and the last layer takes their difference. Each entry
    keeps its law. Forward passes see A + B and backward passes A - B, which for Gaussian entries are independent:
    the tangent kernel at the start has the wide limit of the unsymmetric network. To copy the units of the last
    hidden layer alone would give f = 0 too, but no slope below that layer.

    Args:
        network: ``Linear`` and ``Conv2d`` layers, of torch or of ``core``, of even width and with equal biases; what
            lies between them treats both halves alike. The first reads the input, the last gives the outputs.

    Skip connections carry both halves from layer to layer, as they are.

    Source: Chizat, Oyallon, Bach 2019, section 3.1, for one hidden layer; derived here for several.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, _LAYERS)]
    with torch.no_grad():
        for level, layer in enumerate(layers):
            weight = layer.weight
            rows, half = weight.shape[0] // 2, weight.shape[1] // 2
            if level == len(layers) - 1:
                weight[:, half:] = -weight[:, :half]
            elif level == 0:
                weight[rows:] = weight[:rows]
            else:
                weight[rows:, :half] = weight[:rows, half:]
                weight[rows:, half:] = weight[:rows, :half]
