"""Arithmetic on named parameters, and one flat vector seen as named parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Flat", "Layout", "add", "by_layer", "dot", "norm", "owners", "scale", "sub", "trainable"]

Tree = Mapping[str, Tensor]


def trainable(module: nn.Module) -> dict[str, Tensor]:
    """The parameters of ``module`` that require grad, by name; a tied parameter appears once."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def add(a: Tree, b: Tree) -> dict[str, Tensor]:
    """a + b, name by name."""
    return {name: a[name] + b[name] for name in a}


def sub(a: Tree, b: Tree) -> dict[str, Tensor]:
    """a - b, name by name."""
    return {name: a[name] - b[name] for name in a}


def scale(a: Tree, factor: float | Tensor) -> dict[str, Tensor]:
    """factor * a, name by name."""
    return {name: value * factor for name, value in a.items()}


def dot(a: Tree, b: Tree) -> Tensor:
    """<a, b>, summed over all names: a scalar tensor."""
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def norm(a: Tree) -> Tensor:
    """||a||, over all names: a scalar tensor."""
    return torch.stack([torch.linalg.vector_norm(value) for value in a.values()]).norm()


def owners(module: nn.Module) -> dict[str, str]:
    """For each parameter that requires grad, the name of the submodule that owns it ("" is the root).

    >>> owners(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    {'0.weight': '0', '0.bias': '0'}
    """
    return {name: name.rpartition(".")[0] for name in trainable(module)}


def by_layer(a: Tree) -> dict[str, dict[str, Tensor]]:
    """The same entries, grouped by the submodule that owns them."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, value in a.items():
        layers.setdefault(name.rpartition(".")[0], {})[name] = value
    return layers


@dataclass(frozen=True)
class Layout:
    """Where each named parameter lies in a flat vector of length ``total``."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, module: nn.Module) -> Layout:
        """The layout of the parameters of ``module`` that require grad."""
        named = trainable(module)
        return cls(tuple(named), tuple(tuple(p.shape) for p in named.values()))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of entries of each parameter."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def total(self) -> int:
        """The number of entries of all parameters."""
        return sum(self.sizes)

    def join(self, tree: Tree) -> Tensor:
        """The parameters of ``tree`` as one new vector (total,)."""
        return torch.cat([tree[name].detach().reshape(-1) for name in self.names])

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of ``flat`` (..., total) by name, each of shape ``(..., *shape)``."""
        parts = flat.split(self.sizes, dim=-1)
        lead = flat.shape[:-1]
        return {n: p.view(*lead, *s) for n, s, p in zip(self.names, self.shapes, parts, strict=True)}


class Flat(Mapping[str, Tensor]):
    """A flat vector, (total,) or longer, seen as named parameters; a view is made when it is asked for."""

    def __init__(self, layout: Layout, vector: Tensor) -> None:
        self.layout = layout
        self.vector = vector

    def __getitem__(self, name: str) -> Tensor:
        start = 0
        for other, shape, size in zip(self.layout.names, self.layout.shapes, self.layout.sizes, strict=True):
            if other == name:
                return self.vector[start : start + size].view(shape)
            start += size
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.names)

    def __len__(self) -> int:
        return len(self.layout.names)
