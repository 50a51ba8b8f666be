"""f as a function of its named parameters, and one pass of it with every use of a parameter written down."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from regimes.core.batch import Inputs, count, feed, transform
from regimes.core.derivative import Output, bind, columns
from regimes.core.noise import noise
from regimes.core.tree import Tree
from regimes.kernel.record import Recorder
from regimes.kernel.use import Use

__all__ = ["Network", "Pass", "record"]


@dataclass(frozen=True)
class Network:
    """f as a function of its named parameters.

    Attributes:
        module: f.
        values: w by name.
        trained: the names that the kernel is taken over.
        output: what picks the outputs from what the module returns.
    """

    module: nn.Module
    values: Mapping[str, Tensor]
    trained: tuple[str, ...]
    output: Output | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters that train."""
        return self.values[self.trained[0]].dtype

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self.values[self.trained[0]].device

    def outputs(self, x: Inputs) -> Tensor:
        """(n, c), at the parameters that the module holds at present."""
        found = feed(self.module, x)
        if self.output is None:
            return columns(found, count(x))
        return columns(self.output(found), count(x), "`output`")

    def noise(self, x: Inputs) -> float:
        """What rounding may make of the outputs, which may be 0 but for that."""

        def outputs(values: Tree) -> Tensor:
            with bind(self.module, {**self.values, **values}):
                return self.outputs(transform(x, Tensor.clone))

        return noise(
            outputs, {name: value for name, value in self.values.items() if value.is_floating_point()}
        )

    def leaves(self) -> dict[str, Tensor]:
        """Fresh stand-ins for the parameters; those that train require grad."""
        trained = set(self.trained)
        return {name: value.detach().requires_grad_(name in trained) for name, value in self.values.items()}


@dataclass(frozen=True)
class Pass:
    """A forward pass.

    Attributes:
        outputs: f(w, x), (n, c), with a graph that holds the activations but not the parameters.
        leaves: what stood in for the parameters of the module.
        recorder: what it noted.
    """

    outputs: Tensor
    leaves: Mapping[str, Tensor]
    recorder: Recorder

    @property
    def uses(self) -> Sequence[Use]:
        """Every use of a trained parameter together with data, in order."""
        return self.recorder.uses

    def back(
        self, root: Tensor, edges: Sequence[GradientEdge], cotangent: Tensor, keep: bool
    ) -> Sequence[Tensor | None]:
        """The gradients of <cotangent, root> that arrive at the edges; None where nothing does."""
        if not edges or not root.requires_grad:
            return [None] * len(edges)
        # A checkpointed part runs its forward once more here: it must meet the same treatment.
        with self.recorder:
            return torch.autograd.grad(root, list(edges), cotangent, keep, allow_unused=True)


@contextmanager
def record(network: Network, x: Inputs, copied: Collection[int] = ()) -> Iterator[Pass]:
    """Run f on x, and keep the stand-ins in place while the block lasts.

    Args:
        network: f.
        x: the samples.
        copied: the uses, by their place in the order, whose inputs are changed in place later.
    """
    leaves = network.leaves()
    x = transform(x, Tensor.clone)  # a module may change its inputs in place
    recorder = Recorder(network.module, {name: leaves[name] for name in network.trained}, x, copied)
    with torch.enable_grad(), bind(network.module, leaves):
        with recorder:
            outputs = network.outputs(x)
        recorder.closed = True
        yield Pass(outputs, leaves, recorder)
