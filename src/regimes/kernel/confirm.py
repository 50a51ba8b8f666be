"""Which parameters go by rule: those for which the rules give, on two samples, what autograd gives on each alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, UntypedStorage
from torch.nn.modules import module as torch_module

from regimes.core.batch import Inputs, count, take, transform
from regimes.core.derivative import bind
from regimes.core.error import UserError
from regimes.core.graph import passed, reached
from regimes.core.layer import is_stackable
from regimes.kernel.network import Network, Pass, record
from regimes.kernel.rule import parameter_gradients, rule_of
from regimes.kernel.site import IrregularError, Site, locate

__all__ = ["Survey", "survey"]


@dataclass(frozen=True)
class Survey:
    """How a network uses its parameters.

    Attributes:
        sites: its uses in order; None where nothing goes by rule.
        ruled: the parameters that go by rule.
        rest: those that go by rows of the Jacobian. What is in neither has no part in the outputs.
        outputs: c.
        head: the place of the use whose outcome is the output, if there is one.
        silent: the places of the uses that nothing comes back to: the outputs do not depend on them.
        graph: bytes of one sample that a forward pass leaves behind for the backward pass.
        flow: bytes of one sample that a backward pass brings to all uses at once.
    """

    sites: tuple[Site | None, ...]
    ruled: frozenset[str]
    rest: tuple[str, ...]
    outputs: int
    head: int | None
    silent: frozenset[int]
    graph: int
    flow: int

    @property
    def copied(self) -> frozenset[int]:
        """The uses whose inputs are changed in place later."""
        return frozenset(i for i, site in enumerate(self.sites) if site is not None and site.copied)


def survey(network: Network, probe: Inputs) -> Survey:
    """Look at one sample, then at two, and confirm the rules on them.

    Args:
        network: f.
        probe: two samples, different ones where there are any.
    """
    before = _buffers(network)
    with record(network, take(probe, slice(0, 1))) as one:
        pass
    with record(network, probe) as two:
        hidden, silent = reached(two.outputs), _silent(two)
        found = _located(one, two)
        rest = set(one.recorder.rest | two.recorder.rest)
        rest |= {name for name, leaf in two.leaves.items() if id(leaf) in hidden}
        head = _head(two)
    _check_state(network, hidden, before)
    used = {
        name
        for run in (one, two)
        for use in run.uses
        for r in use.draft.references.values()
        for name in r.names
    }
    if found is None:
        found, rest = [None] * len(two.uses), rest | used
    for i, use in enumerate(two.uses):
        if found[i] is None:
            rest.update(name for r in use.draft.references.values() for name in r.names)
    sites = _without(found, rest)
    sure = _is_plain(network)
    sites, wrong = (sites, set[str]()) if sure else _confirmed(network, probe, sites, used - rest)
    rest |= wrong
    order = [name for name in network.trained if name in rest]
    ruled, c, n = frozenset(used - rest), two.outputs.shape[1], count(probe)
    flow = sum(use.shape.numel() for use in two.uses) * two.outputs.element_size() // n
    graph = 4 * flow if sure else max(flow, _graph(network, probe) // n)
    return Survey(tuple(_without(sites, rest)), ruled, tuple(order), c, head, silent, graph, flow)


def _buffers(network: Network) -> dict[str, int]:
    """How often each buffer of a layer in train mode has been changed."""
    return {
        f"{name}.{key}": buffer._version
        for name, sub in network.module.named_modules()
        if sub.training
        for key, buffer in sub.named_buffers(recurse=False)
        if buffer.is_floating_point() and not buffer.is_inference()
    }


def _check_state(network: Network, reached_leaves: Collection[int], before: Mapping[str, int]) -> None:
    """Raise if the network moves when it is called, or holds parameters where they cannot be replaced."""
    for name, version in _buffers(network).items():
        if before.get(name, version) != version:
            raise UserError(
                f"`module`: changes its buffer '{name.removeprefix('.')}' at every call in train mode; "
                "call .eval() first"
            )
    for name, parameter in network.module.named_parameters():
        if id(parameter) in reached_leaves:
            raise UserError(
                f"`module`: '{name}' is used from elsewhere than its place in the module (a list, a cache), so that "
                "its part of the kernel would be missing; use it by its name, in the forward of the module"
            )


def _graph(network: Network, probe: Inputs) -> int:
    """Bytes that a forward pass on the probe leaves behind; 0 where torch cannot tell."""
    kept: dict[int, UntypedStorage] = {}
    own = {value.untyped_storage().data_ptr() for value in network.values.values()}
    try:
        with _weighed(kept), record(network, probe) as run:
            for use in run.uses:
                for x in use.draft.inputs:
                    _keep(kept, x)
    except (RuntimeError, ValueError):
        # A module that allows no hooks: it calls torch.func, or says so itself.
        return 0
    return sum(storage.nbytes() for at, storage in kept.items() if at not in own)


def _keep(kept: dict[int, UntypedStorage], tensor: Tensor) -> None:
    """Note where a tensor lies; held, lest another is put in its place and not counted."""
    storage = tensor.untyped_storage()
    kept[storage.data_ptr()] = storage


@contextmanager
def _weighed(kept: dict[int, UntypedStorage]) -> Iterator[None]:
    """Inside the block whatever autograd keeps is noted by where it lies."""

    def pack(tensor: Tensor) -> Tensor:
        _keep(kept, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def _is_plain(network: Network) -> bool:
    """Whether f is a sequence of our own layers, untouched: samples cannot meet in it."""
    kinds = ("forward_pre", "forward", "backward_pre", "backward")
    hooked = any(getattr(torch_module, f"_global_{kind}_hooks") for kind in kinds)
    if network.output is not None or hooked or not is_stackable(network.module):
        return False
    every = network.module.modules()
    return not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in every)


def _located(one: Pass, two: Pass) -> list[Site | None] | None:
    """The sites, None for a use that no rule reaches; None at all if the two passes do different things."""
    if len(one.uses) != len(two.uses):
        return None
    sites: list[Site | None] = []
    for a, b in zip(one.uses, two.uses, strict=True):
        try:
            sites.append(locate(a, b))
        except IrregularError:
            sites.append(None)
    return sites


def _without(sites: Sequence[Site | None], rest: Iterable[str]) -> list[Site | None]:
    """The sites that some parameter still goes by."""
    left = set(rest)
    return [None if s is None or {n for _, names in s.names for n in names} <= left else s for s in sites]


def _head(run: Pass) -> int | None:
    """The use whose outcome is the output itself, if it is the last and linear on (n, d)."""
    if not run.uses:
        return None
    last = run.uses[-1]
    whole = last.edge.node is run.outputs.grad_fn and last.shape == run.outputs.shape
    return len(run.uses) - 1 if whole and last.draft.kind == "linear" else None


def _silent(run: Pass) -> frozenset[int]:
    """The uses that no backward pass from the outputs comes by."""
    nodes = passed(run.outputs)
    return frozenset(i for i, use in enumerate(run.uses) if use.edge.node not in nodes)


def _mixed(
    network: Network, probe: Inputs, sites: Sequence[Site | None], names: set[str]
) -> dict[str, Tensor]:
    """The gradients of a mix of the outputs by rule, (2, *shape) each; a rule that fails leaves its names out."""
    copied = {i for i, site in enumerate(sites) if site is not None and site.copied}
    sums: dict[str, Tensor] = {}
    failed: set[str] = set()
    with record(network, probe, copied) as run, torch.no_grad():
        mix = _mix(run.outputs).expand_as(run.outputs)
        backs = run.back(run.outputs, [use.edge for use in run.uses], mix, False)
        for site, use, back in zip(sites, run.uses, backs, strict=True):
            if site is None or back is None:
                continue
            try:
                with torch.enable_grad():
                    for name, each in parameter_gradients(
                        rule_of(site, use, count(probe)), back, names, run.leaves
                    ):
                        sums[name] = sums[name] + each if name in sums else each
            except (RuntimeError, ValueError, TypeError, IndexError):
                failed |= site.trains
        for name in names - failed - sums.keys():
            sums[name] = network.values[name].new_zeros(2, *network.values[name].shape)
    return {name: each.detach() for name, each in sums.items() if name not in failed}


def _alone(network: Network, probe: Inputs, names: Sequence[str]) -> dict[str, tuple[Tensor, ...]]:
    """The same by autograd, one sample after the other; by name the gradient of each sample."""
    rows: list[tuple[Tensor, ...]] = []
    for i in range(count(probe)):
        leaves = network.leaves()
        with torch.enable_grad(), bind(network.module, leaves):
            outputs = network.outputs(transform(take(probe, slice(i, i + 1)), Tensor.clone))
            wanted = [leaves[name] for name in names]
            if outputs.requires_grad:
                mix = _mix(outputs)[None]
                found = torch.autograd.grad(outputs, wanted, mix, materialize_grads=True)
                rows.append(tuple(g.to_dense() if g.is_sparse else g for g in found))
            else:
                rows.append(tuple(torch.zeros_like(leaf) for leaf in wanted))
    return dict(zip(names, zip(*rows, strict=True), strict=True))


def _mix(outputs: Tensor) -> Tensor:
    return torch.linspace(1.0, 2.0, outputs.shape[1], dtype=outputs.dtype, device=outputs.device)


def _confirmed(
    network: Network, probe: Inputs, sites: list[Site | None], names: set[str]
) -> tuple[list[Site | None], set[str]]:
    """The sites as they hold, and the parameters for which they do not."""
    if not names:
        return sites, set()
    wrong, blind = _compared(network, probe, sites, names, names)
    if blind or wrong:
        # A gradient of zero confirms nothing: look where it is not (a read-out that starts at zero).
        network = replace(network, values=_moved(network.values, network.trained))
    if blind:
        wrong_there, blind = _compared(network, probe, sites, blind, names)
        wrong |= wrong_there
    folded = [site is not None and site.out.fold > 1 and bool(site.trains & wrong) for site in sites]
    if any(folded):
        other = [site.inner() if flip and site else site for site, flip in zip(sites, folded, strict=True)]
        still, unseen = _compared(network, probe, other, wrong, names)
        if (still | unseen) < wrong:
            sites, wrong, blind = other, still, blind | unseen
    return sites, wrong | _doubtful(sites, wrong, blind, names)


def _doubtful(sites: Sequence[Site | None], wrong: set[str], blind: set[str], names: set[str]) -> set[str]:
    """Of the parameters without a gradient on the probe those whose rule nothing speaks for.

    The samples take the same way to all parameters of a use: one that is confirmed speaks for the others. And
    where nothing was wrong anywhere, an axis that only the samples run along is not in doubt.
    """
    seen = names - wrong - blind
    doubtful = set()
    for site in sites:
        if site is not None and not site.trains & seen and (wrong or site.out.fold > 1):
            doubtful |= site.trains & blind
    return doubtful


def _compared(
    network: Network, probe: Inputs, sites: Sequence[Site | None], names: set[str], every: set[str]
) -> tuple[set[str], set[str]]:
    """The names whose rule gives something else than autograd, and those for which both give nothing.

    Nothing is what rounding makes of zero beside the gradients of ``every`` parameter.
    """
    order = sorted(names)
    exact = _alone(network, probe, sorted(every))
    swap = torch.tensor([1, 0])
    try:
        # In both orders: a module may treat samples by their rank among the others.
        ruled = _mixed(network, probe, sites, names)
        turned = _mixed(network, take(probe, swap), sites, names)
    except RuntimeError:  # a backward pass that the recorder disturbs
        return names, set()
    sizes = {name: _sizes(each) for name, each in exact.items()}
    noise = 1e3 * torch.finfo(network.dtype).eps * torch.stack(list(sizes.values())).sum(0)
    small = {name for name in order if not (sizes[name] > noise).all()}
    wrong = {
        name
        for name in order
        if name not in ruled
        or name not in turned
        or not _close(ruled[name], exact[name], sizes[name], noise)
        or not _close(turned[name], exact[name][::-1], sizes[name].flip(0), noise.flip(0))
    }
    return wrong, small - wrong


def _moved(values: Mapping[str, Tensor], trained: Sequence[str]) -> dict[str, Tensor]:
    """Parameters a little elsewhere."""
    generator = torch.Generator().manual_seed(0)
    moved = dict(values)
    for name in trained:
        value = values[name]
        draw = torch.randn(value.shape, generator=generator, dtype=value.dtype).to(value.device)
        moved[name] = value + 0.1 * draw * (value.square().mean().sqrt() + 0.1)
    return moved


def _sizes(each: Iterable[Tensor]) -> Tensor:
    """The norm of the gradient of each sample."""
    return torch.stack([torch.linalg.vector_norm(one) for one in each])


def _close(found: Tensor, each: Sequence[Tensor], size: Tensor, noise: Tensor) -> bool:
    """Equal up to rounding, sample by sample: a difference below sqrt(eps) of the size of what is expected."""
    away = _sizes(a - b for a, b in zip(found, each, strict=True))
    return bool((away <= torch.finfo(found.dtype).eps ** 0.5 * size + noise).all())
