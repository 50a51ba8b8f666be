"""Parts of engines: how the members of a program are trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field
from torch import nn

from regimes import train
from regimes.core.loss import LOSSES
from regimes.core.state import State
from regimes.papers.recipe.recipe import Scene
from regimes.study.field import Count, Positive
from regimes.train.plan import Layers

__all__ = ["MarginFlow", "MomentumDescent"]


class MarginFlow(BaseModel):
    """Full-batch gradient flow of the soft-hinge, adapted steps, until F y >= 1 on every training point.

    Attributes:
        tau: momentum time; 0 is the plain flow.
        tolerance: on the relative change of the gradient over one step, squared (``train.Tolerance``).
        max_steps: a run that needs more is recorded as stopped.
    """

    tau: Annotated[float, Field(ge=0)] = 0.0
    tolerance: Positive = 1e-4
    max_steps: Count = 60_000

    @classmethod
    def states(cls, runs: Sequence[Self], modules: Sequence[nn.Module], scene: Scene) -> Iterable[State]:
        """The flow of all members; they share the data."""
        return train.flow(
            modules,
            scene.train.x,
            scene.train.y,
            tau=[run.tau for run in runs],
            tolerance=train.Tolerance(gradient=runs[0].tolerance),
            max_steps=runs[0].max_steps,
        )


class MomentumDescent(BaseModel):
    """Mini-batch gradient descent with momentum; the step in epoch t is lr / (1 + decay t).

    The squared loss is half the squared error summed over the outputs: a published step for the mean over ten
    outputs is five times the one here.

    Attributes:
        loss: squared or cross-entropy.
        lr: the step at first.
        decay: of the step, per epoch.
        momentum: of the descent.
        batch_size: of the descent.
        epochs: of the descent.
        seed: of the batches.
    """

    loss: Literal["squared", "cross-entropy"] = "squared"
    lr: Positive = 0.1
    decay: Annotated[float, Field(ge=0)] = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    batch_size: Count = 32
    epochs: Count = 10
    seed: Annotated[int, Field(ge=0)] = 0

    @classmethod
    def states(cls, runs: Sequence[Self], modules: Sequence[nn.Module], scene: Scene) -> Iterable[State]:
        """The descent of members that share data, batches and step."""
        first, n = runs[0], len(scene.train)
        epoch = -(-n // min(first.batch_size, n))
        return train.descent(
            modules,
            scene.train.x,
            scene.train.y,
            lr=lambda step: first.lr / (1 + first.decay * (step // epoch)),
            loss=LOSSES[first.loss],
            momentum=first.momentum,
            batch_size=first.batch_size,
            epochs=first.epochs,
            seed=first.seed,
            layers=cls.layers(runs, modules, scene),
        )

    @classmethod
    def layers(cls, runs: Sequence[Self], modules: Sequence[nn.Module], scene: Scene) -> Layers | None:
        """What moves at each step; None if all does."""
        return None
