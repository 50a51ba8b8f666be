"""Runs that take milliseconds and need no PyTorch; a study of them that can be started as a process."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from regimes.study import Option, Run, Scale, Study, Sweep, bisection, combine, grid, run_study


class Toy(Run):
    """The curve x -> width * x^2 with noise of its seed; members of one width go together."""

    columns: ClassVar[dict[str, Any]] = {
        "step": int,
        "status": str,
        "value": float,
        "gap": float,
        "outputs": list[float],
        "seconds": float,
    }

    width: int
    x: float = 1.0
    seed: int = 0
    pause: float = 0.0

    @property
    def batch(self) -> str:
        return self.all_but("x", "seed")

    @property
    def cap(self) -> int:
        return 8

    def cost(self) -> float:
        return self.pause + 1e-3 * self.width

    @classmethod
    def perform(
        cls, runs: Sequence[Run], data: Path | None, tick: Callable[[str], None]
    ) -> Iterator[tuple[Run, list[dict[str, Any]]]]:
        for run in runs:
            assert isinstance(run, cls)
            began = time.monotonic()
            time.sleep(run.pause)
            tick(f"value of seed {run.seed}")
            yield run, run.rows(time.monotonic() - began)

    def rows(self, seconds: float) -> list[dict[str, Any]]:
        noise = np.random.default_rng(self.seed).normal(size=4)
        value = self.width * self.x**2 * (1 + 1e-3 * float(noise[0]))
        first = {"step": 0, "status": "running", "value": 0.0, "gap": None, "outputs": None, "seconds": 0.0}
        outputs = (value * noise).tolist() if self.width % 2 else None
        return [
            first,
            {
                **first,
                "step": 1,
                "status": "finished",
                "value": value,
                "outputs": outputs,
                "seconds": seconds,
            },
        ]


class Fragile(Run):
    """Members of one program of which some raise, or take their worker with them."""

    columns: ClassVar[dict[str, Any]] = {"value": float}

    number: int
    fault: str = ""
    marker: str = ""

    @property
    def batch(self) -> str:
        return "all"

    @classmethod
    def perform(
        cls, runs: Sequence[Run], data: Path | None, tick: Callable[[str], None]
    ) -> Iterator[tuple[Run, list[dict[str, Any]]]]:
        for run in runs:
            assert isinstance(run, cls)
            if run.fault == "raise":
                raise ArithmeticError("the loss is\nnot a number")
            if run.fault == "die" or (run.fault == "die once" and not Path(run.marker).exists()):
                Path(run.marker).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if run.fault == "interrupt":
                raise KeyboardInterrupt
            yield run, [{"value": float(run.number)}]


def quick(settings: Any) -> Sweep:
    pause = settings["pause"]
    wide = grid(Toy, width=[1, 2, 3], x=[0.5, 1, 2], seed=range(settings["seeds"]), pause=pause)
    fine = bisection(
        Toy,
        axis="x",
        column="value",
        level=50.0,
        start=[1, 2],
        factor=1.3,
        seed=range(2),
        width=[5],
        pause=pause,
    )
    return combine(wide, fine)


OPTIONS = {"seeds": Option(int, 3, "seeds per point"), "pause": Option(float, 0.0, "seconds per run")}
STUDY = Study("toy", "A toy", (Toy,), {"quick": Scale(quick, "a second", "three widths")}, options=OPTIONS)


def fragile(runs: Sequence[Fragile]) -> Study:
    """A study of just these runs."""
    return Study(
        "fragile", "Faults", (Fragile,), {"quick": Scale(lambda settings: lambda frame: runs, "", "")}
    )


if __name__ == "__main__":
    # a test run in the background of a shell ignores Ctrl-C, and so would this process
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from tests.study import toy  # under its importable name: the keys are those of the tests

    print(run_study(toy.STUDY, "quick", sys.argv[1], on=sys.argv[2], settings={"pause": sys.argv[3]}))
