"""Derivatives of a network by its named parameters: products with the Jacobian and with a Hessian."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd

from regimes.core.batch import Inputs, count, device_of, feed, transform
from regimes.core.error import UserError, nearest
from regimes.core.forward import by_forward_mode, nested
from regimes.core.tree import Tree, dot, norm, trainable

__all__ = [
    "RANDOM",
    "Function",
    "Output",
    "balanced",
    "bind",
    "call",
    "check_names",
    "check_separable",
    "columns",
    "exact",
    "gradients",
    "hvp",
    "jvp",
    "plain",
    "random_state",
    "transposed",
    "value",
    "vjp",
]

Output = Callable[[Any], Tensor]
"""What picks the outputs (n, c) or (n,) from what a module returns."""
Function = Callable[[Tree], Tensor]
"""f(., x): outputs by named parameters."""
RANDOM = "`module`: draws random numbers in its forward; call .eval(), or take them out"


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


def value(module: nn.Module, parameters: Tree, x: Inputs, output: Output | None = None) -> Tensor:
    """f(w, x) without a graph. A module may take gradients by its inputs for itself, such as forces -dE/dx."""
    still = {name: plain(parameters.get(name, own)) for name, own in module.named_parameters()}
    # Nothing that goes in requires a gradient, so that no graph is made where the module asks for none.
    with torch.enable_grad():
        found = call(module, still, transform(x, lambda tensor: plain(tensor).clone()), output)
    return found.detach() if isinstance(found, Tensor) else found


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


def _kind(module: nn.Module) -> type[Any]:
    """The class of a layer, also of one that was scripted or traced."""
    if isinstance(module, torch.jit.ScriptModule):
        return getattr(nn, module.original_name, nn.Module)
    return type(module)


def _draws(module: nn.Module) -> bool:
    """Whether a layer of torch draws random numbers in its forward."""
    kind = _kind(module)
    if not module.training:
        return False
    if issubclass(kind, _DropoutNd):
        # A traced layer has no numbers.
        return getattr(module, "p", 1.0) > 0
    if issubclass(kind, nn.MultiheadAttention | nn.RNNBase):
        return getattr(module, "dropout", 0.0) > 0
    return issubclass(kind, nn.RReLU)


def check_separable(module: nn.Module) -> None:
    """Raise if the output for a sample depends on the other samples, or on chance.

    Raises:
        UserError: names the submodule: batch norm that uses the statistics of the batch, dropout in train
            mode.
    """
    for name, sub in module.named_modules():
        kind = _kind(sub)
        label = f"'{name}' ({kind.__name__})" if name else kind.__name__
        if issubclass(kind, _BatchNorm) and (sub.training or sub.running_mean is None):
            raise UserError(
                f"`module`: {label} couples the samples of a batch, so that none has a gradient of its own; "
                "call .eval() on a batch norm with running statistics, or use GroupNorm"
            )
        if issubclass(kind, _NormBase) and sub.training and sub.running_mean is not None:
            raise UserError(
                f"`module`: {label} updates its statistics at every call in train mode; call .eval() first"
            )
        if _draws(sub):
            raise UserError(f"`module`: {label} is random in train mode; call .eval() first")


def jvp(
    module: nn.Module, parameters: Tree, x: Inputs, tangent: Tree, *, output: Output | None = None
) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
    """f(w, x) and J(w, x) v, by one pass in forward mode, held against one plain backward pass.

    Where an operation has no forward mode, or u . J v is not (J^T u) . v for a random u, J v is taken as the
    derivative of u -> (J^T u) . v; and where that is not right either, output by output by plain autograd.

    Args:
        module: f.
        parameters: w by name.
        x: inputs.
        tangent: v, by the names it moves; all others stay.
        output: what picks the outputs from what the module returns.

    Returns:
        Outputs and their derivative along v, (n, c) each.

    Raises:
        UserError: if the module draws random numbers.
    """

    def outputs(moving: Tree) -> Tensor:
        return columns(call(module, {**fixed, **moving}, transform(x, Tensor.clone), output), count(x))

    # Fused attention has no forward mode (pytorch issue 117629); attention written out has.
    with exact(device_of(x)), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        x = transform(x, plain)
        fixed = {name: plain(value) for name, value in parameters.items()}
        values = {name: fixed[name] for name in tangent}
        tangent = {name: plain(value) for name, value in tangent.items()}
        random = random_state()
        found = _pushed(outputs, values, tangent)
        if random_state() != random:
            raise UserError(RANDOM)
        return found


def _pushed(outputs: Function, at: Tree, along: Tree) -> tuple[Tensor, Tensor]:
    """f(w) and J v by the first route that is right."""
    for route in (_by_transposing,) if nested() else (by_forward_mode, _by_transposing):
        try:
            found, pushed = route(outputs, at, along)
            if _is_pushed(pushed, outputs, at, along):
                return found, pushed
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # an operation that this route cannot pass
            continue
    return _one_by_one(outputs, at, along)


def _by_transposing(outputs: Function, at: Tree, along: Tree) -> tuple[Tensor, Tensor]:
    """f(w) and J v as the derivative of u -> (J^T u) . v."""
    graph, leaves = _graph(outputs, at)
    return graph.detach(), transposed(graph, leaves, along)


def transposed(graph: Tensor, leaves: Tree, along: Tree) -> Tensor:
    """J v as the derivative of u -> (J^T u) . v, by two backward passes.

    Args:
        graph: f(w, x) with its graph, which is kept.
        leaves: w by name.
        along: v by name.
    """
    if not graph.requires_grad:
        return torch.zeros_like(graph)
    with torch.enable_grad():
        u = torch.zeros_like(graph, requires_grad=True)
        pulled = torch.autograd.grad(
            graph, list(leaves.values()), u, create_graph=True, materialize_grads=True
        )
        total = dot(dict(zip(leaves, pulled, strict=True)), along)
        if not total.requires_grad:
            return torch.zeros_like(graph)
        return torch.autograd.grad(total, u, retain_graph=True, materialize_grads=True)[0].detach()


def _is_pushed(pushed: Tensor, outputs: Function, at: Tree, along: Tree) -> bool:
    """Whether u . J v = (J^T u) . v for a random u, in which each sample counts the same."""
    if not (norm(at) + norm(along)).isfinite():  # a run that has diverged: there is nothing to compare
        return True
    u = balanced(torch.linalg.vector_norm(pushed, dim=1, keepdim=True).expand_as(pushed))
    graph, leaves = _graph(outputs, at)
    pulled = dict(zip(at, gradients(graph, leaves, u), strict=True))
    eps = torch.finfo(pushed.dtype).eps
    allowed = eps**0.5 * torch.linalg.vector_norm(u * pushed) + 1e3 * eps * norm(pulled) * norm(along)
    return bool(((u * pushed).sum() - dot(pulled, along)).abs() <= allowed)


def balanced(norms: Tensor) -> Tensor:
    """Random factors, always the same, that make equal shares of things of these norms.

    What is 0 counts like the others: it may be what is wrong. The global generator is left alone.
    """
    drawn = torch.randn(norms.shape, generator=torch.Generator().manual_seed(0), dtype=norms.dtype)
    usual = norms[norms > 0].mean() if (norms > 0).any() else norms.new_ones(())
    return drawn.to(norms.device) / torch.where(norms > 0, norms, usual)


def _one_by_one(outputs: Function, at: Tree, along: Tree) -> tuple[Tensor, Tensor]:
    """f(w) and J v as the products of all rows with v, each row by plain autograd."""
    graph, leaves = _graph(outputs, at)
    with torch.enable_grad():
        entries = graph.reshape(-1).unbind()
    rows = (gradients(one, leaves, keep=True) for one in entries)
    products = [dot(dict(zip(at, row, strict=True)), along) for row in rows]
    return graph.detach(), torch.stack(products).reshape(graph.shape)


def _graph(outputs: Function, at: Tree) -> tuple[Tensor, dict[str, Tensor]]:
    """f(w) with the graph that leads to w."""
    leaves = {name: value.detach().requires_grad_() for name, value in at.items()}
    with torch.enable_grad():
        return outputs(leaves), leaves


def gradients(outputs: Tensor, leaves: Tree, u: Tensor | None = None, *, keep: bool = False) -> list[Tensor]:
    """J^T u in the order of the leaves, dense, by one plain backward pass; zeros where nothing depends on them.

    Args:
        outputs: f(w, x) with its graph.
        leaves: w by name.
        u: of the shape of the outputs; may be left out for a single one.
        keep: whether the graph is needed again.
    """
    if not outputs.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves.values()]
    found = torch.autograd.grad(outputs, list(leaves.values()), u, keep, materialize_grads=True)
    return [grad.to_dense() for grad in found]


def random_state() -> list[bytes]:
    """The state of the generators that layers draw from."""
    states = [torch.get_rng_state()] + ([torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [])
    return [state.numpy().tobytes() for state in states]


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
            out = columns(call(module, leaves, transform(x, lambda t: plain(t).clone()), output), count(x))
            found = gradients(out, leaves, plain(cotangent))
    return out.detach(), dict(zip(leaves, found, strict=True))


def hvp(function: Function, parameters: Tree, direction: Tree) -> dict[str, Tensor]:
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
