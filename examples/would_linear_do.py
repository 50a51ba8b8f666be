"""Would a linear model do? On digits a wide network is matched by its kernel; on the product of signs it is not.

One seed each, to be quick.

python examples/would_linear_do.py
"""

from __future__ import annotations

import torch
from torch import Tensor

from regimes import compare, data, models
from regimes.core.loss import squared

torch.set_num_threads(1)


def signs(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points of the cube in 32 dimensions, and the product of their first two entries."""
    x = torch.randn(samples, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).sign()
    return x, x[:, :2].prod(1)


def digits() -> compare.Comparison:
    """Ten classes, a network of one hidden layer that is 0 at the start."""
    found = data.load("digits", train=400, flat=True)
    network = models.mlp(64, width=128, depth=1, outputs=10, symmetric=True)
    part = (found.train.x, found.train.y, found.test.x, found.test.y)
    return compare.would_linear_do(network, *part, epochs=20, batch_size=25, seeds=1, reduce="trace")


def product() -> compare.Comparison:
    """Two classes that no input tells alone, a narrow network with small weights."""
    network = models.two_layer(32, 32, scaling="1", tau=0.1, symmetric=True)
    settings = {"epochs": 50, "batch_size": 20, "seeds": 1, "loss": squared}
    return compare.would_linear_do(network, *signs(300, 0), *signs(1000, 1), **settings)


def main() -> None:
    """Both, and what they must show."""
    easy, hard = digits(), product()
    print(f"digits\n{easy}\n\nproduct of two signs\n{hard}")
    assert easy.answer == "yes" and hard.answer == "no"


if __name__ == "__main__":
    main()
