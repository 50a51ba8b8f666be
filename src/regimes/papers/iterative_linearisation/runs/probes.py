"""What is looked at in a linear block: the network and its linearisation side by side, the anchor, the rate's bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from regimes import control, measure
from regimes.core.loss import LOSSES
from regimes.core.state import State
from regimes.core.tree import is_finite
from regimes.measure.probe import numbers
from regimes.papers.recipe.recipe import Scene

__all__ = ["AtAnchors", "BothModels", "network_of", "probes"]

# Points at a time where outputs are computed.
_CHUNK = 500


def network_of(state: State) -> State:
    """The network at the parameters of a state of its linearisation; the same state, where it is none."""
    module = state.module
    return replace(state, module=module.nonlinear) if isinstance(module, control.Linearized) else state


def _outputs(state: State, x: Tensor) -> Tensor:
    """The outputs, a few points at a time."""
    with torch.no_grad():
        return torch.cat([state(part) for part in x.split(_CHUNK)])


@dataclass(frozen=True, eq=False)
class BothModels(measure.Snapshot):
    """Network and linearisation at the same parameters.

    Values: the loss of the first training points, ``network_loss`` and ``linear_loss``; at the end alone the test
    accuracy, ``network_accuracy`` and ``linear_accuracy``. They are the same where the network itself is trained.

    Attributes:
        scene: the members with their points.
    """

    scene: Scene

    @property
    def columns(self) -> measure.Columns:
        """Both losses, both accuracies."""
        return numbers("network_loss", "linear_loss", "network_accuracy", "linear_accuracy")

    def look(self, state: State) -> Mapping[str, float]:
        """The values now."""
        network = network_of(state)
        there = {"network": network} if network is state else {"network": network, "linear": state}
        found = {name: self._of(each) for name, each in there.items()}
        found.setdefault("linear", found["network"])
        return {f"{name}_{what}": value for name, values in found.items() for what, value in values.items()}

    def _of(self, state: State) -> dict[str, float]:
        """Loss of one of the two, and its accuracy at the end."""
        run, data = self.scene.runs[state.member], self.scene.data[state.member]
        x, y = (part[: run.n_top] for part in (data.train.x, data.train.y))
        found = {"loss": float(LOSSES[run.loss].per_sample(_outputs(state, x), y).mean())}
        if state.status == "running":
            return found
        return found | {"accuracy": 1 - measure.error_rate(_outputs(state, data.test.x), data.test.y)}


@dataclass(frozen=True, eq=False)
class AtAnchors(measure.Probe):
    r"""The tangent kernel where the network is linearised, and the rate that its linearisation bears.

    Values, at the anchors that are looked at, and of the movement at the last state:

    - ``kernel_moved``: :math:`\|K - K'\|_F / \|K'\|_F` from the anchor before, K', by ``measure.drift``;
    - ``kernel_turned``: one less the cosine between the two, by ``measure.kernel_distance``;
    - ``top``: the largest eigenvalue of J^T H J / n, H the curvature of the loss by the outputs;
    - ``bound``: the rate up to which the linear block does not grow, by ``control.stable_rate``.

    Movement is that of the trace kernel on the first test points. The bound is that of the first training points, as
    many as a batch has: with batches, of one of them.

    Attributes:
        scene: the members with their points.
    """

    scene: Scene
    _before: list[Tensor] = field(default_factory=list, init=False, repr=False)

    @property
    def columns(self) -> measure.Columns:
        """The two movements, the eigenvalue and the bound."""
        return numbers("kernel_moved", "kernel_turned", "top", "bound")

    def follow(self, state: State) -> None:
        """Nothing: the states between looks do not matter."""
        return

    def look(self, state: State) -> Mapping[str, float]:
        """The values at an anchor, nothing elsewhere."""
        run = self.scene.runs[state.member]
        if not run.looked_at(state.step) or not is_finite(state.parameters):
            return {}
        network, data = network_of(state), self.scene.data[state.member]
        own: dict[str, Any] = {"parameters": network.parameters}
        kernel = measure.ntk(network.module, data.probe.x[: run.n_probe], reduce="trace", **own)
        found = self._movement(kernel)
        self._before[:] = [kernel]
        if state.status != "running":
            return found
        x, y = (part[: run.batch_size or run.n] for part in (data.train.x, data.train.y))
        rate = control.stable_rate(network.materialize(), x, y, LOSSES[run.loss], momentum=run.momentum)
        return found | {"top": rate.eigenvalue, "bound": rate.rate}

    def _movement(self, kernel: Tensor) -> dict[str, float]:
        """From the anchor before; nothing at the first."""
        if not self._before:
            return {}
        return {
            "kernel_moved": measure.drift(kernel, self._before[0]),
            "kernel_turned": measure.kernel_distance(kernel, self._before[0]),
        }


def probes(scene: Scene) -> Sequence[measure.Probe]:
    """What every training in blocks is looked at by."""
    return [BothModels(scene), AtAnchors(scene)]
