r"""f(a, x), J v, J J^T v and J^T H J v of one network at one anchor, for fixed inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from regimes.control.tangent import Route, settle
from regimes.core.batch import Inputs, device_of, transform
from regimes.core.derivative import Output, call, exact, gradients, plain
from regimes.core.tree import Tree

__all__ = ["Tangents", "curvature"]

Curved = Callable[[Tensor, Tensor], Tensor]
"""From outputs and a direction s among them to H s, H the second derivative of the loss by the outputs."""


@final
class Tangents:
    """Products with the Jacobian of a network at one point, for fixed inputs.

    Args:
        network: f; what is not in ``at`` keeps its value.
        at: a, by name.
        x: inputs.
        output: what picks the outputs from what the network returns.
        route: the way to J v, where it is known already.

    Raises:
        UserError: if the network cannot be linearised.
    """

    def __init__(
        self,
        network: nn.Module,
        at: Tree,
        x: Inputs,
        output: Output | None = None,
        route: Route | None = None,
    ) -> None:
        self._network, self._x, self._output = network, transform(x, plain), output
        self.at: Tree = {name: plain(value) for name, value in at.items()}
        with self._exact():
            self.route: Route = route or settle(self._outputs, self.at)

    def value(self) -> Tensor:
        """f(a, x)."""
        with self._exact(), torch.no_grad():
            return self._outputs(self.at)

    def push(self, v: Tree) -> tuple[Tensor, Tensor]:
        """f(a, x) and J v."""
        with self._exact(), torch.no_grad():
            value, along = self.route(self._outputs, self.at, {name: plain(each) for name, each in v.items()})
        return value.detach(), along.detach()

    def kernel(self, u: Tensor) -> Tensor:
        """J J^T u, of the shape of the outputs."""
        with self._exact(), torch.enable_grad():
            leaves = {name: value.clone().requires_grad_() for name, value in self.at.items()}
            pulled = gradients(self._outputs(leaves), leaves, u)
        return self.push(dict(zip(leaves, pulled, strict=True)))[1]

    def curved(self, v: Tree, by: Curved) -> dict[str, Tensor]:
        """J^T H J v: one pass in forward mode and one backward."""
        with self._exact(), torch.enable_grad():
            leaves = {name: plain(each).requires_grad_() for name, each in v.items()}
            value, along = self.route(self._outputs, self.at, leaves)
            u = by(value.detach(), along.detach())
            return dict(zip(leaves, gradients(along, leaves, u), strict=True))

    def _outputs(self, parameters: Tree) -> Tensor:
        # Of copies, for a network that overwrites its inputs.
        return call(self._network, parameters, transform(self._x, Tensor.clone), self._output)

    @contextmanager
    def _exact(self) -> Iterator[None]:
        # Fused attention has no forward mode (pytorch issue 117629); attention written out has.
        with exact(device_of(self._x)), sdpa_kernel(SDPBackend.MATH):
            yield


def curvature(loss: Callable[[Tensor], Tensor], outputs: Tensor, along: Tensor) -> Tensor:
    """H s, H the second derivative of the loss by the outputs."""
    with torch.enable_grad():
        leaf = outputs.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True, materialize_grads=True)
        if not slope.requires_grad:
            return torch.zeros_like(outputs)
        return torch.autograd.grad((slope * along).sum(), leaf, materialize_grads=True)[0]
