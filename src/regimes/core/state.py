"""State: one network at one moment of its training, the only thing that engines and measurements share."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from regimes.core.batch import Inputs
from regimes.core.derivative import call
from regimes.core.tree import named, trainable

__all__ = ["State", "Status"]

Status = Literal["running", "finished", "diverged", "stopped"]


@dataclass(frozen=True)
class State:
    r"""One network at one moment: w(t), where it started, w(0), and what the engine knows of it.

    A state holds references, never copies: making one costs microseconds, whatever the size of the network.

    Attributes:
        module: the architecture. The values of its own parameters mean nothing here: call the state instead.
        parameters: w(t), by the names of ``module.named_parameters()``, those that require grad. Measurements take a
            state dict as well, and pick them from it: buffers are those of the module, what is frozen has not moved.
        origin: w(0), by the same names.
        step: the number of steps taken.
        time: the time of a gradient flow, or the sum of the learning rates.
        loss: the mean of loss(F(w, x), y) over the data of the engine, or over the batch of a step:
            :math:`\alpha^2 L` for a scaled module.
        status: "running", or how the run ended: "finished" (every margin met, or all steps taken),
            "diverged", "stopped" (a limit). Each member has exactly one state that is not running, its last.
        member: which of the members trained together this is.
        outputs: F(w, x) on the training inputs, (n, c), where the engine has it.
        update: the step about to be taken, where the engine knows it.
        start: the architecture at w(0), where it is another than ``module``: that of a linearised network whose anchor
            has moved since.
        updates: U, from how many anchors the steps so far were taken (``control.Every``), where the engine knows it: in
            plain training as many as steps.
    """

    module: nn.Module
    parameters: Mapping[str, Tensor]
    origin: Mapping[str, Tensor]
    step: int = 0
    time: float = 0.0
    loss: float = float("nan")
    status: Status = "running"
    member: int = 0
    outputs: Tensor | None = None
    update: Mapping[str, Tensor] | None = None
    start: nn.Module | None = None
    updates: int | None = None

    def __call__(self, x: Inputs) -> Tensor:
        """F(w(t), x)."""
        return call(self.module, self.parameters, x)

    def initial(self) -> State:
        """The same network at its origin, w(0)."""
        module = self.start or self.module
        return replace(
            self,
            module=module,
            parameters=self.origin,
            step=0,
            time=0.0,
            outputs=None,
            update=None,
            updates=None,
        )

    def materialize(self) -> nn.Module:
        """A copy of the module that holds w(t): an ordinary module, to keep or to save."""
        module = copy.deepcopy(self.module)
        for name, parameter in trainable(module).items():
            parameter.data.copy_(self.parameters[name])
        return module

    @staticmethod
    def of(module: nn.Module, origin: Mapping[str, Tensor] | None = None, *, step: int = 0) -> State:
        """The state of a live module.

        Args:
            module: at w(t).
            origin: w(0) by name, such as the state dict of an earlier checkpoint, of which the parameters that require
                grad are taken; default the present parameters.
            step: the number of steps taken.

        Raises:
            UserError: if a parameter is missing in ``origin`` or has another shape, or a name is none of the module's.
        """
        now = {name: p.detach() for name, p in trainable(module).items()}
        if origin is None:
            return State(module, now, now, step=step)
        found = named(module, origin, "origin")
        return State(module, now, {name: found[name].detach() for name in now}, step=step)
