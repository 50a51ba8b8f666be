"""Derivatives of a network by its named parameters: products with the Jacobian, and its rows."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from regimes.core.batch import Inputs, count, device_of, feed, take, transform
from regimes.core.error import UserError, nearest
from regimes.core.tree import trainable

__all__ = [
    "Output",
    "Tangents",
    "bind",
    "call",
    "check_names",
    "check_separable",
    "columns",
    "exact",
    "hvp",
    "jacobian",
    "jvp",
    "load_forward_mode",
    "plain",
    "random_state",
    "vjp",
]

Tree = Mapping[str, Tensor]
Output = Callable[[Any], Tensor]
"""What picks the outputs (n, c) or (n,) from what a module returns."""


@contextmanager
def bind(module: nn.Module, parameters: Tree) -> Iterator[nn.Module]:
    """Inside the block the module has these parameters in place of its own; others keep their values.

    A parameter is found by what it is, not by the path to it, so that tied parameters and submodules that
    several paths lead to are replaced everywhere and put back afterwards. ``torch.func.functional_call``
    leaves a module of the second kind damaged (pytorch issue 164759).
    """
    wanted = {id(own): parameters[name] for name, own in module.named_parameters() if name in parameters}
    slots = [
        (sub._parameters, key, own)
        for sub in module.modules()
        for key, own in sub._parameters.items()
        if own is not None and id(own) in wanted
    ]
    try:
        for owner, key, own in slots:
            owner[key] = wanted[id(own)]  # pyright: ignore[reportArgumentType]
        yield module
    finally:
        for owner, key, own in slots:
            owner[key] = own


def call(module: nn.Module, parameters: Tree, x: Inputs, output: Output | None = None) -> Tensor:
    """f(w, x): what the module returns at these parameters, or what ``output`` picks from it."""
    with bind(module, parameters):
        found = feed(module, x)
        return found if output is None else output(found)


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Inside the block gradients exist, in the precision of the parameters, whatever mode surrounds it.

    Autocast is off, and so is TF32 on a CUDA device: a kernel that drifts by a thousandth would drown in it.
    """
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
        try:
            if device.type == "cuda":
                torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
            yield
        finally:
            if device.type == "cuda":
                torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def plain(value: Tensor) -> Tensor:
    """The tensor without a graph; a copy where it was made in inference mode and so cannot enter one."""
    return value.clone() if value.is_inference() else value.detach()


def columns(outputs: Any, samples: int, what: str = "`module`") -> Float[Tensor, "n c"]:
    """Outputs (n,) or (n, c) as (n, c); ``what`` gave them.

    Raises:
        UserError: if the outputs have another shape, or are not real numbers.
    """
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
        kind = outputs.dtype if isinstance(outputs, Tensor) else type(outputs).__name__
        raise UserError(
            f"{what}: gave outputs of type {kind}, expected a tensor of real numbers (n,) or (n, c); "
            "wrap the module, or pick them: output=lambda out: out.logits"
        )
    if outputs.dim() not in (1, 2) or outputs.shape[0] != samples or 0 in outputs.shape:
        raise UserError(
            f"{what}: gave outputs of shape {tuple(outputs.shape)} for {samples} samples, expected (n,) or "
            "(n, c); flatten them in a module around it, or pick some: output=lambda out: out[:, 0]"
        )
    return outputs if outputs.dim() == 2 else outputs[:, None]


def check_names(module: nn.Module, parameters: Tree, argument: str = "parameters") -> None:
    """Raise if a trainable parameter is missing in an argument, or if a name is none of the module's."""
    known = [name for name, _ in module.named_parameters()]
    if unknown := [name for name in parameters if name not in known]:
        raise UserError(
            f"`{argument}`: got '{unknown[0]}', expected names of module.named_parameters()"
            f"{nearest(unknown[0], known)}"
        )
    if missing := [name for name in trainable(module) if name not in parameters]:
        raise UserError(
            f"`{argument}`: '{missing[0]}' is missing, expected a value for each parameter that requires grad"
        )


def _draws(module: nn.Module) -> bool:
    """Whether a layer of torch draws random numbers in its forward."""
    if isinstance(module, _DropoutNd):
        return module.training and module.p > 0
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        return module.training and module.dropout > 0
    return isinstance(module, nn.RReLU) and module.training


