"""Members that are linearised, each around an anchor of its own, which moves when it is told to."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import final

from torch import Tensor, nn

from regimes.control.linear import Linearized, check_linearizable, linearize_at
from regimes.control.scale import rescaled
from regimes.control.tangent import Route, settle
from regimes.core.derivative import call
from regimes.core.tree import Layout, sub

__all__ = ["LinearMembers"]


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
        self.anchors = anchors.clone()
        trees = [self._tree(row) for row in anchors]
        self.networks = [linearize_at(f, tree) for f, tree in zip(networks, trees, strict=True)]
        self.modules = [rescaled(*pair) for pair in zip(modules, self.networks, strict=True)]
        self.starts = list(self.modules)

    def move(self, members: Tensor, flat: Tensor) -> None:
        """Move the anchors of some members to these rows."""
        self.anchors[members] = flat
        for k, row in zip(members.tolist(), flat, strict=True):
            before: Linearized = self.networks[k]
            self.networks[k] = linearize_at(self._plain[k], self._tree(row), before)
            self.modules[k] = rescaled(self.modules[k], self.networks[k])

    def stacked(self, tree: Mapping[str, Tensor], members: Tensor, x: Tensor) -> Tensor:
        """f(a, x) + J(a, x)(w - a) of some members of a stack, (m, n, c).

        Args:
            tree: w by name, (m, *shape) each.
            members: which they are.
            x: inputs, as a stack takes them.
        """
        at = self._tree(self.anchors[members])
        outputs = partial(call, self._stack, x=x)
        self._route = self._route or settle(outputs, at)
        value, along = self._route(outputs, at, sub(tree, at))
        return value + along

    def _tree(self, rows: Tensor) -> dict[str, Tensor]:
        """Views by name."""
        return self._layout.split(rows[..., : self._layout.total])
