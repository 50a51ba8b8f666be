"""What the network says: its outputs on given inputs, and how often it is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from regimes.core.batch import check
from regimes.core.check import checked
from regimes.core.decision import wrong
from regimes.core.derivative import columns
from regimes.core.error import UserError
from regimes.core.state import State
from regimes.measure.probe import Columns, Snapshot, numbers

__all__ = ["Error", "Outputs", "error_rate"]


@checked
def error_rate(outputs: Float[Tensor, " n"] | Float[Tensor, "n c"], targets: Shaped[Tensor, " n"]) -> float:
    """The share of samples decided wrongly: by the sign of F where targets are -1 and +1, else by its largest entry.

    What is wrong is defined in :func:`regimes.core.decision.wrong`: an output that decides nothing (0, nan, a tie
    between the largest) counts as wrong.

    Args:
        outputs: F, (n,) or (n, c).
        targets: (n,), floats -1 and +1 of a binary task, or class indices.

    Returns:
        A number from 0 to 1.

    Raises:
        UserError: if outputs or targets have another shape, or targets of another kind.

    >>> error_rate(torch.tensor([0.3, -2.0]), torch.tensor([1.0, 1.0]))
    0.5
    """
    if not isinstance(outputs, Tensor) or outputs.dim() not in (1, 2):
        came = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise UserError(f"`outputs`: got {came}, expected a tensor (n,) or (n, c)")
    scores = outputs if outputs.dim() == 2 else outputs[:, None]
    return float(wrong(scores, targets).double().mean())


def _outputs(state: State, inputs: Tensor) -> Tensor:
    """F(w, x), (n, c), without a graph."""
    check(inputs, "inputs")
    with torch.no_grad():
        return columns(state(inputs), len(inputs))


@checked
@dataclass(frozen=True, eq=False)
class Error(Snapshot):
    """The error rate on given data. Value: ``{name}_error``.

    Attributes:
        inputs: x, (n, ...).
        targets: y, (n,), as in :func:`error_rate`.
        name: of the data, such as "test" or "train".
    """

    inputs: Tensor
    targets: Tensor
    name: str = "test"

    @property
    def columns(self) -> Columns:
        """``{name}_error``."""
        return numbers(f"{self.name}_error")

    def look(self, state: State) -> Mapping[str, float]:
        """The error rate now."""
        return {f"{self.name}_error": error_rate(_outputs(state, self.inputs), self.targets)}


@checked
@dataclass(frozen=True, eq=False)
class Outputs(Snapshot):
    """F(w, x) at the last state of a member, for averages over members.

    Values, at the last state only: ``{name}_outputs``, the n c numbers sample by sample; with targets also
    ``{name}_targets`` and the error rate ``{name}_error``.

    Attributes:
        inputs: x, (n, ...).
        name: of the data, such as "test" or "train".
        targets: y, (n,), as in :func:`error_rate`.
    """

    inputs: Tensor
    name: str = "test"
    targets: Tensor | None = None

    @property
    def columns(self) -> Columns:
        """The outputs; with targets these and the error rate."""
        outputs: Columns = {f"{self.name}_outputs": list[float]}
        if self.targets is None:
            return outputs
        return {**outputs, f"{self.name}_targets": list[float], f"{self.name}_error": float}

    def look(self, state: State) -> Mapping[str, float | list[float]]:
        """All of it, or nothing before the last state."""
        if state.status == "running":
            return {}
        outputs = _outputs(state, self.inputs)
        found: dict[str, float | list[float]] = {f"{self.name}_outputs": outputs.flatten().tolist()}
        if self.targets is not None:
            found[f"{self.name}_targets"] = self.targets.tolist()
            found[f"{self.name}_error"] = error_rate(outputs, self.targets)
        return found