def check_separable(module: nn.Module) -> None:
    """Raise if the output for a sample depends on the other samples, or on chance.

    Raises:
        UserError: names the submodule: batch norm that uses the statistics of the batch, dropout in train
            mode.
    """
    for name, sub in module.named_modules():
        label = f"'{name}' ({type(sub).__name__})" if name else type(sub).__name__
        if isinstance(sub, _BatchNorm) and (sub.training or sub.running_mean is None):
            raise UserError(
                f"`module`: {label} couples the samples of a batch, so that none has a gradient of its own; "
                "call .eval() on a batch norm with running statistics, or use GroupNorm"
            )
        if isinstance(sub, _NormBase) and sub.training and sub.running_mean is not None:
            raise UserError(
                f"`module`: {label} updates its statistics at every call in train mode; call .eval() first"
            )
        if _draws(sub):
            raise UserError(f"`module`: {label} is random in train mode; call .eval() first")


def jvp(
    module: nn.Module, parameters: Tree, x: Inputs, tangent: Tree, *, output: Output | None = None
) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
    """f(w, x) and J(w, x) v, by one pass in forward mode.

    Where an operation has no forward mode, J v is taken as the derivative of u -> (J^T u) . v.

    Args:
        module: f.
        parameters: w by name.
        x: inputs.
        tangent: v, by the names it moves; all others stay.
        output: what picks the outputs from what the module returns.

    Returns:
        Outputs and their derivative along v, (n, c) each.
    """

    def outputs(moving: Tree) -> Tensor:
        return columns(call(module, {**fixed, **moving}, x, output), count(x))

    load_forward_mode()
    # Fused attention has no forward mode (pytorch issue 117629); attention written out has.
    with exact(device_of(x)), sdpa_kernel(SDPBackend.MATH):
        x = transform(x, plain)
        fixed = {name: plain(value) for name, value in parameters.items()}
        values = {name: fixed[name] for name in tangent}
        tangent = {name: plain(value) for name, value in tangent.items()}
        try:
            # With gradients on, whoever calls: what the network itself does without them has no tangent.
            with torch.enable_grad(), Tangents():
                return torch.func.jvp(outputs, (values,), (tangent,))  # pyright: ignore[reportReturnType]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            return _jvp_by_vjp(module, outputs, values, tangent)


def random_state() -> list[bytes]:
    """The state of the generators that layers draw from."""
    states = [torch.get_rng_state()] + ([torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [])
    return [state.numpy().tobytes() for state in states]


class Tangents(TorchFunctionMode):
    """Forward mode without tangents where gradients are off.

    By itself torch propagates them through ``torch.no_grad``, so that J v would not go with J^T u.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.is_grad_enabled():
            return func(*args, **(kwargs or {}))
        with forward_ad._set_fwd_grad_enabled(False):
            return func(*args, **(kwargs or {}))


@cache
def load_forward_mode() -> None:
    """Have torch load what forward mode needs, once: some versions warn of deprecated parts of theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.sin, (torch.zeros(()),), (torch.zeros(()),))


def _jvp_by_vjp(
    module: nn.Module, outputs: Callable[[Tree], Tensor], values: Tree, tangent: Tree
) -> tuple[Tensor, Tensor]:
    leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
    with torch.enable_grad(), bind(module, leaves):
        out = outputs(leaves)
        u = torch.zeros_like(out, requires_grad=True)
        pulled = torch.autograd.grad(out, list(leaves.values()), u, create_graph=True, materialize_grads=True)
        along = sum(
            ((g * tangent[name]).sum() for name, g in zip(leaves, pulled, strict=True)), torch.zeros(()).to(u)
        )
        (pushed,) = torch.autograd.grad(along, u, allow_unused=True, materialize_grads=True)
    return out.detach(), pushed.detach()


