"""How many feature updates? A lazy network needs its first features alone; the product of two signs needs new ones.

One seed each, to be quick.

python examples/how_many_feature_updates.py
"""

from __future__ import annotations

import torch
from torch import Tensor

from regimes import compare, control, models
from regimes.core.loss import squared

torch.set_num_threads(1)


def points(samples: int, inputs: int) -> Tensor:
    """Corners of a cube."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(samples, inputs, generator=generator, dtype=torch.float64).sign()


def lazy() -> compare.FeatureUpdates:
    """Two classes told apart by a linear function; the output scale keeps the network at its start."""
    x = points(700, 8)
    y = x[:, :3].sum(1).sign()
    network = control.scale(models.mlp(8, 32, 1), 1e3)
    settings = {"loss": squared, "epochs": 10, "batch_size": 25, "seeds": 1, "rates": [1.0]}
    return compare.how_many_feature_updates(
        network, x[:200], y[:200], x[200:], y[200:], ladder=[1, 10], **settings
    )


def product() -> compare.FeatureUpdates:
    """Two classes that no input tells alone, a narrow network with small weights."""
    x = points(1000, 16)
    y = x[:, :2].prod(1)
    network = models.two_layer(16, 32, scaling="1", tau=0.1, symmetric=True)
    settings = {"loss": squared, "epochs": 40, "batch_size": 20, "seeds": 1, "rates": [1.0]}
    return compare.how_many_feature_updates(
        network, x[:200], y[:200], x[200:], y[200:], ladder=[1, 100], **settings
    )


def main() -> None:
    """Both, and what they must show."""
    few, many = lazy(), product()
    print(f"a lazy network\n{few}\n\nproduct of two signs\n{many}")
    assert few.answer == 1 and many.answer == 100


if __name__ == "__main__":
    main()
