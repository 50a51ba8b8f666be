r"""The linearised module: f(a, x) + J(a, x)(w - a), with parameters w of its own and a movable anchor a."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from regimes.core.batch import check_finite, transform
from regimes.core.derivative import Output, bind, check_separable, load_forward_mode, plain
from regimes.core.error import UserError
from regimes.core.tree import sub, trainable

__all__ = ["Linearized", "linearize"]

Tree = Mapping[str, Tensor]
Outputs = Callable[[Tree], Tensor]

_PRODUCTS = (functional.linear, functional.conv1d, functional.conv2d, functional.conv3d)
_HOOKS = (
    "`module`: activations are saved in a way of their own (checkpointing, offloading), inside it or around it; a "
    "layer that runs again in the backward pass would run at w, away from the anchor; switch that off"
)


class _Anchor(nn.Module):
    """The anchor: buffers under the names of the parameters they belong to."""

    def __init__(self, values: Tree) -> None:
        super().__init__()
        for name, value in values.items():
            owner: nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            owner.register_buffer(last, value.detach().clone())


class Linearized(nn.Module):
    r"""F(w, x) = f(a, x) + J(a, x) (w - a), an ordinary module, linear in its parameters w.

    Its parameters, buffers and submodules are those of f, under the same names; the anchor comes on top, as
    buffers ``anchor.<name>``. The layers stay in the mode they were in: a linear function has but one.

    Attributes:
        network: f, with w for its parameters: ``network(x)`` is f(w, x).
        anchor: a, one buffer for each parameter that required grad.
    """

    network: nn.Module
    anchor: nn.Module

    def __init__(self, network: nn.Module, output: Output | None = None) -> None:
        super().__init__()
        # Not a submodule, or each name would have a prefix. What it holds is registered here as well.
        self.__dict__["network"] = network
        self._parameters = network._parameters
        self._buffers = network._buffers
        self._non_persistent_buffers_set = network._non_persistent_buffers_set
        self._modules.update(network._modules)
        self.add_module("anchor", _Anchor(trainable(network)))
        self._output = output
        self._reverse = self._checked = False

    def forward(self, *args: Any, **named: Any) -> Tensor:
        """f(a, x) + J(a, x)(w - a), of the shape of f(w, x)."""
        if torch.is_inference_mode_enabled():
            # There forward mode loses every tangent without a word.
            with torch.inference_mode(False), torch.no_grad():
                return self.forward(*transform(args, plain), **transform(named, plain))
        anchor = dict(self.anchor.named_buffers())
        own = dict(self.network.named_parameters())
        moved = sub({name: own[name] for name in anchor}, anchor)
        outputs, wants_grad = partial(self._outputs, args, named), _want_grad((args, named))
        try:
            # Fused attention has no forward mode (pytorch issue 117629); attention written out has.
            with sdpa_kernel(SDPBackend.MATH), torch.autograd.graph.disable_saved_tensors_hooks(_HOOKS):
                self._check(outputs, anchor, own, wants_grad)
                value, along = self._pair(outputs, anchor, moved, wants_grad)
        except RuntimeError as error:
            if _HOOKS in str(error):
                raise UserError(_HOOKS) from error
            raise
        return value + along

    def _outputs(self, args: tuple[Any, ...], named: Mapping[str, Any], parameters: Tree) -> Tensor:
        """f at these parameters."""
        with bind(self.network, parameters):
            found = self.network(*args, **named)
        found = found if self._output is None else self._output(found)
        if not isinstance(found, Tensor) or not found.is_floating_point():
            kind = found.dtype if isinstance(found, Tensor) else type(found).__name__
            raise UserError(
                f"`module`: gave outputs of type {kind}, expected a tensor of real numbers; pick them: "
                "linearize(module, output=lambda out: out.logits)"
            )
        return found

    def _check(self, outputs: Outputs, anchor: Tree, own: Tree, wants_grad: bool) -> None:
        """Raise if a parameter trains that has no anchor, or, once, if f(a, x) is not finite or depends on w."""
        if thawed := [name for name, p in own.items() if p.requires_grad and name not in anchor]:
            raise UserError(
                f"`module`: '{thawed[0]}' requires grad, but was frozen when the module was linearised; "
                "linearise it again"
            )
        if self._checked:
            return
        with torch.enable_grad():
            value = outputs(anchor)
        if value.requires_grad and not wants_grad:
            raise UserError(
                "`module`: keeps a parameter outside `named_parameters` too, where no anchor can replace it"
            )
        try:
            # No part of what is computed: whoever watches the operations of the network need not see it.
            with torch._C.DisableTorchFunction():
                check_finite(
                    value.detach(),
                    "`module`: its output at the anchor",
                    "start from finite weights and inputs",
                )
        except RuntimeError:  # inside vmap, or on the meta device, there are no numbers to look at
            return
        self._checked = True

    def _pair(self, outputs: Outputs, anchor: Tree, moved: Tree, wants_grad: bool) -> tuple[Tensor, Tensor]:
        """f(a, x) and J(a, x)(w - a), by forward mode or, where an operation has none, by reverse mode."""
        load_forward_mode()
        # Inside another forward mode torch raises here: torch.func.jvp would nest, and then lose the derivative
        # of an autograd.Function without a word.
        with dual_level():
            duals = {name: make_dual(value, moved[name]) for name, value in anchor.items()}
            # Inside the forward of an autograd.Function, as that of a checkpoint, torch makes none.
            on = unpack_dual(next(iter(duals.values()))).tangent is not None
            if on and not self._reverse:
                try:
                    return _forward_mode(outputs, duals)
                except torch.OutOfMemoryError:
                    raise
                except RuntimeError as error:
                    if _HOOKS in str(error):
                        raise
        try:
            pair = _reverse_mode(outputs, anchor, moved)
        except NotImplementedError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"`module`: has an operation with neither forward mode nor a second derivative ({reason}); "
                "write it in others"
            ) from error
        self._reverse = self._reverse or on
        if wants_grad and torch.is_grad_enabled():
            raise UserError(
                "`module`: has an operation without forward mode, so that its linearisation has no gradient by "
                "the inputs; detach them"
            )
        return pair

    def relinearize(self) -> None:
        """Move the anchor to w: F becomes f(w, x) + J(w, x)(w' - w), F(w, x) becomes f(w, x)."""
        own = dict(self.network.named_parameters())
        with torch.no_grad():
            for name, value in self.anchor.named_buffers():
                value.copy_(own[name])

    def train(self, mode: bool = True) -> Linearized:
        """Set ``training`` here alone: the layers stay in the mode they were linearised in."""
        self.training = mode
        return self

    def extra_repr(self) -> str:
        """The formula."""
        return "f(a, x) + J(a, x)(w - a)"


class _Products(TorchFunctionMode):
    """In forward mode, layers that are products of inputs and weights: (xW)' = xW' + x'W.

    By itself torch fills in zeros where the inputs of the first layer have no tangent, and multiplies them.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        known = func in _PRODUCTS and len(args) > 1
        return (partial(_product, func) if known else func)(*args, **(kwargs or {}))


def _product(
    function: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *rest: Any,
    **how: Any,
) -> Tensor:
    """The layer with its tangent."""
    (x0, x1), (w0, w1) = unpack_dual(x), unpack_dual(weight)
    if w1 is None:
        return function(x, weight, bias, *rest, **how)
    b0, b1 = (None, None) if bias is None else unpack_dual(bias)
    value = function(x0, w0, b0, *rest, **how)
    along = function(x0, w1, b1, *rest, **how)
    return make_dual(value, along if x1 is None else along + function(x1, w0, None, *rest, **how))


def _forward_mode(outputs: Outputs, duals: Tree) -> tuple[Tensor, Tensor]:
    """Both in one pass. Its graph is that of the tangent, which is linear in w - a: backward is J^T u."""
    with _Products():
        value, along = unpack_dual(outputs(duals))
    return value, torch.zeros_like(value) if along is None else along


def _reverse_mode(outputs: Outputs, anchor: Tree, moved: Tree) -> tuple[Tensor, Tensor]:
    """J v as the derivative of u -> (J^T u) . v, with J^T u for its gradient by v."""
    with torch.enable_grad():
        leaves = [value.detach().requires_grad_() for value in anchor.values()]
        out = outputs(dict(zip(anchor, leaves, strict=True)))
        if not out.requires_grad:
            return out, torch.zeros_like(out)
        u = torch.zeros_like(out, requires_grad=True)
        pulled = torch.autograd.grad(out, leaves, u, create_graph=True, materialize_grads=True)
        slope = torch.stack(
            [(g * v.detach()).sum() for g, v in zip(pulled, moved.values(), strict=True)]
        ).sum()
        (along,) = torch.autograd.grad(slope, u, retain_graph=True, materialize_grads=True)
    return out.detach(), _Adjoint.apply(along, out, leaves, *moved.values())  # pyright: ignore[reportReturnType]


class _Adjoint(torch.autograd.Function):
    """J v, whose gradient by v is J^T u."""

    @staticmethod
    def forward(ctx: Any, along: Tensor, out: Tensor, leaves: list[Tensor], *_moved: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        # They are neither inputs nor outputs: nothing that save_for_backward could keep.
        ctx.out, ctx.leaves = out, leaves
        return along.clone()

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        pulled = torch.autograd.grad(
            ctx.out,
            ctx.leaves,
            u,
            retain_graph=True,
            create_graph=torch.is_grad_enabled(),
            materialize_grads=True,
        )
        return None, None, None, *pulled


def _want_grad(inputs: Any) -> bool:
    """Whether a tensor among the inputs requires grad; taken to be so where it is kept in an unknown object."""
    if isinstance(inputs, Tensor):
        return inputs.requires_grad
    if isinstance(inputs, Mapping):
        return any(_want_grad(value) for value in inputs.values())
    if isinstance(inputs, tuple | list):
        return any(_want_grad(value) for value in inputs)
    return not isinstance(inputs, str | int | float | None)


def linearize(module: nn.Module, *, output: Output | None = None) -> Linearized:
    r"""The linearisation of a network at its present parameters a: F(w, x) = f(a, x) + J(a, x) (w - a).

    It trains like any module, with any optimiser: the gradient of F by w is that of f at the anchor,
    J(a, x)^T u. It has the parameters of f under their names, which start at a; frozen ones stay frozen. A
    training step costs 5/3 of one of f, counted in matrix products: value and tangent are computed in one
    pass. Where an operation has no forward mode it costs two to four.

    To train it lazily, scale it: ``scale(linearize(f), alpha)`` is the same function as
    ``linearize(scale(f, alpha))``, and only the first tells an engine what alpha is.

    Args:
        module: f, with outputs of any shape for inputs of any kind; it is copied.
        output: what picks the outputs from what the module returns, where that is no tensor.

    Returns:
        The linearised module; ``relinearize()`` moves its anchor to w.

    Raises:
        UserError: if nothing requires grad, a batch norm uses the statistics of the batch, a layer draws
            random numbers, or the module is linearised already; at the first call if f(a, x) is not finite;
            if the module checkpoints activations.

    Source: Chizat, Oyallon, Bach 2019, section 1.

    >>> f = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    >>> x = torch.ones(2, 3)
    >>> linear = linearize(f)
    >>> torch.equal(linear(x), f(x))
    True
    """
    if any(isinstance(each, Linearized) for each in module.modules()):
        raise UserError("`module`: is linearised already, and is its own linearisation")
    if not trainable(module):
        raise UserError("`module`: nothing requires grad, so there is nothing to linearise in")
    if hasattr(module, "anchor"):
        raise UserError("`module`: has an attribute 'anchor', which the linearised module needs; rename it")
    check_separable(module)
    return Linearized(copy.deepcopy(module), output)
