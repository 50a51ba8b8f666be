"""The first experiment: which parameters have moved at the end of training, and what they are worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from regimes import measure
from regimes.core.state import State
from regimes.core.tree import is_finite
from regimes.measure.probe import numbers
from regimes.papers.recipe.probes import Accuracy
from regimes.papers.recipe.recipe import Scene
from regimes.papers.rich_regime.runs.network import ImageCnn, ImageMlp, Images

__all__ = ["ABOVE", "SHARE", "ActivityRun", "ConvActivityRun"]

SHARE = 0.01
"""q: the share of all parameters that is called active."""
DRAWS = 10
"""Random sets of each kind in the reset test."""
ABOVE = tuple(10 ** (-k / 8) for k in range(33))
"""Shares of the parameters, from all to one in ten thousand: the distribution of changes is told at these."""


@dataclass(frozen=True, eq=False)
class Distribution(measure.Snapshot):
    """How far parameters move. Value: ``changes``, what each share of :data:`ABOVE` has moved at least.

    The change of a parameter is relative to the scale of its layer at the start (``measure.activity``).
    """

    @property
    def columns(self) -> measure.Columns:
        """The quantiles."""
        return {"changes": list[float]}

    def look(self, state: State) -> Mapping[str, list[float]]:
        """The quantiles now: the k-th largest change, k = share * N, rounded up."""
        if not is_finite(state.parameters):
            return {"changes": [math.nan] * len(ABOVE)}
        found = measure.activity(state.parameters, state.origin, module=state.module)
        every = torch.cat([value.reshape(-1) for value in found.relative().values()])
        ordered = every.sort(descending=True).values
        places = [max(1, math.ceil(share * len(ordered))) - 1 for share in ABOVE]
        return {"changes": ordered[places].tolist()}


@dataclass(frozen=True, eq=False)
class ResetError(measure.Snapshot):
    """The reset test of the active parameters (``measure.reset_test``), as test errors.

    Values: ``reset_none``, the error of the trained network; ``reset_all``, at its start; with the active parameters
    back at their start ``reset_active``; with as many others ``reset_layered``, drawn with the same number in each
    layer, ``reset_random``, drawn from all, and ``reset_least``, the least changed.

    Attributes:
        scene: the test images.
        share: q, of all parameters.
    """

    scene: Scene
    share: float = SHARE

    @property
    def columns(self) -> measure.Columns:
        """The errors."""
        kinds = ("none", "all", "active", "layered", "random", "least")
        return numbers(*(f"reset_{kind}" for kind in kinds))

    def look(self, state: State) -> Mapping[str, float]:
        """The errors now."""
        if not is_finite(state.parameters):
            return dict.fromkeys(self.columns, math.nan)
        changes = measure.activity(state.parameters, state.origin, module=state.module)
        test = self.scene.test
        found = measure.reset_test(
            state.module,
            test.x,
            test.y,
            origin=state.origin,
            parameters=state.parameters,
            active=changes.top(self.share),
            draws=DRAWS,
            seed=self.scene.runs[state.member].seed,
        )
        return {
            "reset_none": found.end,
            "reset_all": found.start,
            "reset_active": found.active,
            "reset_layered": found.layered.value,
            "reset_random": found.random.value,
            "reset_least": found.least,
        }


class Movement(Images):
    """A network whose parameters are looked at when it is trained: which have moved, and what resetting them costs."""

    @property
    def when(self) -> measure.When:
        """At the end alone."""
        return measure.at_end()

    @classmethod
    def probes(cls, scene: Scene) -> Sequence[measure.Probe]:
        """Accuracy, change by layer and share of the most active, distribution of changes, reset test."""
        return [
            Accuracy("train", scene.train.x, scene.train.y),
            Accuracy("test", scene.test.x, scene.test.y),
            measure.Activity(share=SHARE),
            Distribution(),
            ResetError(scene),
        ]


class ActivityRun(Movement, ImageMlp):
    """The first experiment on a fully connected network."""


class ConvActivityRun(Movement, ImageCnn):
    """The first experiment on a convolutional network."""