def vjp(
    module: nn.Module,
    parameters: Tree,
    x: Inputs,
    cotangent: Float[Tensor, "n c"],
    *,
    output: Output | None = None,
) -> tuple[Float[Tensor, "n c"], dict[str, Tensor]]:
    """f(w, x) and J(w, x)^T u, by one pass forward and one backward.

    Args:
        module: f.
        parameters: w by name; the derivative is with respect to all of them.
        x: inputs.
        cotangent: u.
        output: what picks the outputs from what the module returns.

    Returns:
        Outputs (n, c), and the sum over samples and outputs of u times the gradient, by name.
    """
    with exact(device_of(x)), torch.enable_grad():
        leaves = {name: plain(value).requires_grad_() for name, value in parameters.items()}
        # A checkpointed part runs once more in the backward pass: it must then meet the same parameters.
        with bind(module, leaves):
            out = columns(call(module, leaves, transform(x, plain), output), count(x))
            if not out.requires_grad:
                return out, {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
            grads = torch.autograd.grad(out, list(leaves.values()), plain(cotangent), materialize_grads=True)
    return out.detach(), dict(zip(leaves, grads, strict=True))


def hvp(function: Callable[[Tree], Tensor], parameters: Tree, direction: Tree) -> dict[str, Tensor]:
    """H v by name, H the Hessian of a scalar function of named parameters: the gradient of grad . v.

    >>> w = {"w": torch.tensor([1.0, 2.0])}
    >>> hvp(lambda p: (p["w"] ** 3).sum(), w, {"w": torch.tensor([1.0, 10.0])})
    {'w': tensor([  6., 120.])}
    """
    device = next(iter(parameters.values())).device
    with exact(device), torch.enable_grad():
        leaves = {name: plain(value).requires_grad_() for name, value in parameters.items()}
        flat = list(leaves.values())
        first = torch.autograd.grad(function(leaves), flat, create_graph=True, materialize_grads=True)
        slope = torch.stack(
            [(g * direction[name]).sum() for name, g in zip(leaves, first, strict=True)]
        ).sum()
        if not slope.requires_grad:
            return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        second = torch.autograd.grad(slope, flat, materialize_grads=True)
    return dict(zip(leaves, second, strict=True))


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

    Each sample is evaluated as a batch of one: by vmap over the samples, or one sample after another where
    the module does something that vmap cannot.

    Args:
        module: f.
        parameters: w by name.
        x: inputs.
        names: the parameters to differentiate by, one name or several (default: all in ``parameters``).
        chunk: the number of samples at a time (default: all).
        output: what picks the outputs from what the module returns.

    Raises:
        UserError: if the module couples samples or is random (see :func:`check_separable`).

    >>> layer = nn.Linear(2, 1)
    >>> jacobian(layer, trainable(layer), torch.tensor([[3.0, 4.0]]))["weight"]
    tensor([[[[3., 4.]]]])
    """
    check_separable(module)

    def outputs(moving: Tree, sample: Inputs) -> Tensor:
        alone = transform(sample, lambda tensor: tensor[None])
        return call(module, {**every, **moving}, alone, output).reshape(-1)

    # Attention written out goes through vmap, fused attention does not. Where else torch falls back to a loop
    # of its own, there is nothing that a user could do about its warning.
    with exact(device_of(x)), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        every = {name: plain(value) for name, value in parameters.items()}
        named = [names] if isinstance(names, str) else every if names is None else names
        wanted = {name: every[name] for name in named}
        return _rows(outputs, wanted, transform(x, plain), chunk)


def _rows(
    outputs: Callable[[Tree, Any], Tensor], wanted: Tree, x: Inputs, chunk: int | None
) -> dict[str, Tensor]:
    """The Jacobian by vmap, else by a loop."""
    axes = 0 if isinstance(x, Tensor) else transform(x, lambda _: 0)
    try:
        return vmap(jacrev(outputs), (None, axes), chunk_size=chunk)(wanted, x)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        if "randomness" in str(error):
            raise UserError(
                "`module`: draws random numbers in its forward; call .eval(), or take them out"
            ) from error
        return _jacobian_by_loop(outputs, wanted, x)


def _jacobian_by_loop(outputs: Callable[[Tree, Any], Tensor], wanted: Tree, x: Inputs) -> dict[str, Tensor]:
    rows: dict[str, list[Tensor]] = {name: [] for name in wanted}
    with torch.enable_grad():
        for i in range(count(x)):
            sample = take(x, torch.tensor(i))
            leaves = {name: value.detach().requires_grad_() for name, value in wanted.items()}
            out = outputs(leaves, sample)
            grads = [_gradient(one, list(leaves.values())) for one in out.unbind()]
            for name, each in zip(leaves, zip(*grads, strict=True), strict=True):
                rows[name].append(torch.stack(each))
    return {name: torch.stack(each) for name, each in rows.items()}


def _gradient(output: Tensor, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    if not output.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    return torch.autograd.grad(output, leaves, retain_graph=True, materialize_grads=True)
