"""The rows of the Jacobian of a network by its named parameters, and whether they are right."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import vjp as function_vjp
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from regimes.core.batch import Inputs, count, device_of, feed, take, tensors, transform
from regimes.core.derivative import (
    RANDOM,
    Output,
    balanced,
    bind,
    check_separable,
    exact,
    gradients,
    plain,
    random_state,
)
from regimes.core.error import UserError
from regimes.core.tree import Tree

__all__ = ["are_rows", "jacobian"]

Pull = Callable[[Tensor], Mapping[str, Tensor]]
"""u (n, c) -> J^T u by name, by plain autograd."""


@dataclass(frozen=True, eq=False)
class _Function:
    """f as a function of some of its parameters; the others stay as they are in ``every``."""

    module: nn.Module
    every: Tree
    output: Output | None

    @contextmanager
    def at(self, moving: Tree) -> Iterator[Callable[[Inputs], Tensor]]:
        """f(w, .), (n, ...) -> (n, c). A checkpointed part needs w on the way back, too."""
        with bind(self.module, {**self.every, **moving}) as module:
            yield lambda x: self._picked(feed(module, x)).reshape(count(x), -1)

    def _picked(self, found: Any) -> Tensor:
        return found if self.output is None else self.output(found)


def jacobian(
    module: nn.Module,
    parameters: Tree,
    x: Inputs,
    *,
    names: str | Sequence[str] | None = None,
    chunk: int | None = None,
    output: Output | None = None,
) -> dict[str, Float[Tensor, "n c ..."]]:
    """The rows of the Jacobian, df_a(w, x_i)/dw: for each parameter a tensor ``(n, c, *shape)``.

    Each sample is evaluated as a batch of one. All rows are found at once by one vmap over pairs of sample and
    output. The rules of torch for that are wrong in places, so a random combination of the rows is held against
    one plain backward pass (see :func:`are_rows`). Where the two differ, or vmap fails, the rows are found one by
    one by plain autograd.

    Args:
        module: f.
        parameters: w by name.
        x: inputs.
        names: the parameters to differentiate by, one name or several (default: all in ``parameters``).
        chunk: the number of samples at a time (default: all).
        output: what picks the outputs from what the module returns.

    Raises:
        UserError: if the module couples samples or is random (see
            :func:`regimes.core.derivative.check_separable`).

    >>> layer = nn.Linear(2, 1)
    >>> jacobian(layer, dict(layer.named_parameters()), torch.tensor([[3.0, 4.0]]))["weight"]
    tensor([[[[3., 4.]]]])
    """
    check_separable(module)
    # Attention written out goes through vmap, fused attention does not. Where else torch falls back to a loop
    # of its own, there is nothing that a user could do about its warning.
    with exact(device_of(x)), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        every = {name: plain(value) for name, value in parameters.items()}
        named = [names] if isinstance(names, str) else every if names is None else names
        wanted = {name: every[name] for name in named}
        function, x, n = _Function(module, every, output), transform(x, plain), count(x)
        size = chunk or n
        pieces = [_rows(function, wanted, take(x, slice(i, i + size))) for i in range(0, n, size)]
    if len(pieces) == 1:
        return pieces[0]
    return {name: torch.cat([piece[name] for piece in pieces]) for name in wanted}


def _rows(function: _Function, wanted: Tree, x: Inputs) -> dict[str, Tensor]:
    """The Jacobian by vmap where that is right, else by a loop."""
    try:
        rows = _mapped(function, wanted, x)
        right = are_rows(rows, lambda u: _pulled(function, wanted, x, u))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever the module says to tensors that stand for many
        if "randomness" in str(error):
            raise UserError(RANDOM) from error
        return _looped(function, wanted, x)
    return rows if right else _looped(function, wanted, x)


def _mapped(function: _Function, wanted: Tree, x: Inputs) -> dict[str, Tensor]:
    """One vmap, over all pairs of a sample and an output: two of equal size, one in the other, lose an axis."""
    n = count(x)
    with torch.enable_grad(), function.at(wanted) as f:
        one = f(_copied(take(x, slice(0, 1))))

    def pulled(sample: tuple[Tensor, ...], u: Tensor) -> dict[str, Tensor]:
        each = iter(sample)
        alone = transform(x, lambda _: next(each)[None])

        def outputs(moving: Tree) -> Tensor:
            with function.at(moving) as f:
                return f(alone)[0]

        return function_vjp(outputs, wanted)[1](u)[0]  # pyright: ignore[reportIndexIssue]

    c = one.shape[1]
    samples = tuple(tensor.repeat_interleave(c, 0) for tensor in tensors(x).values())
    found = vmap(pulled)(samples, torch.eye(c, dtype=one.dtype, device=one.device).repeat(n, 1))
    return {name: each.reshape(n, c, *wanted[name].shape) for name, each in found.items()}


def _pulled(function: _Function, wanted: Tree, x: Inputs, u: Tensor) -> dict[str, Tensor]:
    """J^T u by one plain backward pass over all samples."""
    leaves = {name: value.detach().requires_grad_() for name, value in wanted.items()}
    with torch.enable_grad(), function.at(leaves) as f:
        found = gradients(f(_copied(x)), leaves, u)
    return dict(zip(leaves, found, strict=True))


def _looped(function: _Function, wanted: Tree, x: Inputs) -> dict[str, Tensor]:
    """One row after the other by plain autograd: the definition."""
    rows: dict[str, list[Tensor]] = {name: [] for name in wanted}
    random = random_state()
    for i in range(count(x)):
        leaves = {name: value.detach().requires_grad_() for name, value in wanted.items()}
        with torch.enable_grad(), function.at(leaves) as f:
            (out,) = f(_copied(take(x, slice(i, i + 1))))
            grads = [gradients(one, leaves, keep=True) for one in out.unbind()]
        for name, each in zip(leaves, zip(*grads, strict=True), strict=True):
            rows[name].append(torch.stack(each))
    if random_state() != random:
        raise UserError(RANDOM)
    return {name: torch.stack(each) for name, each in rows.items()}


def _copied(x: Inputs) -> Inputs:
    """Inputs that a module may change in place."""
    return transform(x, Tensor.clone)


def are_rows(rows: Mapping[str, Float[Tensor, "n r ..."]], pull: Pull) -> bool:
    r"""Whether these are rows of a Jacobian: :math:`\sum_{ia} u_{ia} J_{ia} = J^T u` for a random u.

    u is drawn from a generator of its own and divided by the norm of each row, so that the rows of a small sample
    count as much as those of a large one. Each parameter is compared by itself: a difference above sqrt(eps) of
    what its rows add up to without regard to sign, and above rounding beside all parameters, is a fault.

    Args:
        rows: J by name.
        pull: u -> J^T u, by a plain backward pass.
    """
    norms = torch.stack(
        [torch.linalg.vector_norm(each.reshape(*each.shape[:2], -1), dim=2) for each in rows.values()]
    )
    whole = torch.linalg.vector_norm(norms, dim=0)
    u = balanced(whole)
    plain_sums = pull(u)
    sizes = torch.linalg.vector_norm((norms * u).flatten(1), dim=1)
    eps = torch.finfo(whole.dtype).eps
    allowed = eps**0.5 * sizes + 1e3 * eps * torch.linalg.vector_norm(sizes)
    away = torch.stack(
        [torch.linalg.vector_norm(torch.tensordot(u, each, 2) - plain_sums[k]) for k, each in rows.items()]
    )
    return bool((away <= allowed).all())
