r"""A score of answers on few samples that scatters less than right or wrong: the Brier score after calibration.

Networks that are trained on few samples are too sure of themselves, and to a different degree with each set of layers
and each rate. So the outputs of a classification are divided by the temperature T that makes held-out answers
likeliest, one number for all of them, and the score is

.. math:: \sum_k \left(\mathrm{softmax}(F / T)_k - [y = k]\right)^2

from 0 to 2: half of it is the error where the answers are sure. For numbers it is the squared error.

Source: Guo, Pleiss, Sun, Weinberger, On calibration of modern neural networks, 2017, section 4; Brier 1950.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["TEMPERATURES", "brier"]

TEMPERATURES = tuple(2.0 ** (step / 4) for step in range(-16, 25))


def brier(outputs: Tensor, y: Tensor) -> Tensor:
    """The calibrated Brier score of each sample, (n,), in float64.

    Args:
        outputs: F, (n, c): one for each class, or one whose sign is the answer.
        y: (n,) class indices, or -1 and +1.

    >>> sure, y = torch.tensor([[9.0, 0.0], [9.0, 0.0]]), torch.tensor([0, 1])  # half of it right
    >>> round(float(brier(sure, y).mean()), 2), round(float(brier(0 * sure, y).mean()), 2)
    (0.5, 0.5)
    """
    outputs = outputs.double()
    if outputs.shape[1] == 1:
        outputs = torch.cat([torch.zeros_like(outputs), outputs], dim=1)
        y = (y > 0).long()
    every = torch.stack([(outputs / each).log_softmax(1) for each in TEMPERATURES])
    likely = every.gather(2, y.expand(len(every), -1)[..., None]).mean((1, 2))
    chances = every[int(likely.argmax())].exp()
    return (chances - functional.one_hot(y, chances.shape[1])).square().sum(1)
