r"""The slope and the curvature of a loss by the outputs of its samples, and factors of the curvature.

For N samples with c outputs, :math:`g = \partial \ell / \partial F` and
:math:`H = \partial^2 \ell / \partial F^2`, block diagonal. A Gauss-Newton step is :math:`-J^\top u` with
:math:`(H K + N \lambda)\, u = g`, where :math:`K = J J^\top`. With any factor of full rank,
:math:`H = S S^\top`, and :math:`g = S h`,

.. math:: u = S\,(S^\top K S + N \lambda)^{-1} h .

That is symmetric, and nothing cancels in it. The form that Woodbury's identity gives,
:math:`(g - S (N \lambda + S^\top K S)^{-1} S^\top K g) / N \lambda`, loses digits in proportion to
:math:`\lVert K \rVert / N \lambda`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from regimes.core.loss import CrossEntropy, Squared

__all__ = ["Curvature", "curvature_of", "model_of"]

# Probabilities are no smaller than exp of this: their inverse roots stay finite.
_LEAST = -600.0


class Curvature(ABC):
    """g and H of a batch, in float64."""

    slope: Float[Tensor, "n c"]
    """g."""

    @abstractmethod
    def times(self, v: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """H v."""

    @abstractmethod
    def whitened(self, k: Float[Tensor, "k k"]) -> tuple[Float[Tensor, "m m"], Float[Tensor, " m"]]:
        """S^T K S, as precise as K, and h; K, (n c, n c), is overwritten."""

    @abstractmethod
    def coloured(self, w: Float[Tensor, " m"]) -> Float[Tensor, "n c"]:
        """u = S w."""


def curvature_of(loss: Squared | CrossEntropy, outputs: Float[Tensor, "n c"], targets: Tensor) -> Curvature:
    """The curvature of a loss.

    Args:
        loss: of each sample.
        outputs: F, float64.
        targets: as :func:`regimes.train.target.as_targets` makes them.
    """
    if isinstance(loss, Squared):
        return SquaredCurvature(outputs - targets)
    if outputs.shape[1] == 1:
        return LogisticCurvature.of(outputs, targets)
    return SoftmaxCurvature.of(outputs, targets)


def model_of(curvature: Curvature, pushed: Float[Tensor, "n c"]) -> tuple[float, float]:
    """g . K u and K u . H K u, from K u = ``pushed``."""
    return float((curvature.slope * pushed).sum()), float((pushed * curvature.times(pushed)).sum())


@final
@dataclass(frozen=True, eq=False)
class SquaredCurvature(Curvature):
    """g = F - y and H = S = 1."""

    slope: Tensor

    def times(self, v: Tensor) -> Tensor:
        """v."""
        return v

    def whitened(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """K and g."""
        return k, self.slope.flatten()

    def coloured(self, w: Tensor) -> Tensor:
        """w as (n, c)."""
        return w.view_as(self.slope)


@final
@dataclass(frozen=True, eq=False)
class LogisticCurvature(Curvature):
    r"""One output and y = +-1: with p = 1 / (1 + exp(-F y)), g = -y (1 - p), H = p (1 - p), and S its root.

    Attributes:
        slope: g, (n, 1).
        root: S, (n, 1).
        seed: h = g / S, (n, 1).
    """

    slope: Tensor
    root: Tensor
    seed: Tensor

    @classmethod
    def of(cls, outputs: Tensor, targets: Tensor) -> LogisticCurvature:
        """From F (n, 1) and y (n,)."""
        y = targets[:, None]
        margin = (outputs * y).clamp(_LEAST, -_LEAST)
        root = torch.exp(-margin.abs() / 2) / (1 + torch.exp(-margin.abs()))
        return cls(-y * torch.sigmoid(-margin), root, -y * torch.exp(-margin / 2))

    def times(self, v: Tensor) -> Tensor:
        """p (1 - p) v."""
        return self.root.square() * v

    def whitened(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """S K S and g / S."""
        root = self.root.to(k.dtype)
        return k.mul_(root).mul_(root.T), self.seed.flatten()

    def coloured(self, w: Tensor) -> Tensor:
        """S w."""
        return self.root * w[:, None]


@final
@dataclass(frozen=True, eq=False)
class SoftmaxCurvature(Curvature):
    r"""Classes: g = p - y, H = diag p - p p^T, which has the null vector 1 for each sample.

    With the likeliest class m last, o the others, and E = (1, -1)^T the matrix that makes columns sum to 0,

    .. math:: S = E\, D^{1/2} (1 - \kappa q q^\top), \quad D = \mathrm{diag}(p_o), \quad q = \sqrt{p_o},
              \quad \kappa = 1 / (1 + \sqrt{p_m})

    has c - 1 columns and full rank. p_m is at least 1 / c, so that no difference of close numbers is taken, however
    sure the network is. And :math:`h = (1 + \kappa q q^\top / \sqrt{p_m})\, D^{-1/2} g_o`.

    Attributes:
        slope: g, (n, c).
        p: probabilities, (n, c).
        largest: m, (n,).
    """

    slope: Tensor
    p: Tensor
    largest: Tensor

    @classmethod
    def of(cls, outputs: Tensor, targets: Tensor) -> SoftmaxCurvature:
        """From F (n, c) and class indices (n,)."""
        top, largest = outputs.max(1, keepdim=True)
        # Relative to the likeliest class, so that the sum of the others, 1 - p_m, has all its digits.
        logits = (outputs - top).clamp(min=_LEAST)
        others = logits.exp().scatter(1, largest, 0.0).sum(1, keepdim=True)
        p = logits.exp() / (1 + others)
        missing = (1 - p).scatter(1, largest, others / (1 + others))
        index = targets[:, None]
        return cls(p.scatter(1, index, -missing.gather(1, index)), p, largest[:, 0])

    def times(self, v: Tensor) -> Tensor:
        """p (v - p . v), with v counted from the likeliest class: H 1 = 0."""
        v = v - v.gather(1, self.largest[:, None])
        return self.p * (v - (self.p * v).sum(1, keepdim=True))

    def whitened(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """S^T K S and h, (n (c - 1)) of them."""
        n, c = self.p.shape
        k = k.view(n, c, n, c)
        every = torch.arange(n, device=k.device)
        top = k[every, self.largest].clone()
        k[every, self.largest] = k[:, -1]
        k[:, -1] = top
        top = k[:, :, every, self.largest].clone()
        k[:, :, every, self.largest] = k[..., -1]
        k[..., -1] = top
        k = k[:, :-1] - k[:, -1:]
        k = k[..., :-1] - k[..., -1:]
        q, kappa, _ = (part.to(k.dtype) for part in self._parts())
        k.mul_(q[:, :, None, None]).mul_(q)
        k -= (kappa * q)[:, :, None, None] * torch.einsum("ia,iajb->ijb", q, k)[:, None]
        k -= torch.einsum("iajb,jb->iaj", k, q)[..., None] * (kappa * q)
        m = n * (c - 1)
        return k.reshape(m, m), self._seed().flatten()

    def coloured(self, w: Tensor) -> Tensor:
        """S w."""
        n, c = self.p.shape
        q, kappa, _ = self._parts()
        w = w.view(n, c - 1)
        others = q * (w - kappa * q * (q * w).sum(1, keepdim=True))
        return self._swapped(torch.cat([others, -others.sum(1, keepdim=True)], 1))

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """q (n, c - 1), kappa (n, 1) and the root of p_m (n, 1)."""
        p = self._swapped(self.p).sqrt()
        return p[:, :-1], 1 / (1 + p[:, -1:]), p[:, -1:]

    def _seed(self) -> Tensor:
        """h."""
        q, kappa, root = self._parts()
        h = self._swapped(self.slope)[:, :-1] / q
        return h + kappa / root * q * (q * h).sum(1, keepdim=True)

    def _swapped(self, v: Tensor) -> Tensor:
        """The likeliest class in the place of the last one, and that in its place."""
        index = self.largest[:, None]
        return torch.cat([v.scatter(1, index, v[:, -1:])[:, :-1], v.gather(1, index)], 1)
