"""Parts of what is measured: probes that more than one paper looks through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from regimes import measure
from regimes.core.state import State
from regimes.measure.probe import numbers

__all__ = ["Accuracy"]

# Images at a time where outputs are computed.
_CHUNK = 500


@dataclass(frozen=True, eq=False)
class Accuracy(measure.Snapshot):
    """The share of images that are decided rightly, a few at a time. Value: ``{name}_accuracy``."""

    name: str
    inputs: Tensor
    targets: Tensor

    @property
    def columns(self) -> measure.Columns:
        """The accuracy."""
        return numbers(f"{self.name}_accuracy")

    def look(self, state: State) -> Mapping[str, float]:
        """The accuracy now."""
        with torch.no_grad():
            outputs = torch.cat([state(part) for part in self.inputs.split(_CHUNK)])
        return {f"{self.name}_accuracy": 1 - measure.error_rate(outputs, self.targets)}
