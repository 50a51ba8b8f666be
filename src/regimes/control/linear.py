r"""The linearised module: f(a, x) + J(a, x)(w - a), with parameters w of its own and a movable anchor a."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from regimes.control.eager import as_written
from regimes.control.held import HeldBatch, forecast
from regimes.control.scale import duplicate
from regimes.control.tangent import Route, by_reverse_mode, settle, transposed_twice
from regimes.control.tape import Tape, record
from regimes.core.batch import check_finite, transform
from regimes.core.check import checked
from regimes.core.derivative import RANDOM, Output, bind, check_separable, plain, random_state
from regimes.core.error import UserError
from regimes.core.forward import by_forward_mode, nested
from regimes.core.graph import reached
from regimes.core.tree import Tree, sub, trainable

__all__ = ["Linearized", "check_linearizable", "linearize", "linearize_at"]


_HOOKS = (
    "`module`: activations are saved in a way of their own (checkpointing, offloading), inside it or around it; a "
    "layer that runs again in the backward pass would run at w, away from the anchor; switch that off"
)
_RESERVED = ("anchor", "nonlinear")


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


@checked
class Linearized(nn.Module):
    r"""F(w, x) = f(a, x) + J(a, x) (w - a), an ordinary module, linear in its parameters w.

    Its parameters, buffers and submodules are those of f, under the same names; the anchor comes on top, as
    buffers ``anchor.<name>``. The layers stay in the mode they were in: a linear function has but one.

    Attributes:
        nonlinear: f, with w for its parameters: ``nonlinear(x)`` is f(w, x).
        anchor: a, one buffer for each parameter that required grad.
    """

    nonlinear: nn.Module
    anchor: nn.Module

    def __init__(self, network: nn.Module, output: Output | None = None) -> None:
        super().__init__()
        # Not a submodule, or each name would have a prefix. What it holds is registered here as well.
        self.__dict__["nonlinear"] = network
        self._parameters = network._parameters
        self._buffers = network._buffers
        self._non_persistent_buffers_set = network._non_persistent_buffers_set
        self._modules.update(network._modules)
        self.add_module("anchor", _Anchor(trainable(network)))
        self._output = output
        self._route: Route | None = None
        self._finite = True  # whether f(a, x) is looked at, at the first call

    def forward(self, *args: Any, **named: Any) -> Tensor:
        """f(a, x) + J(a, x)(w - a), of the shape of f(w, x)."""
        return as_written(self._run, args, named)

    def hold(self, *args: Any, **named: Any) -> HeldBatch:
        """F on one batch that comes again and again, with all that does not hang on w computed once.

        Args:
            args: x, as the module takes them.
            named: those by name.

        Returns:
            What gives F(w, x) at each call, at the parameters of that moment; its ``bytes`` are what it keeps.

        Raises:
            UserError: as the first call of the module; or if inputs require grad, or are no tensors.

        >>> linear, x = linearize(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))), torch.ones(2, 3)
        >>> held = linear.hold(x)
        >>> torch.equal(held(), linear(x))
        True
        """
        return HeldBatch(self, args, named)

    def held_bytes(self, *args: Any, **named: Any) -> int:
        """The bytes that :meth:`hold` would keep of a batch, told from a few of its samples; 0 where it can keep none.

        >>> linear = linearize(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)))
        >>> linear.held_bytes(torch.ones(100, 3)) == linear.hold(torch.ones(100, 3)).bytes
        True
        """
        return forecast(self, args, named)

    def _run(self, args: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
        """F(w, x)."""
        if torch.is_inference_mode_enabled():
            # There forward mode loses every tangent without a word.
            with torch.inference_mode(False), torch.no_grad():
                return self._run(transform(args, plain), transform(named, plain))
        anchor, own = self.anchored()
        moved = sub({name: own[name] for name in anchor}, anchor)
        with _written_out():
            value, along = self._pair(args, named, anchor, moved)
        return value + along

    def anchored(self) -> tuple[Tree, Tree]:
        """a, and all parameters, by name.

        Raises:
            UserError: if something requires grad that has no anchor.
        """
        anchor = dict(self.anchor.named_buffers())
        own = dict(self.nonlinear.named_parameters())
        if thawed := [name for name, p in own.items() if p.requires_grad and name not in anchor]:
            raise UserError(
                f"`module`: '{thawed[0]}' requires grad, but was frozen when the module was linearised; "
                "linearise it again"
            )
        return anchor, own

    def pushed(self, args: tuple[Any, ...], named: Mapping[str, Any], along: Tree) -> tuple[Tensor, Tensor]:
        """f(a, x) and J(a, x) v, the second with the graph that leads to v."""
        with _written_out():
            return self._pair(args, named, dict(self.anchor.named_buffers()), along)

    def tape(self, args: tuple[Any, ...], named: Mapping[str, Any]) -> Tape | None:
        """J v and J^T u on these inputs, at the anchor as it is; None where they have to be computed each time."""
        anchor = dict(self.anchor.named_buffers())
        with _written_out():
            if self._route is None:
                self._look(args, named, anchor)
            if self._route is not by_forward_mode:
                return None
            own, buffers = [*self.nonlinear.parameters()], dict(self.nonlinear.named_buffers())
            before, random = _versions(buffers), random_state()
            given = [each for each in tree_leaves((args, named)) if isinstance(each, Tensor)]
            found = record(partial(self._outputs, args, named), anchor, [*own, *buffers.values(), *given])
        if random_state() != random:
            raise UserError(RANDOM)
        # What counts or averages at each call has to be called each time.
        return found if _versions(dict(self.nonlinear.named_buffers())) == before else None

    def _pair(
        self, args: tuple[Any, ...], named: Mapping[str, Any], anchor: Tree, moved: Tree
    ) -> tuple[Tensor, Tensor]:
        """f(a, x) and J(a, x)(w - a)."""
        outputs = partial(self._outputs, args, named)
        if nested():
            return transposed_twice(outputs, anchor, moved)
        # Inside the forward of an autograd.Function, as that of a checkpoint, torch makes no tangents.
        on = torch._C._is_fwd_grad_enabled()
        if on and self._route is None:
            self._look(args, named, anchor)
        route = (self._route or by_forward_mode) if on else by_reverse_mode
        try:
            pair = route(outputs, anchor, moved)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if not on or _HOOKS in str(error):
                raise
            # These inputs may take another way through the network, with other operations on it.
            self._look(args, named, anchor)
            route = self._route or by_forward_mode
            pair = route(outputs, anchor, moved)
        if route is not by_forward_mode and torch.is_grad_enabled() and _want_grad((args, named)):
            raise UserError(
                "`module`: has an operation without forward mode, so that its linearisation has no gradient by "
                "the inputs; detach them"
            )
        return pair

    def _outputs(self, args: tuple[Any, ...], named: Mapping[str, Any], parameters: Tree) -> Tensor:
        """f at these parameters."""
        with bind(self.nonlinear, parameters):
            found = self.nonlinear(*args, **named)
        found = found if self._output is None else self._output(found)
        if not isinstance(found, Tensor) or not found.is_floating_point():
            kind = found.dtype if isinstance(found, Tensor) else type(found).__name__
            raise UserError(
                f"`module`: gave outputs of type {kind}, expected a tensor of real numbers; pick them: "
                "linearize(module, output=lambda out: out.logits)"
            )
        return found

    def _look(self, args: tuple[Any, ...], named: Mapping[str, Any], anchor: Tree) -> None:
        """Once: raise if f(a, x) is not finite, not a function of a and x, or hides a parameter; find the route."""

        def outputs(parameters: Tree) -> Tensor:
            # Of copies, for a network that overwrites its inputs.
            return self._outputs(transform(args, _copy), transform(named, _copy), parameters)

        kept, random = _versions(dict(self.nonlinear.named_buffers()), anchor), random_state()
        with torch.enable_grad():
            value = outputs(anchor)
        if value.device.type == "meta":  # there are no numbers to look at
            return
        if random_state() != random:
            raise UserError(RANDOM)
        now = _versions(dict(self.nonlinear.named_buffers()), anchor)
        changed = [name for name in now if kept.get(name) != now[name]]
        # A buffer that only counts does no harm.
        if changed and (changed[-1] in anchor or not _equal(outputs(anchor), value)):
            raise UserError(
                f"`module`: '{changed[-1]}' changes at every call, and f(a, x) with it; call .eval(), or take that out"
            )
        if value.requires_grad and not _want_grad((args, named)) and _kept(value, outputs(anchor)):
            raise UserError(
                "`module`: keeps a parameter outside `named_parameters` too, where no anchor can replace it"
            )
        if self._finite:
            # No part of what is computed: whoever watches the operations of the network need not see it.
            with torch._C.DisableTorchFunction():
                check_finite(
                    value.detach(),
                    "`module`: its output at the anchor",
                    "start from finite weights and inputs",
                )
        self._route = settle(outputs, anchor)

    def relinearize(self) -> None:
        """Move the anchor to w: F becomes f(w, x) + J(w, x)(w' - w), F(w, x) becomes f(w, x)."""
        own = dict(self.nonlinear.named_parameters())
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


@contextmanager
def _written_out() -> Iterator[None]:
    """Fused attention has no forward mode (pytorch issue 117629); attention written out has."""
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.autograd.graph.disable_saved_tensors_hooks(_HOOKS):
            yield
    except RuntimeError as error:
        if _HOOKS in str(error):
            raise UserError(_HOOKS) from error
        raise


def _want_grad(inputs: Any) -> bool:
    """Whether a tensor among the inputs requires grad; taken to be so where it is kept in an unknown object."""
    if isinstance(inputs, Tensor):
        return inputs.requires_grad
    if isinstance(inputs, Mapping):
        return any(_want_grad(value) for value in inputs.values())
    if isinstance(inputs, tuple | list):
        return any(_want_grad(value) for value in inputs)
    return not isinstance(inputs, str | int | float | None)


def _kept(value: Tensor, again: Tensor) -> bool:
    """Whether two calls lead to one leaf: what a network takes gradients by for itself is new in each."""
    return not reached(value).keys().isdisjoint(reached(again))


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _versions(*trees: Tree) -> dict[str, tuple[int, int]]:
    """Which tensor each is, and how often it was written to."""
    return {name: (id(t), t._version) for tree in trees for name, t in tree.items() if not t.is_inference()}


def _equal(a: Tensor, b: Tensor) -> bool:
    with torch._C.DisableTorchFunction():
        return torch.equal(a, b)


@checked
def linearize(module: nn.Module, *, output: Output | None = None) -> Linearized:
    r"""The linearisation of a network at its present parameters a: F(w, x) = f(a, x) + J(a, x) (w - a).

    It trains like any module, with any optimiser: the gradient of F by w is that of f at the anchor,
    J(a, x)^T u. It has the parameters of f under their names, which start at a; frozen ones stay frozen. A
    training step costs 5/3 of one of f, counted in matrix products: value and tangent are computed in one
    pass. Where an operation has no forward mode it costs two to four. The first call finds out, and takes as
    long as three. Compiled parts run as they were written.

    To train it lazily, scale it: ``scale(linearize(f), alpha)`` is the same function as
    ``linearize(scale(f, alpha))``, and only the first tells an engine what alpha is.

    Args:
        module: f, with outputs of any shape for inputs of any kind; it is copied.
        output: what picks the outputs from what the module returns, where that is no tensor.

    Returns:
        The linearised module; ``relinearize()`` moves its anchor to w.

    Raises:
        UserError: if nothing requires grad, a batch norm uses the statistics of the batch, a layer draws
            random numbers, or the module is linearised already; at the first call if f(a, x) is not finite, draws
            random numbers, changes a buffer, or has an operation with neither forward mode nor a second
            derivative; if the module checkpoints activations.

    Source: Chizat, Oyallon, Bach 2019, section 1.

    >>> f = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    >>> x = torch.ones(2, 3)
    >>> linear = linearize(f)
    >>> torch.equal(linear(x), f(x))
    True
    """
    if not isinstance(module, nn.Module):
        raise UserError(f"`module`: got {type(module).__name__}, expected a torch.nn.Module")
    if output is not None and not callable(output):
        raise UserError(f"`output`: got {output!r}, expected a function, such as lambda out: out.logits")
    check_linearizable(module)
    return Linearized(duplicate(module), output)


def check_linearizable(module: nn.Module) -> None:
    """Raise where :func:`linearize` does, before the first call."""
    if any(isinstance(each, Linearized) for each in module.modules()):
        raise UserError("`module`: is linearised already, and is its own linearisation")
    if not trainable(module):
        raise UserError("`module`: nothing requires grad, so there is nothing to linearise in")
    for name in _RESERVED:
        if hasattr(module, name):
            raise UserError(
                f"`module`: has an attribute '{name}', which the linearised module needs; rename it"
            )
    check_separable(module)


def linearize_at(network: nn.Module, anchor: Tree, before: Linearized | None = None) -> Linearized:
    """The linearisation of a network at any anchor, with all else shared with the network: for an engine.

    Numbers that are not finite are no error here, but the end of a run.

    Args:
        network: f; its own parameters mean nothing, bind others.
        anchor: a, by the names of the parameters that require grad; copied.
        before: its linearisation at another anchor, which knows the way to J v already.
    """
    with bind(network, {name: value.detach().requires_grad_() for name, value in anchor.items()}):
        found = Linearized(network)
    found._finite = False
    found._route = None if before is None else before._route
    return found
