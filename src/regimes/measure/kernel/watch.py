"""Whether the samples of a batch keep to themselves, looked at once for each tile while its factors are formed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from regimes.core.batch import Inputs, count, take, transform
from regimes.core.derivative import bind
from regimes.measure.kernel.network import Network, Pass
from regimes.measure.kernel.site import IrregularError, Site

__all__ = ["Watch", "check_alone"]


class Watch:
    """One more backward pass, in which each sample counts with a weight of its own.

    Where the samples keep to themselves, and lie where the plan says, what comes back to a sample is its weight
    times what came back without weights.

    Args:
        root: where the passes begin.
        samples: n.
    """

    def __init__(self, root: Tensor, samples: int) -> None:
        self._root = root
        # Different for all, in no order that a module could have, and the same at every call.
        order = torch.randperm(samples, generator=torch.Generator().manual_seed(samples)).to(root.device)
        self._weights = 1 + order.to(root.dtype) / samples
        self._sum = torch.zeros_like(root)
        self._sums: list[Tensor | None] = []
        self._seen = 0

    def note(self, ray: Tensor, grads: Sequence[Tensor | None]) -> None:
        """Take down what came back in one direction."""
        self._seen += 1
        weight = 1 / self._seen
        self._sum += weight * ray.expand(len(self._weights), -1).reshape(self._sum.shape)
        if not self._sums:
            self._sums = [None if grad is None else grad.clone() for grad in grads]
            return
        for k, grad in enumerate(grads):
            held = self._sums[k]
            if grad is not None:
                self._sums[k] = grad * weight if held is None else held.add_(grad, alpha=weight)

    def check(self, run: Pass, edges: Sequence[GradientEdge], sites: Sequence[Site]) -> None:
        """Raise unless every sample kept to itself."""
        n = len(self._weights)
        cotangent = self._weights.view(-1, *[1] * (self._root.dim() - 1)) * self._sum
        weighted = run.back(self._root, edges, cotangent, False)
        eps = torch.finfo(self._root.dtype).eps
        for site, plain, other in zip(sites, self._sums, weighted, strict=True):
            if plain is None or other is None:
                continue
            expected = site.out.first(plain, n).reshape(n, -1) * self._weights[:, None]
            found = site.out.first(other, n).reshape(n, -1)
            size = torch.linalg.vector_norm(expected, dim=1)
            # Not in place: an addition hands the same gradient to both its sides.
            away = torch.linalg.vector_norm(found - expected, dim=1)
            if (away > eps**0.5 * size + 1e3 * eps * size.max()).any():
                raise IrregularError("samples meet")


def check_alone(network: Network, run: Pass, x: Inputs) -> None:
    """Raise unless the last sample has the same outputs by itself."""
    last = count(x) - 1
    with torch.no_grad(), bind(network.module, run.leaves):
        alone = network.outputs(transform(take(x, slice(last, last + 1)), Tensor.clone))
    together = run.outputs[last]
    size = torch.linalg.vector_norm(together)
    if torch.linalg.vector_norm(alone[0] - together) > torch.finfo(alone.dtype).eps ** 0.5 * size:
        raise IrregularError("a sample alone gives something else")
