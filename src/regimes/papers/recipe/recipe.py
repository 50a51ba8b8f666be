"""Data x network x engine x probes: what a run of training is made of, carried out the same way for every paper."""

from __future__ import annotations

import inspect
import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from torch import nn

from regimes.core.state import State
from regimes.data import Dataset, Split
from regimes.measure import Probe, When, log_spaced, observe
from regimes.study import Run
from regimes.study.field import Rows, Tick

__all__ = ["Recipe", "Scene"]

# Steps of a member from one word of progress to the next.
_TOLD = 20


@dataclass(frozen=True, eq=False)
class Scene:
    """Where the probes of a program look.

    Attributes:
        runs: its members; none where only the columns are asked for.
        data: their data sets, on the device; empty ones where only the columns are asked for.
    """

    runs: tuple[Any, ...]
    data: tuple[Dataset, ...]

    @property
    def train(self) -> Split:
        """The training points of the first member: of all of them, where they share the data."""
        return self.data[0].train

    @property
    def test(self) -> Split:
        """Its test points."""
        return self.data[0].test

    @property
    def probe(self) -> Split:
        """The first test points, for kernels."""
        return self.data[0].probe

    def to(self, device: str) -> Scene:
        """The same on a device; data that members share stay shared."""
        moved = {id(each): _moved(each, device) for each in self.data}
        return replace(self, data=tuple(moved[id(each)] for each in self.data))

    @classmethod
    def empty(cls) -> Scene:
        """Nothing to look at: of probes that look here only the columns are asked."""
        nothing = torch.zeros(0)
        split = Split(nothing[:, None], nothing, nothing.long())
        return cls((), (Dataset("nothing", "classes", split, split, split, (), {}),))


def _moved(data: Dataset, device: str) -> Dataset:
    """A data set on a device."""
    parts = {
        name: Split(*(tensor.to(device) for tensor in (part.x, part.y, part.labels)))
        for name, part in (("train", data.train), ("test", data.test), ("probe", data.probe))
    }
    return replace(data, **parts)


class Recipe(Run):
    """A run of training: data x network x engine x probes.

    A paper's run inherits the parts: of data, of the network, of the engine (``recipe.data``, ``network``, ``engine``),
    each with its fields, or defines one itself. What it measures is what its probes declare, so that another
    measurement is another probe, and nothing else. Members of one batch are trained as one program.

    Attributes:
        tells: which column holds what of the state that is looked at: step, time, status or loss.
    """

    tells: ClassVar[Mapping[str, str]] = {"step": "step", "time": "time", "status": "status", "loss": "loss"}

    @abstractmethod
    def points(self, directory: Path | None) -> Dataset:
        """The data set; equal runs are given one object."""

    @abstractmethod
    def network(self, shape: tuple[int, ...]) -> nn.Module:
        """The network at its start, scaled, for inputs of this shape, without the samples."""

    @classmethod
    @abstractmethod
    def states(cls, runs: Sequence[Self], modules: Sequence[nn.Module], scene: Scene) -> Iterable[State]:
        """The training of the members under way."""

    @classmethod
    @abstractmethod
    def probes(cls, scene: Scene) -> Sequence[Probe]:
        """What is measured; the same quantities for all runs of the class."""

    @property
    @abstractmethod
    def label(self) -> str:
        """What is being trained, in a few words, for the progress."""

    @property
    def place(self) -> str:
        """The device of the tensors; ``recipe.device`` has the part of runs that choose it."""
        return "cpu"

    @property
    def when(self) -> When:
        """The steps at which the probes look."""
        return log_spaced()

    @classmethod
    def __pydantic_init_subclass__(cls) -> None:
        """The columns: what the state tells, and what the probes declare."""
        if not inspect.isabstract(cls):
            types = {"step": int, "status": str}
            told = {column: types.get(name, float) for column, name in cls.tells.items()}
            cls.columns = told | {"seconds": float}
            for probe in cls.probes(Scene.empty()):
                cls.columns |= probe.columns
        super().__pydantic_init_subclass__()

    @classmethod
    def perform(cls, runs: Sequence[Run], data: Path | None, tick: Tick) -> Iterator[tuple[Run, Rows]]:
        """Train the members as one program; yield each with its rows when it ends."""
        members = cast("Sequence[Self]", runs)
        scene = Scene(tuple(runs), tuple(run.points(data) for run in members)).to(members[0].place)
        modules = [
            run.network(tuple(own.train.x.shape[1:])).to(run.place)
            for run, own in zip(members, scene.data, strict=True)
        ]
        began = time.perf_counter()
        states = _told(cls.states(members, modules, scene), members, tick)
        rows: dict[int, Rows] = {}
        for row in observe(states, cls.probes(scene), members[0].when):
            line = {column: getattr(row, name) for column, name in cls.tells.items()}
            rows.setdefault(row.member, []).append(line | row.values)
            if row.status != "running":
                # a member's share of the time of the program so far
                rows[row.member][-1]["seconds"] = (time.perf_counter() - began) / len(runs)
                yield runs[row.member], rows.pop(row.member)


def _told(states: Iterable[State], runs: Sequence[Recipe], tick: Tick) -> Iterator[State]:
    """The same states, with a word of progress now and then."""
    running = len(runs)
    for state in states:
        if state.step % _TOLD == 0:
            tick(f"{runs[state.member].label}: {running} members, step {state.step}")
        running -= state.status != "running"
        yield state
