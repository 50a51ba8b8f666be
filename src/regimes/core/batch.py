"""The inputs of a network: one tensor, several in a tuple, or several by name, with the samples in front."""

from __future__ import annotations

import dis
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regimes.core.error import UserError

__all__ = [
    "Inputs",
    "check",
    "check_finite",
    "count",
    "device_of",
    "feed",
    "joined",
    "misfit",
    "same_samples",
    "take",
    "tensors",
    "transform",
]

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]
"""A tensor (n, ...); a tuple, for ``module(*x)``; a mapping, for ``module(**x)``. All tensors have n samples in
front; entries that are no tensors (flags, None) are handed on."""


def transform(x: Inputs, function: Callable[[Tensor], Any]) -> Any:
    """The same inputs with each tensor replaced."""
    if isinstance(x, Tensor):
        return function(x)
    if isinstance(x, Mapping):
        return {name: function(v) if isinstance(v, Tensor) else v for name, v in x.items()}
    return tuple(function(v) if isinstance(v, Tensor) else v for v in x)


def tensors(x: Inputs) -> dict[str, Tensor]:
    """The tensors of the inputs by a label that a user recognises: "", "[0]", "['input_ids']"."""
    if isinstance(x, Tensor):
        return {"": x}
    pairs = x.items() if isinstance(x, Mapping) else enumerate(x)
    return {f"[{key!r}]": value for key, value in pairs if isinstance(value, Tensor)}


def count(x: Inputs) -> int:
    """n, the number of samples."""
    return len(x) if isinstance(x, Tensor) else len(next(iter(tensors(x).values())))


def device_of(x: Inputs) -> torch.device:
    """Where the first tensor lies."""
    return next(iter(tensors(x).values())).device


def take(x: Inputs, samples: slice | Tensor) -> Any:
    """Some of the samples.

    >>> take((torch.arange(3), torch.eye(3)), slice(0, 1))
    (tensor([0]), tensor([[1., 0., 0.]]))
    """
    return transform(x, lambda tensor: tensor[samples])


def joined(x: Inputs, y: Inputs) -> Any:
    """The samples of x, then those of y."""
    others = iter(tensors(y).values())
    return transform(x, lambda tensor: torch.cat([tensor, next(others)]))


def feed(module: nn.Module, x: Inputs) -> Any:
    """What the module returns for these inputs."""
    if isinstance(x, Tensor):
        return module(x)
    return module(**x) if isinstance(x, Mapping) else module(*x)


def misfit(module: nn.Module, x: Inputs, name: str) -> UserError | None:
    """What to say of inputs that the module does not take; None where it does, or fails by what its author raised.

    Two samples are passed through it, without gradients. An error is one of fit where torch raised it (its own
    files, or an operation); what the forward raised of its own, or by a name that is not there, is a fault in it.
    """
    try:
        with torch.no_grad():
            feed(module, take(x, slice(0, 2)))
    except torch.OutOfMemoryError:
        return None
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, UserError) or not _of_torch(error):
            return None
        came = ", ".join(
            f"{label} {tensor.dtype} {tuple(tensor.shape)}".strip() for label, tensor in tensors(x).items()
        )
        return UserError(
            f"`{name}`: got {came} on {device_of(x)}, which the module does not take: {str(error).splitlines()[0]}; "
            "give it inputs that module(x) takes"
        )
    return None


def _of_torch(error: Exception) -> bool:
    """Whether torch raised it: a file of torch's, or an operation, which is no ``raise`` of Python's."""
    trace = error.__traceback__
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    code, home = trace.tb_frame.f_code, os.path.dirname(torch.__file__)
    raised = code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return code.co_filename.startswith(home) or (type(error) is RuntimeError and not raised)


def check(x: Inputs, name: str) -> None:
    """Raise unless there are samples, as many in each tensor, and all numbers are finite.

    Raises:
        UserError: names the argument, the sample and the entry.
    """
    if not isinstance(x, Tensor | Mapping | tuple | list) or not tensors(x):
        raise UserError(
            f"`{name}`: got {type(x).__name__}, expected a tensor (n, ...), or a tuple or a mapping of tensors"
        )
    first: tuple[str, int] | None = None
    for label, tensor in tensors(x).items():
        if tensor.dim() == 0 or not len(tensor):
            raise UserError(
                f"`{name}{label}`: got shape {tuple(tensor.shape)}, expected at least one sample, (n, ...)"
            )
        first = first or (label, len(tensor))
        if len(tensor) != first[1]:
            raise UserError(
                f"`{name}{label}`: got {len(tensor)} samples, expected {first[1]}, as in `{name}{first[0]}`; "
                "every tensor has the samples in front"
            )
        check_finite(tensor, f"`{name}{label}`", "drop that sample, or mend it")


def check_finite(tensor: Tensor, what: str, way_out: str) -> None:
    """Raise if an entry is nan or infinite, and say which is the first."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return
    # A finite sum settles it in one pass; an infinite one may come from large finite entries.
    if tensor.sum().isfinite() or tensor.isfinite().all():
        return
    where = tuple((~tensor.isfinite()).nonzero()[0].tolist())
    at = f"[{', '.join(map(str, where))}]" if where else "it"
    raise UserError(f"{what}: {at} is {tensor[where].item()}, expected finite numbers; {way_out}")


def same_samples(x1: Inputs, x2: Inputs) -> None:
    """Raise unless samples of ``x2`` have the shapes of those of ``x1``."""
    left, right = tensors(x1), tensors(x2)
    if list(left) != list(right):
        raise UserError(
            f"`x2`: got tensors {', '.join(right) or 'none'}, expected {', '.join(left)}, as in `x1`"
        )
    for label, tensor in right.items():
        if tensor.shape[1:] != left[label].shape[1:]:
            raise UserError(
                f"`x2{label}`: got samples of shape {tuple(tensor.shape[1:])}, expected "
                f"{tuple(left[label].shape[1:])}, as in `x1{label}`"
            )
