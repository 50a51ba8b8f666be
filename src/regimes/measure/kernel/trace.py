"""One recorded forward pass: which linear layers go by rule, what they were given, what flows back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from regimes.core.derivative import bind, columns
from regimes.core.layer import is_stackable
from regimes.measure.kernel.rules import LinearFactor, LinearRule, linear_rule

__all__ = ["IrregularError", "Network", "linear_factors", "plan", "width"]


class IrregularError(RuntimeError):
    """A layer that the plan takes by rule was not used by that rule on another tile; never reaches a user."""


@dataclass(frozen=True)
class Network:
    """f as a function of its named parameters.

    Attributes:
        module: f.
        values: w by name.
        trained: the names that the kernel is taken over.
    """

    module: nn.Module
    values: Mapping[str, Tensor]
    trained: tuple[str, ...]


@dataclass(frozen=True)
class _Use:
    """One call of a linear layer.

    Attributes:
        inputs: A.
        version: of A when it was used.
        edge: what dF/dz comes back through; it stays right if z is changed in place afterwards.
        features: e.
    """

    inputs: Tensor
    version: int
    edge: GradientEdge
    features: int

    def fits(self, samples: int) -> bool:
        """Whether A has a row for each sample and still holds what the layer saw."""
        return self.inputs.shape[0] == samples and self.inputs._version == self.version


@dataclass(frozen=True)
class _Trace:
    """A forward pass: outputs (n, c) with their graph, the leaves, and the use of each watched layer.

    A layer that was used twice, or in another way than on inputs (n, d), has None.
    """

    outputs: Tensor
    leaves: Mapping[str, Tensor]
    uses: Mapping[str, _Use | None]


@contextmanager
def _watched(network: Network, layers: Collection[str], uses: dict[str, _Use | None]) -> Iterator[None]:
    """Inside the block every call of one of the layers leaves its use in ``uses``."""

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def note(_layer: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            plain = name not in uses and len(args) == 1 and isinstance(out, Tensor) and out.requires_grad
            if plain and args[0].dim() == 2:
                given = args[0].detach()
                uses[name] = _Use(given, given._version, get_gradient_edge(out), out.shape[-1])
            else:
                uses[name] = None

        return note

    hooks = [network.module.get_submodule(name).register_forward_hook(watch(name)) for name in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _record(network: Network, x: Tensor, layers: Collection[str]) -> _Trace:
    """Run f on x and watch some layers."""
    trained = set(network.trained)
    leaves = {name: value.detach().requires_grad_(name in trained) for name, value in network.values.items()}
    uses: dict[str, _Use | None] = {}
    with torch.enable_grad(), bind(network.module, leaves), _watched(network, layers, uses):
        outputs = columns(network.module(x), len(x))
    return _Trace(outputs, leaves, uses)


def _graph(outputs: Tensor) -> tuple[set[Any], Counter[int]]:
    """The nodes behind the outputs, and for each leaf (by id) the number of edges that lead to it."""
    seen: set[Any] = set()
    edges: Counter[int] = Counter()
    waiting = [outputs.grad_fn] if outputs.grad_fn is not None else []
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        for following, _ in node.next_functions:
            if following is None:
                continue
            leaf = getattr(following, "variable", None)
            if leaf is not None:
                edges[id(leaf)] += 1
            waiting.append(following)
    return seen, edges


def _grads(trace: _Trace, uses: list[_Use]) -> list[Tensor]:
    """df_a/dz for each use, (n, c, e), by one backward pass per output; weight gradients are never formed."""
    c = trace.outputs.shape[1]
    edges = [use.edge for use in uses]
    columns_of: list[tuple[Tensor | None, ...]] = []
    for a in range(c):
        unit = torch.zeros_like(trace.outputs)
        unit[:, a] = 1
        columns_of.append(torch.autograd.grad(trace.outputs, edges, unit, a < c - 1, allow_unused=True))
    grads = []
    for use, per_output in zip(uses, zip(*columns_of, strict=True), strict=True):
        nothing = use.inputs.new_zeros(()).expand(use.inputs.shape[0], use.features)
        found = [nothing if one is None else one for one in per_output]
        grads.append(found[0][:, None] if c == 1 else torch.stack(found, 1))
    return grads


def linear_factors(network: Network, x: Tensor, rules: Mapping[str, LinearRule]) -> dict[str, LinearFactor]:
    """The factors of a tile for the layers of the plan.

    Raises:
        IrregularError: if a layer is used otherwise than when the plan was made.
    """
    trace = _record(network, x, rules)
    uses = [trace.uses.get(name) for name in rules]
    fitting = [use for use in uses if use is not None and use.fits(len(x))]
    if len(fitting) < len(uses):
        raise IrregularError("a linear layer is not used once on inputs (n, d)")
    found = zip(rules.items(), fitting, _grads(trace, fitting), strict=True)
    return {name: LinearFactor(rule, use.inputs, grads) for (name, rule), use, grads in found}


def plan(network: Network, probe: Shaped[Tensor, "n ..."]) -> tuple[dict[str, LinearRule], int]:
    """The layers that go by rule, and the number of outputs.

    A layer goes by rule if it is called once on inputs (n, d), if its parameters are used nowhere else (every
    use is an edge of the graph), and if for each sample of the probe alone the rule gives the gradient that
    autograd gives. All others are left to rows of the Jacobian.

    Args:
        network: f.
        probe: one or two different samples.
    """
    named = {
        name: linear_rule(layer, name, network.trained) for name, layer in network.module.named_modules()
    }
    rules = {name: rule for name, rule in named.items() if rule is not None}
    trace = _record(network, probe, rules)
    nodes, edges = _graph(trace.outputs)
    good: dict[str, LinearRule] = {}
    for name, rule in rules.items():
        use = trace.uses.get(name)
        alone = all(edges[id(trace.leaves[p])] == 1 for p in rule.parameters)
        if use is not None and use.fits(len(probe)) and use.edge.node in nodes and alone:
            good[name] = rule
    if good and not _plain(network.module):
        good = _confirmed(network, probe, good)
    return good, trace.outputs.shape[1]


def _plain(module: nn.Module) -> bool:
    """Whether the module is a sequence of our own layers, untouched: samples cannot meet in it."""
    hooked = (m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in module.modules())
    return is_stackable(module) and not any(hooked)


def _confirmed(network: Network, probe: Tensor, rules: Mapping[str, LinearRule]) -> dict[str, LinearRule]:
    """The rules that give, for each sample of the probe by itself, the gradient of a mix of the outputs."""
    try:
        factors = linear_factors(network, probe, rules)
    except RuntimeError:
        return {}
    names = [name for rule in rules.values() for name in rule.parameters]
    right = dict.fromkeys(rules, True)
    for i in range(len(probe)):
        alone = _record(network, probe[i : i + 1], ())
        c = alone.outputs.shape[1]
        mix = torch.linspace(1.0, 2.0, c, dtype=alone.outputs.dtype, device=alone.outputs.device)
        leaves = [alone.leaves[name] for name in names]
        exact = dict(zip(names, _gradients(alone.outputs, leaves, mix[None]), strict=True))
        for name, factor in factors.items():
            back = mix @ factor.grads[i]
            forms = {
                "weight": factor.rule.weight**0.5 * torch.outer(back, factor.inputs[i]),
                "bias": back,
            }
            for parameter in factor.rule.parameters:
                right[name] &= _close(forms[parameter.rpartition(".")[2]], exact[parameter])
    return {name: rule for name, rule in rules.items() if right[name]}


def _gradients(outputs: Tensor, leaves: list[Tensor], mix: Tensor) -> tuple[Tensor, ...]:
    if not outputs.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    return torch.autograd.grad(outputs, leaves, mix, materialize_grads=True)


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding: a difference below sqrt(eps) in relative norm."""
    size = torch.maximum(torch.linalg.vector_norm(a), torch.linalg.vector_norm(b))
    return bool(torch.linalg.vector_norm(a - b) <= torch.finfo(a.dtype).eps ** 0.5 * size)


def width(network: Network, x: Tensor) -> int:
    """The number of entries per sample that the layers put out: what a graph of f holds, roughly."""
    sizes: list[int] = []

    def note(_layer: nn.Module, _args: tuple[Any, ...], out: Any) -> None:
        if isinstance(out, Tensor):
            sizes.append(out.numel())

    hooks = [m.register_forward_hook(note) for m in network.module.modules() if not any(m.children())]
    try:
        with torch.no_grad(), bind(network.module, network.values):
            network.module(x)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(sizes) // len(x)
