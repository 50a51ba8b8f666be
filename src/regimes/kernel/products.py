"""Products with the Jacobian of a network by its parameters, some samples at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from regimes.core import batch
from regimes.core.batch import Inputs
from regimes.core.derivative import (
    RANDOM,
    bind,
    check_separable,
    exact,
    gradients,
    plain,
    random_state,
    transposed,
)
from regimes.core.error import UserError
from regimes.core.forward import by_forward_mode
from regimes.core.graph import reached
from regimes.core.noise import alike
from regimes.core.tree import dot, norm
from regimes.kernel.network import Network

__all__ = ["Jacobian", "prepared"]

# What a product holds at its peak, in units of what a forward pass allocates: 0.7 to 2.4 was measured, over forward
# mode and second backward passes, large networks and small ones.
_PEAK = 3
_NO_PRODUCTS = (
    "`module`: has an operation with neither a forward mode nor a second derivative (EmbeddingBag, say), or a "
    "backward pass that is not linear; form the kernel (measure.ntk), or write the operation in others"
)
# How many samples are compared with what they give alone.
_SAMPLES = 32


@dataclass(frozen=True, eq=False)
class Jacobian:
    """J, the derivative of the outputs for x by the trained parameters, as two products.

    Attributes:
        network: f; its values are those of all parameters.
        x: all n samples.
        size: how many samples a pass takes.
        forward: whether J t goes by forward mode; else by a second backward pass.
    """

    network: Network
    x: Inputs
    size: int
    forward: bool = True

    def pull(self, u: Float[Tensor, "n c"]) -> dict[str, Tensor]:
        """J^T u, by name."""
        check_separable(self.network.module)
        with exact(u.device):
            u = plain(u)
            total = {name: torch.zeros_like(self.network.values[name]) for name in self.network.trained}
            for part, x in self._passes():
                for name, grad in self._backward(x, u[part]).items():
                    total[name] += grad
        return total

    def push(self, tangent: Mapping[str, Tensor]) -> Float[Tensor, "n c"]:
        """J t."""
        way = self._forward if self.forward else self._backward_twice
        with exact(batch.device_of(self.x)), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            return torch.cat([way(x, tangent) for _, x in self._passes()])

    def square(self, u: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """J J^T u, as :meth:`pull_push` has it."""
        return self.pull_push(u)[1]

    def pull_push(self, u: Float[Tensor, "n c"]) -> tuple[dict[str, Tensor], Float[Tensor, "n c"]]:
        """J^T u and J J^T u, held against the backward pass alone: u . J J^T u = |J^T u|^2.

        Samples that the first look did not see may take another way through the network.

        Raises:
            UserError: if neither forward mode nor a second backward pass gives that.
        """
        tangent = self.pull(u)
        eps, size = torch.finfo(u.dtype).eps, float(norm(tangent)) ** 2
        pushed: Tensor | None = None
        for forward in (True, False)[not self.forward :]:
            try:
                other, pushed = pushed, replace(self, forward=forward).push(tangent)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # an operation that this way cannot pass
                continue
            away = abs(float((u * pushed).sum()) - size) / (float(u.norm() * pushed.norm()) or 1.0)
            # What both ways give is right: the rest is the rounding of J^T u where that is nearly 0.
            if away <= eps ** (0.5 if forward else 0.25) or (other is not None and _close(other, pushed)):
                return tangent, pushed
        raise UserError(_NO_PRODUCTS)

    def _passes(self) -> Iterator[tuple[slice, Inputs]]:
        for i in range(0, batch.count(self.x), self.size):
            part = slice(i, i + self.size)
            # A module may change its inputs in place.
            yield part, batch.transform(batch.take(self.x, part), Tensor.clone)

    def _backward(self, x: Inputs, u: Float[Tensor, "n c"]) -> dict[str, Tensor]:
        leaves = self.network.leaves()
        wanted = {name: leaves[name] for name in self.network.trained}
        # Bound while autograd works, too: a checkpointed part of f runs once more on the way back.
        with torch.enable_grad(), bind(self.network.module, leaves):
            return dict(zip(wanted, gradients(self.network.outputs(x), wanted, u), strict=True))

    def _forward(self, x: Inputs, tangent: Mapping[str, Tensor]) -> Float[Tensor, "n c"]:
        values = self.network.values

        def outputs(moving: Mapping[str, Tensor]) -> Tensor:
            with bind(self.network.module, {**values, **moving}):
                return self.network.outputs(x)

        return by_forward_mode(outputs, {name: values[name] for name in self.network.trained}, tangent)[1]

    def _backward_twice(self, x: Inputs, tangent: Mapping[str, Tensor]) -> Float[Tensor, "n c"]:
        leaves = self.network.leaves()
        wanted = {name: leaves[name] for name in self.network.trained}
        with torch.enable_grad(), bind(self.network.module, leaves):
            return transposed(self.network.outputs(x), wanted, tangent)


class _Tally(TorchDispatchMode):
    """Notes, while it is active, what a forward pass allocates and whether it reads a number of its samples.

    Attributes:
        bytes: of all new tensors.
        reads: whether a number was read out of a tensor that comes from the samples.
    """

    def __init__(self, x: Inputs) -> None:
        super().__init__()
        self.bytes = 0
        self.reads = False
        # Held, lest another tensor be put in its place and be taken for it.
        self._seen = {_place(tensor): tensor for tensor in batch.tensors(x).values()}
        self._derived = set(self._seen)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        derived = any(_place(tensor) in self._derived for tensor in given)
        for one in tree_leaves(out):
            if not isinstance(one, Tensor):
                self.reads |= derived and one is not None
                continue
            if derived:
                self._derived.add(_place(one))
            if _place(one) not in self._seen:
                self._seen[_place(one)] = one
                self.bytes += one.numel() * one.element_size()
        return out


def _place(tensor: Tensor) -> int:
    """Where a tensor lies; views lie in one place."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else id(tensor)


