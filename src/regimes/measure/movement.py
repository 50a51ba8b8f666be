"""How far the parameters have moved from where they started."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, overload

import torch
from torch import Tensor, nn

from regimes.core.batch import check_finite
from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.state import State
from regimes.core.tree import Tree, is_finite, named, size, stray, trainable
from regimes.core.tree import by_layer as group
from regimes.measure.probe import Columns, Snapshot, numbers

__all__ = ["Movement", "compared", "double", "movement"]


# What the norms of torch keep beside their parameters, in every state dict.
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@overload
def movement(
    parameters: Tree, origin: Tree, *, module: nn.Module | None = None, by_layer: Literal[False] = False
) -> float: ...
@overload
def movement(
    parameters: Tree, origin: Tree, *, module: nn.Module | None = None, by_layer: Literal[True]
) -> dict[str, float]: ...
@checked
def movement(
    parameters: Tree, origin: Tree, *, module: nn.Module | None = None, by_layer: bool = False
) -> float | dict[str, float]:
    """The weight change dW = ||w - w0|| / ||w0||, in double precision.

    Both may be state dicts, of two checkpoints for instance: buffers are no parameters and do not count. With
    ``module`` they are told by the module, tied parameters count once, and only those that require grad count. Without
    it, tensors of whole numbers and the running statistics of torch's norms are left out; other buffers, and frozen
    parameters, cannot be told from the rest and count as what has not moved.

    There is no interval: a probe is a sample of inputs, but dW is a number of one run, without inputs. Its scatter is
    that over seeds (:func:`regimes.core.estimate.mean`).

    Args:
        parameters: w by name, as ``State.parameters``, or a state dict.
        origin: w0, by the same names.
        module: whose parameters these are; then one of the two may lack what is frozen.
        by_layer: the same ratio for the parameters of each submodule, by its name.

    Returns:
        dW, or one number per layer; inf where w0 is 0 and w is not, 0 where both are.

    Raises:
        UserError: if the names or shapes differ, or a value is no tensor or not finite.

    Source: Geiger et al. 2020.

    >>> movement({"w": torch.tensor([3.0, 5.0])}, {"w": torch.tensor([3.0, 4.0])})
    0.2
    """
    now, start = compared(parameters, origin, module)
    if not by_layer:
        return _moved(now, start)
    return {layer: _moved(part, {name: start[name] for name in part}) for layer, part in group(now).items()}


def compared(parameters: Tree, origin: Tree, module: nn.Module | None = None) -> tuple[Tree, Tree]:
    """What both hold of parameters that count, by the same names: the arguments of :func:`movement`.

    Raises:
        UserError: if the names or shapes differ, or a value is no tensor or not finite.
    """
    now, start = _counted(parameters, "parameters", module), _counted(origin, "origin", module)
    _check_alike(now, start)
    for argument, tree in (("parameters", now), ("origin", start)):
        for name, value in tree.items():
            check_finite(value, f"`{argument}`: '{name}'", "a run that diverged has no weight change")
    return now, start


def _counted(tree: Tree, argument: str, module: nn.Module | None) -> Tree:
    """The entries that are parameters: of the module those that require grad."""
    if not isinstance(tree, Mapping):
        raise UserError(
            f"`{argument}`: got {type(tree).__name__}, expected tensors by name, such as a state dict"
        )
    if odd := [name for name, value in tree.items() if not isinstance(value, Tensor)]:
        raise UserError(
            f"`{argument}`: '{odd[0]}' is of type {type(tree[odd[0]]).__name__}, expected a tensor; give the state "
            "dict inside the checkpoint"
        )
    if module is not None:
        found = named(module, tree, argument)
        return {name: found[name].detach() for name in trainable(module)}
    return {
        name: value.detach()
        for name, value in tree.items()
        if (value.is_floating_point() or value.is_complex()) and name.rpartition(".")[2] not in _STATISTICS
    }


def _check_alike(now: Tree, start: Tree) -> None:
    """Raise unless both hold the same parameters, at least one."""
    if not now and not start:
        raise UserError(
            "`parameters`, `origin`: hold no parameters, expected tensors of real numbers by name"
        )
    if odd := sorted(set(now) ^ set(start)):
        inside, other = ("parameters", start) if odd[0] in now else ("origin", now)
        end = stray(odd[0], other)
        raise UserError(
            f"`origin`: '{odd[0]}' is in `{inside}` alone, expected the same names in both"
            f"{end or '; if it is frozen or a buffer, give module='}"
        )
    for name, value in now.items():
        if value.shape != start[name].shape:
            raise UserError(
                f"`origin`: '{name}' has shape {tuple(start[name].shape)}, expected {tuple(value.shape)}, as in "
                "`parameters`"
            )


def _moved(now: Tree, start: Tree) -> float:
    """||now - start|| / ||start||, from the norms of the parts."""
    far = math.hypot(
        *(size(double(value) - double(start[name]).to(value.device)) for name, value in now.items())
    )
    whole = math.hypot(*(size(start[name]) for name in now))
    if far == 0.0:
        return 0.0
    return far / whole if whole else math.inf


def double(value: Tensor) -> Tensor:
    """The same numbers in double precision, real or complex."""
    return value.to(torch.complex128 if value.is_complex() else torch.float64)


@checked
@dataclass(frozen=True)
class Movement(Snapshot):
    """How far the parameters of a member have moved since its start.

    Value: ``dW`` (see :func:`movement`) of those that require grad; nan of a member that has diverged.
    """

    @property
    def columns(self) -> Columns:
        """``dW``."""
        return numbers("dW")

    def look(self, state: State) -> Mapping[str, float]:
        """dW now."""
        if not is_finite(state.parameters):
            return {"dW": math.nan}
        return {"dW": movement(state.parameters, state.origin, module=state.module)}
