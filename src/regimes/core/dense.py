r"""Fully connected softplus networks of many members: outputs and gradients, written out and kept in the cache.

With the units of :class:`~regimes.core.activation.Softplus` taken into the products, layer l of a member is

.. math::
    u_l = c_l W_l v_{l-1} + \beta_l b_l, \quad v_l = \ln(1 + e^{u_l}), \quad s_l = e^{u_l} / (1 + e^{u_l})

with v_0 = x, and its gradient, for the derivative g of a loss by the outputs and :math:`d_l = \partial / \partial u_l`,

.. math::
    \partial W_l = c_l\, d_l^\top v_{l-1}, \quad \partial b_l = \beta_l \sum d_l, \quad
    d_{l-1} = c_l\, (d_l W_l) \odot s_{l-1}, \quad d_L = g.

One exponential, one logarithm and one division an entry; nothing is allocated from step to step. What autograd does in
the general case (:mod:`regimes.core.layer`) is the reference in the tests.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from regimes.core.activation import Softplus
from regimes.core.layer import SMALL, Linear, products

__all__ = ["Dense", "dense_of"]

# Bytes of a block of members, for each thread, that stay in the second-level cache of a core or close to it.
_CACHE = 1 << 21
# Above this the exponential overflows in float64, or in float32; ln(1 + exp(u)) is u to the last digit long before.
_LIMIT = {torch.float64: 700.0, torch.float32: 80.0}


@dataclass(frozen=True)
class _Layer:
    """One layer: the names of its parameters, its fans, c, and beta of the softplus that follows (1 at the end)."""

    weight: str
    bias: str | None
    inputs: int
    outputs: int
    factor: float
    beta: float


def dense_of(network: nn.Module) -> Dense | None:
    """The network as products and softpluses, or None if it is something else."""
    parts = list(network.named_children()) if type(network) is nn.Sequential else []
    linear = [(name, part) for name, part in parts[::2] if type(part) is Linear]
    sigma = [part for _, part in parts[1::2] if type(part) is Softplus]
    if not sigma or len(linear) != len(sigma) + 1 or len(linear) + len(sigma) != len(parts):
        return None
    layers, unit = [], 1.0
    for (name, part), after in itertools.zip_longest(linear, sigma):
        beta = 1.0 if after is None else after.beta
        bias = None if part.bias is None else f"{name}.bias"
        factor = part.scaling.multiplier * unit * beta
        fan_out, fan_in = part.weight.shape
        layers.append(_Layer(f"{name}.weight", bias, fan_in, fan_out, factor, beta))
        unit = 1.0 if after is None else after.a / beta
    return Dense(tuple(layers))


@final
class Dense:
    """f(w, x) of a block of members, then the gradient of a function of f; in memory of its own.

    Samples come in a number that :func:`~regimes.core.layer.aligned` makes, so that every member's numbers begin at
    the same place of a cache line.
    """

    def __init__(self, layers: tuple[_Layer, ...]) -> None:
        self._layers = layers
        self._pools: dict[str, Tensor] = {}
        self._values: list[Tensor] = []
        self._slopes: list[Tensor] = []

    def block(self, samples: int, dtype: torch.dtype) -> int:
        """How many members at a time: their values and slopes fit the cache; two where a lone product costs double."""
        entries = 2 * samples * sum(layer.outputs for layer in self._layers[:-1])
        largest = max(samples * layer.inputs * layer.outputs for layer in self._layers)
        least = 2 if largest <= SMALL else 1
        return max(least, _CACHE * torch.get_num_threads() // (entries * dtype.itemsize))

    def forward(self, tree: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """f(w, x), (m, n, c), for parameters (m, ...) by name; overwritten by the next call.

        Inputs are (n, d), shared by the members, or (m, n, d), those of each.
        """
        members, samples = len(tree[self._layers[0].weight]), x.shape[-2]
        values, slopes = [x.expand(members, *x.shape[-2:])], []
        for index, layer in enumerate(self._layers):
            shape = (members, samples, layer.outputs)
            u = self._products(values[-1], tree, layer, self._room(f"u{index}", shape, x))
            if index < len(self._layers) - 1:
                value = self._room(f"v{index}", shape, x)
                self._softplus(values[-1], tree, layer, u, value)
                slopes.append(u)
                values.append(value)
            else:
                self._values, self._slopes = values, slopes
                return u
        raise AssertionError("a network has a last layer")

    def backward(self, tree: Mapping[str, Tensor], g: Tensor, into: Mapping[str, Tensor]) -> None:
        """The gradient by name, from g = d/df (m, n, c) at the parameters and inputs of the last :meth:`forward`.

        By the parameters that ``into`` names alone: no layer below the lowest of them is entered. The values of that
        call are overwritten on the way.
        """
        wanted = [layer.weight in into or layer.bias in into for layer in self._layers]
        for index in range(len(self._layers) - 1, wanted.index(True) - 1, -1):
            layer, before = self._layers[index], self._values[index]
            if layer.weight in into:
                products(g.mT, before, layer.factor, into[layer.weight])
            if layer.bias is not None and layer.bias in into:
                ones = g.new_ones(1, 1, g.shape[1]).expand(len(g), 1, g.shape[1])
                products(ones, g, layer.beta, into[layer.bias][:, None, :])
            if any(wanted[:index]):
                g = products(g, tree[layer.weight], layer.factor, before).mul_(self._slopes[index - 1])

    def _room(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Memory of that shape, the same at each step."""
        count = math.prod(shape)
        pool = self._pools.get(name)
        if pool is None or len(pool) < count:
            pool = self._pools[name] = like.new_empty(count)
        return pool[:count].view(shape)

    def _products(self, x: Tensor, tree: Mapping[str, Tensor], layer: _Layer, out: Tensor) -> Tensor:
        """u = c W x + beta b."""
        u = products(x, tree[layer.weight].mT, layer.factor, out)
        return u if layer.bias is None else u.add_(tree[layer.bias][:, None, :], alpha=layer.beta)

    def _softplus(self, x: Tensor, tree: Mapping[str, Tensor], layer: _Layer, u: Tensor, v: Tensor) -> None:
        """v = ln(1 + exp(u)), and its slope in place of u; once more where the exponential of a member overflows."""
        limit = _LIMIT.get(u.dtype, 80.0)
        if u.device.type != "cpu":  # a GPU would have to wait for the answer
            return _careful(u, v, limit)
        torch.add(u.exp_(), 1, out=v)
        u.div_(v)
        v.log_()
        if math.isfinite(float(v.sum())):
            return None
        for k in (~torch.isfinite(v.sum((1, 2)))).nonzero()[:, 0].tolist():
            one = slice(k, k + 1)
            self._products(x[one], {name: w[one] for name, w in tree.items()}, layer, u[one])
            _careful(u[one], v[one], limit)
        return None


def _careful(u: Tensor, v: Tensor, limit: float) -> None:
    """v = ln(1 + exp(u)) and its slope in place of u, without overflow."""
    e = u.clamp(max=limit).exp_()
    torch.add(e, 1, out=v)
    e.div_(v)
    torch.maximum(v.log_(), u, out=v)
    u.copy_(e)