class _Examiner:
    """Forward passes on some of the samples together, and what is seen in them.

    Attributes:
        bytes: what the last pass allocated.
        reads: whether any pass read a number of its samples.

    Args:
        network: f.
        x: all samples.
    """

    def __init__(self, network: Network, x: Inputs) -> None:
        self.bytes = 0
        self.reads = False
        self._network = network
        self._x = x
        # Stand-ins and what they stood in for: nothing else may lead to them.
        self._others: list[Tensor] = list(network.module.parameters())

    def look(self, samples: Sequence[int]) -> Float[Tensor, "n c"]:
        """The outputs of these samples together.

        Raises:
            UserError: if the module draws random numbers, changes its buffers, or kept parameters of an earlier call.
        """
        module, leaves = self._network.module, self._network.leaves()
        x = batch.transform(batch.take(self._x, torch.tensor(samples)), Tensor.clone)
        random, buffers = random_state(), [(name, b, _version(b)) for name, b in module.named_buffers()]
        # Attention is written out, as in forward mode: no other path of it needs more.
        with torch.enable_grad(), bind(module, leaves), sdpa_kernel(SDPBackend.MATH), _Tally(x) as seen:
            outputs = self._network.outputs(x)
        self.bytes, self.reads = seen.bytes, self.reads or seen.reads
        if random_state() != random:
            raise UserError(RANDOM)
        if changed := [name for name, b, version in buffers if _version(b) != version]:
            raise UserError(f"`module`: changes '{changed[0]}' in its forward; call .eval() first")
        if reached(outputs).keys() & {id(other) for other in self._others}:
            raise UserError(
                "`module`: keeps tensors computed from its parameters from one call to the next, so that their "
                "gradients are lost; compute them in the forward"
            )
        self._others.extend(leaves.values())
        return outputs.detach()


