"""The two times of a run: when the loss has halved, and when it has ended."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.state import State
from regimes.measure.probe import Columns, Probe, numbers

__all__ = ["Times", "crossing_time"]


def crossing_time(before: tuple[float, float], after: tuple[float, float], level: float) -> float:
    """The time at which the line from one (time, loss) to the next is at ``level``.

    >>> crossing_time((0.0, 1.0), (2.0, 0.0), 0.5)
    1.0
    """
    (start, high), (end, low) = before, after
    if start == end:
        return end
    return start + (end - start) * (high - level) / (high - low)


@checked
@dataclass(frozen=True)
class Times(Probe):
    r"""t1, when the loss alpha^2 L first falls below ``level``, and t2, when the run is finished.

    A scaled, centred network starts at F = 0, where the hinge gives :math:`\alpha^2 L = 1`: t1 is the time to
    halve it. Between two states the loss counts as linear. Values: ``t1``, nan until then; ``t2``, the time
    of the last state if every margin is met, else nan.

    Attributes:
        level: of the loss.

    Source: Geiger et al. 2020.
    """

    level: float = 0.5
    _seen: dict[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not math.isfinite(self.level):
            raise UserError(f"`level`: got {self.level}, expected a finite loss")

    def follow(self, state: State) -> None:
        """Note the time of the crossing, and the last time and loss above the level."""
        if "t1" in self._seen:
            return
        if state.loss >= self.level:
            self._seen.update(time=state.time, loss=state.loss)
        elif state.loss < self.level:
            seen = self._seen
            before = (seen["time"], seen["loss"]) if "time" in seen else (state.time, math.inf)
            seen["t1"] = crossing_time(before, (state.time, state.loss), self.level)

    @property
    def columns(self) -> Columns:
        """``t1`` and ``t2``."""
        return numbers("t1", "t2")

    def look(self, state: State) -> Mapping[str, float]:
        """t1 and t2."""
        return {
            "t1": self._seen.get("t1", math.nan),
            "t2": state.time if state.status == "finished" else math.nan,
        }
