"""The members of one architecture as one program: outputs, losses and gradients of all of them at once."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from regimes.control.scale import LAZY, unscaled
from regimes.control.width import rates, table
from regimes.core.dense import dense_of
from regimes.core.derivative import call
from regimes.core.error import UserError
from regimes.core.layer import Conv2d, Linear, Scaling, aligned, begins_a_line, is_stackable, stack_of
from regimes.core.loss import Loss
from regimes.core.tree import Layout
from regimes.train.linear_members import LinearMembers

__all__ = ["Program", "choose_dtype", "members_of"]

# Activations of about this many entries at a time: smaller pieces cost more calls, larger ones gain nothing.
_ENTRIES = 1 << 19
# Samples at a time where no gradient is wanted: on all of CIFAR-10 a convolution puts out gigabytes.
_SAMPLES = 4096


def members_of(modules: nn.Module | Sequence[nn.Module]) -> list[nn.Module]:
    """One module or several, as a list of at least one."""
    members = [modules] if isinstance(modules, nn.Module) else list(modules)
    if not members:
        raise UserError("`modules`: got an empty list, expected a module or at least one member")
    return members


def choose_dtype(
    modules: Sequence[nn.Module], asked: torch.dtype | None, default: torch.dtype | None
) -> torch.dtype:
    """The dtype of a run: that asked for, else float64 if a member is lazy, else ``default`` or its own."""
    if asked is not None and not asked.is_floating_point:
        raise UserError(f"`dtype`: got {asked}, expected a floating type such as torch.float64")
    lazy = any(unscaled(module)[1] > LAZY for module in modules)
    if asked is None:
        own = next(
            (p.dtype for p in modules[0].parameters() if p.is_floating_point()), torch.get_default_dtype()
        )
        return torch.float64 if lazy else default or own
    if lazy and asked != torch.float64:
        warnings.warn(
            f"alpha above {LAZY:g} in {asked}: alpha (f - f0) loses digits; leave `dtype` out for float64",
            stacklevel=5,
        )
    return asked


class Program:
    """Members of one architecture, evaluated together.

    Parameters are rows of one matrix (members, total). A module that is a sequence of the layers of ``core``
    runs as one stacked program, in pieces whose activations fit the cache; any other module runs member by
    member. On a CPU with a fixed number of threads the numbers of a member do not depend on the other
    members, bit for bit.

    In its methods ``flat`` are rows of the matrix and ``members`` the indices they belong to; inputs x are (n, ...),
    shared by all members, or with ``own`` (m, n, ...), those of each row, and targets y (n,) or (m, n).

    After :meth:`linearize` the members are linear in w, each around an anchor of its own.

    Args:
        modules: the members, modules of one architecture, each scaled or not.
        loss: between F and y.
        dtype: of parameters and inputs.
        own: whether each member has inputs of its own.

    Raises:
        UserError: if the members differ in architecture, or nothing in them trains.
    """

    def __init__(
        self, modules: Sequence[nn.Module], loss: Loss, dtype: torch.dtype, *, own: bool = False
    ) -> None:
        same = all(p.dtype == dtype for m in modules for p in m.parameters() if p.is_floating_point())
        self.modules = list(modules) if same else [copy.deepcopy(module).to(dtype) for module in modules]
        parts = [unscaled(module) for module in self.modules]
        self.networks = [network for network, _, _ in parts]
        self.origins = [origin for _, _, origin in parts]
        self.loss, self.dtype, self.own = loss, dtype, own
        self.layout = Layout.of(self.networks[0])
        self.names = Layout.of(self.modules[0])
        self._check()
        self.device = next(self.networks[0].parameters()).device
        self.alpha = torch.tensor([alpha for _, alpha, _ in parts], dtype=dtype, device=self.device)
        # A frozen parameter is not in the matrix: the stack would take that of the first member for all.
        stackable = all(
            is_stackable(network)
            and all(p.requires_grad for p in network.parameters())
            and not (own and _reshapes(network))
            for network in self.networks
        )
        self._stack = stack_of(self.networks[0]) if stackable else None
        self._dense = dense_of(self.networks[0]) if stackable else None
        self.rates = self._rates()
        self._units = 0
        self.linear: LinearMembers | None = None

    @property
    def _axis(self) -> int:
        """The axis of the samples in the inputs."""
        return 1 if self.own else 0

    def some(self, x: Tensor, samples: slice) -> Tensor:
        """Some of the samples of inputs."""
        return x[:, samples] if self.own else x[samples]

    @property
    def stackable(self) -> bool:
        """Whether the members run as one stack; otherwise one by one."""
        return self._stack is not None

    def linearize(self, flat: Tensor) -> None:
        """Make the members linear in w, with these rows for anchors; ``linear`` moves them.

        Raises:
            UserError: if a network cannot be linearised.
        """
        self.linear = LinearMembers(self.modules, self.networks, self.layout, flat)

    def mask(self, moving: Sequence[tuple[bool, ...]]) -> Tensor:
        """Which entries move, (m, stride), from whether each parameter does, in their order."""
        sizes = torch.tensor(self.layout.sizes, device=self.device)
        found = torch.tensor(moving, device=self.device).repeat_interleave(sizes, 1)
        return torch.nn.functional.pad(found, (0, self._stride - self.layout.total))

    def _check(self) -> None:
        if not self.layout.total:
            raise UserError(
                "`modules`: nothing requires grad, so nothing can train; set requires_grad on a parameter"
            )
        scalings = _speeds(self.networks[0])
        for index, network in enumerate(self.networks):
            if Layout.of(network) != self.layout or _speeds(network) != scalings:
                raise UserError(
                    f"`modules`: member {index} differs from member 0 in shapes or scalings; "
                    "expected one architecture; train other architectures in a call of their own"
                )

    def _rates(self) -> Tensor | None:
        """The factor on the rate of each entry, (total,), or None if all are 1."""
        by_name = rates(self.networks[0])
        if all(rate == 1.0 for rate in by_name.values()):
            return None
        sizes = zip(self.layout.names, self.layout.sizes, strict=True)
        pieces = [torch.full((size,), by_name[name], dtype=torch.float64) for name, size in sizes]
        everywhere = torch.cat(pieces).to(self.device, self.dtype)
        return torch.nn.functional.pad(everywhere, (0, self._stride - len(everywhere)))

    def start(self) -> Tensor:
        """The present parameters of all members, (members, stride): see :meth:`matrix`."""
        return self._matrix([dict(network.named_parameters()) for network in self.networks])

    @property
    def _stride(self) -> int:
        """The length of a row, whole cache lines: products round by where their operands lie."""
        line = 64 // self.dtype.itemsize
        return -(-self.layout.total // line) * line

    def _matrix(self, trees: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """One row a member."""
        rows = torch.zeros(len(trees), self._stride, dtype=self.dtype, device=self.device)
        for row, tree in zip(rows, trees, strict=True):
            row[: self.layout.total] = self.layout.join(tree)
        return rows

    def _tree(self, rows: Tensor) -> dict[str, Tensor]:
        """Views of rows by name, (m, *shape) each."""
        return self.layout.split(rows[:, : self.layout.total])

    def offsets(self, x: Tensor) -> Tensor | None:
        """f(w0, x) of all members, (members, n, c), 0 where a member is not centred; None if none is."""
        if all(origin is None for origin in self.origins):
            return None
        starts = [origin or network for origin, network in zip(self.origins, self.networks, strict=True)]
        rows = self._matrix([dict(each.named_parameters()) for each in starts])
        out = self.raw(rows, torch.arange(len(rows), device=self.device), x, starts)
        centred = torch.tensor([origin is not None for origin in self.origins], device=out.device)
        return torch.where(centred[:, None, None], out, torch.zeros_like(out))

    def pieces(self, count: int, x: Tensor) -> list[slice]:
        """Slices of ``count`` members whose activations fit the cache; a GPU takes all members at once."""
        if not self.stackable:
            return [slice(i, i + 1) for i in range(count)]
        if self.device.type != "cpu":
            return [slice(0, count)]
        samples = x.shape[self._axis]
        if self._dense is not None and self.linear is None:
            size = self._dense.block(min(samples, _SAMPLES), self.dtype)
        else:
            self._units = self._units or _widest(self.networks[0], x[0] if self.own else x)
            size = max(1, _ENTRIES // (self._units * samples))
        number = -(-count // size)  # of nearly equal pieces: a lone member costs as much as two
        ends = [count * i // number for i in range(number + 1)]
        return [slice(*pair) for pair in itertools.pairwise(ends)]

    def _forward(
        self,
        tree: Mapping[str, Tensor],
        members: Tensor,
        x: Tensor,
        networks: Sequence[nn.Module] | None = None,
    ) -> Tensor:
        """f(w, x) of one piece, (m, n, c), for parameters (m, *shape) by name."""
        linear = self.linear if networks is None else None
        networks = networks or self.networks
        samples = x.shape[self._axis]
        if self._stack is None:
            each = []
            for i, k in enumerate(members.tolist()):
                own, its = (
                    {name: value[i] for name, value in tree.items()},
                    begins_a_line(x[i]) if self.own else x,
                )
                each.append(call(networks[k], own, its) if linear is None else linear.one(k, own, its))
            out = torch.stack(each)
        elif linear is not None:
            out = linear.stacked(tree, members, x, aligned(x, self._axis))[:, :samples]
        elif self._dense is not None and not torch.is_grad_enabled():
            out = self._dense.forward(tree, aligned(x, self._axis))[:, :samples].clone()
        else:
            out = call(self._stack, tree, aligned(x, self._axis))[:, :samples]
        return out if out.dim() == 3 else out[..., None]

    def raw(
        self, flat: Tensor, members: Tensor, x: Tensor, networks: Sequence[nn.Module] | None = None
    ) -> Tensor:
        """f(w, x) for the rows of ``flat``, (m, n, c), without a graph; by ``networks``, if given."""
        found = []
        with torch.no_grad():
            for s in self.pieces(len(flat), x):
                tree, some = self._tree(flat[s]), members[s]
                pieces = (x[s] if self.own else x).split(_SAMPLES, self._axis)
                parts = [self._forward(tree, some, part, networks) for part in pieces]
                found.append(torch.cat(parts, 1))
        return torch.cat(found)

    def outputs(self, flat: Tensor, members: Tensor, x: Tensor, offsets: Tensor | None) -> Tensor:
        """F(w, x) for the rows of ``flat``, (m, n, c); ``offsets`` are those rows of :meth:`offsets`."""
        raw = self.raw(flat, members, x)
        return self.alpha[members][:, None, None] * (raw if offsets is None else raw - offsets)

    def losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The mean of loss(F, y), (m,), row by row: a joint reduction splits over threads by the size of the whole."""
        return torch.stack([row.mean() for row in _by_sample(self.loss.per_sample, outputs, y)])

    def fits(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Whether each sample meets its margin, (m, n)."""
        return _by_sample(self.loss.fits, outputs, y)

    def gradient(
        self,
        flat: Tensor,
        members: Tensor,
        x: Tensor,
        y: Tensor,
        offsets: Tensor | None,
        moving: tuple[bool, ...] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """F (m, n, c), the mean of loss(F, y) (m,), and the gradient of that over alpha^2 (m, total).

        By the parameters that move alone, if it is said which do: 0 by the others.
        """
        gradient = torch.empty_like(flat) if moving is None else torch.zeros_like(flat)
        gradient[:, self.layout.total :] = 0
        wanted = [n for n, on in zip(self.layout.names, moving or itertools.repeat(True), strict=False) if on]
        found = []
        for s in self.pieces(len(flat), x):
            start = None if offsets is None else offsets[s]
            some, targets = x[s] if self.own else x, y[s] if y.dim() == 2 else y
            every = self._tree(gradient[s])
            slots = {name: every[name] for name in wanted}
            found.append(
                self._gradient(self._tree(flat[s].detach()), members[s], some, targets, start, slots)
            )
        outputs = torch.cat(found)
        return outputs, self.losses(outputs, y), gradient

    def _gradient(
        self,
        tree: dict[str, Tensor],
        members: Tensor,
        x: Tensor,
        y: Tensor,
        offsets: Tensor | None,
        slots: Mapping[str, Tensor],
    ) -> Tensor:
        """F of one piece, (m, n, c); the gradient of the mean loss over alpha^2 into ``slots``."""
        alpha = self.alpha[members][:, None, None]
        if self._dense is None or self.linear is not None:
            # Whatever mode the engine is iterated in.
            with torch.inference_mode(False), torch.enable_grad():
                leaves = [tree[name].requires_grad_() for name in slots]
                raw = self._forward(tree, members, x)
                scaled = alpha * (raw if offsets is None else raw - offsets)
                mean = _by_sample(self.loss.per_sample, scaled, y).mean(-1) / self.alpha[members] ** 2
                grads: Sequence[Tensor | float] = [0.0] * len(leaves)  # where what moves is used nowhere
                if mean.requires_grad:
                    grads = torch.autograd.grad(mean.sum(), leaves, materialize_grads=True)
            with torch.no_grad():
                for slot, grad in zip(slots.values(), grads, strict=True):
                    slot[...] = grad
            return scaled.detach()
        with torch.no_grad():
            samples, padded = x.shape[self._axis], aligned(x, self._axis)
            raw = self._dense.forward(tree, padded)[:, :samples]
            scaled = alpha * (raw if offsets is None else raw - offsets)
            slope = _by_sample(self.loss.slope, scaled, y) / (samples * alpha)
            slope = torch.nn.functional.pad(slope, (0, 0, 0, padded.shape[self._axis] - samples))
            self._dense.backward(tree, slope, slots)
            return scaled


def _by_sample(function: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, y: Tensor) -> Tensor:
    """What a loss says of each sample, (m, n, ...): of targets of each member, (m, n), as of so many more samples."""
    if y.dim() == 1:
        return function(outputs, y)
    return function(outputs.flatten(0, 1), y.flatten()).unflatten(0, y.shape)


def _speeds(network: nn.Module) -> dict[str, Scaling]:
    """The scalings without the size of the start, which members may differ in."""
    return {name: replace(scaling, std=1.0) for name, scaling in table(network).items()}


def _reshapes(network: nn.Module) -> bool:
    """Whether the first layer makes images of rows: it cannot tell members from samples."""
    first = next(layer for layer in network.modules() if not list(layer.children()))
    return not isinstance(first, Linear | Conv2d)


def _widest(network: nn.Module, x: Tensor) -> int:
    """The most entries any layer puts out for one sample."""
    seen = [1]

    def look(_module: nn.Module, _inputs: tuple[Tensor, ...], out: Tensor) -> None:
        seen.append(math.prod(out.shape[1:]))

    hooks = [layer.register_forward_hook(look) for layer in network.modules() if not list(layer.children())]
    try:
        with torch.no_grad():
            network(x[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return max(seen)