def prepared(network: Network, x: Inputs, memory: int) -> tuple[Jacobian, Float[Tensor, "1 c"]]:
    """The Jacobian as this network allows it, and the outputs of one sample.

    Each sample counts as a batch of one, whatever the network does with several: where the outputs of samples
    differ in company, they are taken one at a time.

    Args:
        network: f.
        x: n samples.
        memory: bytes for a pass.

    Raises:
        UserError: if products cannot be had.
    """
    _check_embeddings(network.module)
    n, other = batch.count(x), _unlike_the_first(x)
    examiner = _Examiner(network, x)
    first, size = examiner.look([0]), 1
    if n > 1:
        one = examiner.bytes
        both = examiner.look([0, other])
        inputs = sum(t[:1].numel() * t.element_size() for t in batch.tensors(x).values())
        each = max(examiner.bytes - one, inputs + first.numel() * first.element_size())
        pair = batch.take(x, torch.tensor([0, other]))
        if alike(both, torch.cat([first, examiner.look([other])]), partial(network.noise, pair)):
            passes = math.ceil(n / max(1, memory // (_PEAK * each)))
            size = math.ceil(n / passes)
    # What a network decides by the numbers it reads, it may decide otherwise for any sample.
    step = 1 if examiner.reads else math.ceil(n / _SAMPLES)
    if size > 1 and not _same_alone(network, x, size, step):
        size = 1
    some = batch.take(x, torch.tensor(sorted({0, other})))
    forward = _goes_forward(Jacobian(network, some, min(size, 2)), first)
    return Jacobian(network, x, size, forward), first


def _check_embeddings(module: nn.Module) -> None:
    for name, sub in module.named_modules():
        if isinstance(sub, nn.Embedding | nn.EmbeddingBag) and sub.scale_grad_by_freq:
            raise UserError(
                f"`module`: '{name}' ({type(sub).__name__}) divides gradients by how often a token comes in the "
                "batch, and then J^T is not the transpose of J; set scale_grad_by_freq to False, or form the "
                "kernel (measure.ntk)"
            )


def _goes_forward(jacobian: Jacobian, like: Tensor) -> bool:
    """Whether forward mode is the transpose of the backward pass; it knows neither hooks nor torch.no_grad.

    Args:
        jacobian: on a few samples.
        like: the outputs of one.

    Raises:
        UserError: if a second backward pass is not either.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (2, batch.count(jacobian.x), like.shape[1])
    u, v = torch.randn(shape, generator=generator, dtype=like.dtype).to(like.device)
    tangent = jacobian.pull(v)
    # u^T K v = <J^T u, J^T v>
    product = float(dot(jacobian.pull(u), tangent))
    for forward in (True, False):
        try:
            pushed = replace(jacobian, forward=forward).push(tangent)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            continue
        allowed = torch.finfo(like.dtype).eps ** 0.5 * float(u.norm() * pushed.norm())
        if abs(float((u * pushed).sum()) - product) <= allowed:
            return forward
    raise UserError(_NO_PRODUCTS)


def _same_alone(network: Network, x: Inputs, size: int, step: int) -> bool:
    """Whether every so many samples give in their passes what they give alone."""
    # With gradients allowed: a network of forces takes its own.
    with torch.enable_grad(), bind(network.module, network.values):
        for part, some in Jacobian(network, x, size)._passes():
            places = list(range(-part.start % step, batch.count(some), step))
            if not places:
                continue
            compared = Jacobian(network, batch.take(some, torch.tensor(places)), 1)
            alone = torch.cat([network.outputs(one).detach() for _, one in compared._passes()])
            together = network.outputs(some).detach()[places]
            if not alike(together, alone, partial(network.noise, compared.x)):
                return False
    return True


def _unlike_the_first(x: Inputs) -> int:
    """A sample that differs from the first one; the last one if none does."""
    tensors = batch.tensors(x).values()
    differ = (i for i in range(1, batch.count(x)) if any(not torch.equal(t[i], t[0]) for t in tensors))
    return next(differ, batch.count(x) - 1)


def _version(buffer: Tensor) -> int:
    """How often it was changed in place; tensors made in inference mode do not count that."""
    return 0 if buffer.is_inference() else buffer._version


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding: a difference below sqrt(eps) in relative norm."""
    return bool((a - b).norm() <= torch.finfo(a.dtype).eps ** 0.5 * torch.maximum(a.norm(), b.norm()))
