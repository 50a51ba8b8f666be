"""Kernels of random features, and what the tests of training from a kernel share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regimes import train
from regimes.core.loss import Loss, Squared
from regimes.train import KernelState, Tolerance

F64 = torch.float64
TIMES = (0.0, 0.1, 3.0, 100.0, 1e4)
TIGHT = Tolerance(gradient=1e-6, output=1e-2)


@dataclass(frozen=True)
class Stepped(Loss):
    """The squared loss under another name, which no closed form knows; regression to any floats."""

    tolerance: float = 1e-30

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return Squared().per_sample(outputs, targets)

    def fits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.per_sample(outputs, targets) < self.tolerance


def gram(samples: int, outputs: int = 0, others: int = 0, seed: int = 0) -> Tensor:
    """A kernel of random features: (n + others, n, c, c), or (n + others, n) for ``outputs=0``."""
    generator = torch.Generator().manual_seed(seed)
    c = outputs or 1
    features = torch.randn(samples + others, c, 3 * samples * c, generator=generator, dtype=F64)
    full = torch.einsum("iap,jbp->ijab", features, features[:samples]) / features.shape[-1]
    return full if outputs else full[..., 0, 0]


def flat(k: Tensor) -> Tensor:
    """(n, m, c, c) as (n c, m c)."""
    return k.permute(0, 2, 1, 3).reshape(k.shape[0] * k.shape[2], -1)


def last(path: train.KernelPath) -> KernelState:
    *_, end = path
    return end
