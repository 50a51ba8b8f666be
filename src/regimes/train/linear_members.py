"""Members that are linearised, each around an anchor of its own, which moves when it is told to."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import final

import torch
from torch import Tensor, nn

from regimes.control.linear import Linearized, check_linearizable, linearize_at
from regimes.control.scale import rescaled
from regimes.control.tangent import Route, settle
from regimes.control.tape import Tape, record
from regimes.core.derivative import call
from regimes.core.forward import by_forward_mode
from regimes.core.storage import address
from regimes.core.tree import Layout, Tree, sub

__all__ = ["LinearMembers"]

_Key = tuple[tuple[int, ...], int, torch.Size, int]  # members, and which inputs


@final
class LinearMembers:
    """F(w, x) = alpha (f(a, x) + J(a, x)(w - a) - f0(x)) of each member.

    Args:
        modules: F, scaled or not.
        networks: f.
        layout: of the rows.
        anchors: a, (members, stride).

    Attributes:
        anchors: as they are now.
        modules: F linearised at these, scaled as it was; what was handed out before keeps its anchor.
        starts: what they were at first.
        networks: f(a, .) + J(a, .)(w - a).

    Raises:
        UserError: if a network cannot be linearised.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        networks: Sequence[nn.Module],
        layout: Layout,
        anchors: Tensor,
    ) -> None:
        for network in networks:
            check_linearizable(network)
        self._plain, self._layout = networks, layout
        # Not the stack of the program, whose activations overwrite what a tangent needs.
        self._stack = copy.deepcopy(networks[0])
        self._route: Route | None = None
        self._repeated: Tensor | None = None
        self._tapes: dict[_Key, Tape | None] = {}
        self.anchors = anchors.clone()
        trees = [self._tree(row) for row in anchors]
        self.networks = [linearize_at(f, tree) for f, tree in zip(networks, trees, strict=True)]
        self.modules = [rescaled(*pair) for pair in zip(modules, self.networks, strict=True)]
        self.starts = list(self.modules)

    def hold(self, inputs: Tensor, *, own: bool, memory: int) -> None:
        """Keep what does not hang on w for these inputs, which come at every step, if that fits.

        Args:
            inputs: (n, ...), or (m, n, ...), those of each member.
            own: whether each member has its own.
            memory: bytes; what is told from a few samples decides.
        """
        one = inputs[0] if own else inputs
        fits = self.networks[0].held_bytes(one) * len(self.networks) <= memory
        self._repeated = inputs if fits else None

    def move(self, members: Tensor, flat: Tensor) -> None:
        """Move the anchors of some members to these rows."""
        moved = set(members.tolist())
        self._tapes = {key: tape for key, tape in self._tapes.items() if moved.isdisjoint(key[0])}
        self.anchors[members] = flat
        for k, row in zip(members.tolist(), flat, strict=True):
            before: Linearized = self.networks[k]
            self.networks[k] = linearize_at(self._plain[k], self._tree(row), before)
            self.modules[k] = rescaled(self.modules[k], self.networks[k])

    def one(self, member: int, tree: Tree, x: Tensor) -> Tensor:
        """f(a, x) + J(a, x)(w - a) of one member, (n, c) or (n,), at w by name."""
        network = self.networks[member]
        tape = self._kept([member], x, lambda: network.tape((x.clone(),), {}))
        return call(network, tree, x) if tape is None else tape([tree[name] for name in self._layout.names])

    def stacked(self, tree: Tree, members: Tensor, given: Tensor, x: Tensor) -> Tensor:
        """f(a, x) + J(a, x)(w - a) of some members of a stack, (m, n, c).

        Args:
            tree: w by name, (m, *shape) each.
            members: which they are.
            given: inputs, as the engine has them.
            x: the same, as a stack takes them.
        """
        at = self._tree(self.anchors[members])
        outputs = partial(call, self._stack, x=x)
        if self._route is by_forward_mode:
            tape = self._kept(
                members.tolist(), given, lambda: record(partial(call, self._stack, x=x.clone()), at)
            )
            if tape is not None:
                return tape([tree[name] for name in at])
        self._route = self._route or settle(outputs, at)
        value, along = self._route(outputs, at, sub(tree, at))
        return value + along

    def _kept(self, members: list[int], x: Tensor, make: Callable[[], Tape | None]) -> Tape | None:
        """The tape of some members on the inputs that come at every step; None for others."""
        whole = self._repeated
        if whole is None or address(x) != address(whole):
            return None
        key = (tuple(members), x.data_ptr(), x.shape, x._version)
        if key not in self._tapes:
            # Of inputs that were written to, or of members in another company, nothing is of use any more.
            self._tapes = {k: tape for k, tape in self._tapes.items() if set(members).isdisjoint(k[0])}
            with torch.inference_mode(False):
                self._tapes[key] = make()
        return self._tapes[key]

    def _tree(self, rows: Tensor) -> dict[str, Tensor]:
        """Views by name."""
        return self._layout.split(rows[..., : self._layout.total])
