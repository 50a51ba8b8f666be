"""Arithmetic on named parameters, and one flat vector seen as named parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regimes.core.error import UserError, nearest

__all__ = [
    "Flat",
    "Layout",
    "Tree",
    "add",
    "by_layer",
    "dot",
    "is_finite",
    "named",
    "named_pair",
    "norm",
    "owners",
    "scale",
    "size",
    "stray",
    "sub",
    "trainable",
]

Tree = Mapping[str, Tensor]
"""Tensors by name: parameters, or a direction in their space."""


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


def is_finite(a: Tree) -> bool:
    """Whether all entries of all tensors are finite."""
    return all(bool(value.isfinite().all()) for value in a.values())


# What DistributedDataParallel, torch.compile, FSDP and activation checkpointing put into the names.
_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def _bare(name: str) -> str:
    """The name without what wrappers put into it."""
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper).replace(f".{wrapper}", ".")
    return name


def stray(name: str, known: Iterable[str]) -> str:
    """The end of an error about a name that is none of those known: what it may be.

    >>> stray("module.0.weight", ["0.weight"])
    "; that is '0.weight' under a wrapper (DistributedDataParallel, torch.compile, FSDP): take what it wraps"
    """
    inside = {_bare(each): each for each in known}
    if _bare(name) in inside and (_bare(name) != name or inside[_bare(name)] != name):
        return (
            f"; that is '{inside[_bare(name)]}' under a wrapper (DistributedDataParallel, torch.compile, FSDP): take "
            "what it wraps"
        )
    return nearest(name, inside.values())


def named(module: nn.Module, a: Tree, argument: str, *, evaluated: bool = False) -> Tree:
    """The entries that are parameters of the module, under the names of ``module.named_parameters()``.

    A state dict holds more: buffers, and tied parameters under each of their names. Buffers are those of the module,
    whatever the entries say; frozen parameters may be there or not.

    Args:
        module: whose parameters these are.
        a: parameters by name, or a state dict.
        argument: its name in an error.
        evaluated: the module is going to be called with them, so that buffers have to be those of the module.

    Raises:
        UserError: if a name is none of the module's, a parameter that requires grad is missing, a shape differs, or
            with ``evaluated`` a buffer.
    """
    own = dict(module.named_parameters())
    if a.keys() <= own.keys() and all(name in a for name in trainable(module)):
        found = a
    else:
        found = _sorted_out(module, a, argument, evaluated)
    for name, value in found.items():
        if value.shape != own[name].shape:
            raise UserError(
                f"`{argument}`: '{name}' has shape {tuple(value.shape)}, expected {tuple(own[name].shape)}, as in the "
                "module"
            )
    return found


def named_pair(module: nn.Module, parameters: Tree | None, origin: Tree) -> tuple[Tree, Tree]:
    """w and w0 by the same names, those of the module: see :func:`named`.

    Args:
        module: F.
        parameters: w (default: the parameters that require grad).
        origin: w0; what is frozen and missing in it is as in ``parameters``, for it has not moved.

    Raises:
        UserError: as :func:`named`, or if a parameter is of another dtype in one than in the other.
    """
    given = trainable(module) if parameters is None else parameters
    now = named(module, given, "parameters", evaluated=parameters is not None)
    found = named(module, origin, "origin")
    start = {name: found.get(name, value) for name, value in now.items()}
    for name, value in now.items():
        if value.dtype != start[name].dtype:
            raise UserError(
                f"`origin`: '{name}' is of {start[name].dtype}, expected {value.dtype}, as in `parameters`"
            )
    return now, start


def _sorted_out(module: nn.Module, a: Tree, argument: str, evaluated: bool) -> dict[str, Tensor]:
    """The parameters among the entries of a state dict."""
    own = {id(p): name for name, p in module.named_parameters()}
    names = {name: own[id(p)] for name, p in module.named_parameters(remove_duplicate=False)}
    buffers = dict(module.named_buffers(remove_duplicate=False))
    found: dict[str, Tensor] = {}
    for name, value in a.items():
        if name in names:
            found.setdefault(names[name], value)
        elif name in buffers:
            if evaluated and not torch.equal(buffers[name].cpu(), value.cpu()):
                raise UserError(
                    f"`{argument}`: the buffer '{name}' differs from that of the module, which is called with its own; "
                    f"module.load_state_dict({argument}) first"
                )
        elif not name.endswith("_extra_state"):
            raise UserError(
                f"`{argument}`: got '{name}', expected names of module.named_parameters(){stray(name, names)}"
            )
    if missing := [name for name in trainable(module) if name not in found]:
        raise UserError(
            f"`{argument}`: '{missing[0]}' is missing, expected a value for each parameter that requires grad"
        )
    return found


def size(value: Tensor) -> float:
    """||a|| of one tensor, in double precision and without overflow, whatever the size of its entries.

    >>> size(torch.tensor([0.0, 4e200], dtype=torch.float64))
    4e+200
    """
    value = torch.view_as_real(value) if value.is_complex() else value
    plain = float(torch.linalg.vector_norm(value, dtype=torch.float64))
    if 1e-150 < plain < math.inf or not value.numel():
        return plain
    top = value.abs().max().double()
    return float(top * torch.linalg.vector_norm(value.double() / top)) if 0 < top < math.inf else float(top)


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
