"""What is looked at while the factors of a tile are formed: whether its samples keep to themselves, and whether
what torch derives for all of them at once is what it derives one by one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from regimes.core.batch import Inputs, count, take, transform
from regimes.core.derivative import balanced, bind, gradients
from regimes.core.jacobian import are_rows
from regimes.core.noise import alike
from regimes.kernel.network import Network, Pass
from regimes.kernel.rule import Rule, parameter_gradients
from regimes.kernel.site import IrregularError, Site

__all__ = ["Watch", "check_alone", "check_mapped"]


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
    one = take(x, slice(last, last + 1))
    # With gradients allowed: a network of forces takes its own.
    with torch.enable_grad(), bind(network.module, network.values):
        alone = network.outputs(transform(one, Tensor.clone)).detach()
    together = run.outputs[last]
    if not alike(alone[0], together, partial(network.noise, one)):
        raise IrregularError("a sample alone gives something else")


def check_mapped(
    network: Network, run: Pass, rules: Mapping[int, Rule], names: Collection[str], x: Inputs, keep: bool
) -> None:
    """Raise unless the rules give these parameters, in a random direction, what a plain backward pass gives.

    Some rules go by vmap, whose own rules are wrong in places, and for some sizes only: those of this pass.

    Args:
        network: f.
        run: a pass of these samples.
        rules: of all uses of the parameters, by place.
        names: the parameters.
        x: the samples.
        keep: whether the graph of the pass is needed again.
    """
    direction = balanced(torch.ones_like(run.outputs))
    backs = run.back(run.outputs, [run.uses[place].edge for place in rules], direction, keep)
    zeros = {name: network.values[name] for name in sorted(names)}
    rows = {name: value.new_zeros(count(x), 1, *value.shape) for name, value in zeros.items()}
    for rule, back in zip(rules.values(), backs, strict=True):
        if back is not None:
            for name, each in parameter_gradients(rule, back, names, run.leaves):
                rows[name] += each.reshape(rows[name].shape)

    def pull(weights: Tensor) -> dict[str, Tensor]:
        leaves = network.leaves()
        wanted = {name: leaves[name] for name in rows}
        with torch.enable_grad(), bind(network.module, leaves):
            outputs = network.outputs(transform(x, Tensor.clone))
            return dict(zip(wanted, gradients(outputs, wanted, weights * direction), strict=True))

    if not are_rows(rows, pull):
        raise IrregularError("derived for all samples at once, the rows are others")
