"""Every public function refuses bad arguments in one line; the tables are in ``tests/arguments.py``."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import regimes
from regimes import measure, train
from regimes.core.error import UserError
from regimes.core.state import State
from tests import arguments
from tests.arguments_base import FOLDERS, LEFT_OUT

ROOT = Path(__file__).resolve().parents[1]


def faults(*options: str) -> tuple[list[list[str]], int]:
    """Which calls end otherwise than by a ``UserError``, and how many were made."""
    # In a process of its own: the shapes that these tests check would be refused before the library is asked.
    paths = os.pathsep.join(str(path) for path in (ROOT / "src", ROOT))
    done = subprocess.run(
        [sys.executable, "-m", "tests.arguments", *options],
        env=os.environ | {"PYTHONPATH": paths},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *found, last = (json.loads(line) for line in done.stdout.splitlines())
    return found, last["calls"]


def test_bad_arguments_are_refused_in_one_line() -> None:
    found, calls = faults()
    assert not found
    assert calls > 500


@pytest.mark.slow
def test_every_bad_argument_is_refused_in_one_line() -> None:
    """All of them, and pairs; and no rule that takes a value stands for nothing."""
    found, calls = faults("--all")
    assert not found
    assert calls > 8000


def test_what_is_not_tried_is_named() -> None:
    folders = {path.parent.name for path in Path(regimes.__path__[0]).glob("*/__init__.py")}
    assert folders == {*FOLDERS, *LEFT_OUT} and set(LEFT_OUT) == {"core", "kernel", "papers"}
    assert "core.layer.Scaling" in arguments.public()


def test_a_new_function_has_to_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = arguments.unlisted()
    monkeypatch.setattr(measure, "new_one", lambda x: x, raising=False)
    monkeypatch.setattr(measure, "__all__", [*measure.__all__, "new_one"])
    assert set(arguments.unlisted()) - set(before) == {"measure.new_one"}


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("gradient", lambda: train.Tolerance(gradient=0.0)),
        ("output", lambda: train.Tolerance(output=-1.0)),
        ("grow", lambda: train.Tolerance(grow=1.0)),
        ("grow", lambda: train.Tolerance(grow=math.inf)),
        ("shrink", lambda: train.Tolerance(shrink=math.inf)),
        ("per_decade", lambda: measure.log_spaced(0)),
        ("per_decade", lambda: measure.log_spaced(1001)),
        ("max_seconds", lambda: descent(max_seconds=-1.0)),
        ("max_seconds", lambda: descent(max_seconds=math.nan)),
    ],
)
def test_numbers_outside_of_their_range(name: str, call: Callable[[], object]) -> None:
    with pytest.raises(UserError, match=f"^`{name}`: got"):
        call()


def descent(max_seconds: float) -> train.Descent:
    x = torch.ones(2, 2)
    return train.descent(torch.nn.Linear(2, 1), x, x[:, 0], lr=0.1, steps=1, max_seconds=max_seconds)


@pytest.mark.parametrize("probe", [measure.Outputs, measure.Gap, measure.Pattern, measure.KernelDrift])
def test_a_probe_names_its_inputs(probe: Callable[[torch.Tensor], measure.Probe]) -> None:
    """Inputs that the network does not take are met when the probe looks, long after they were given."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    state = replace(State.of(net), status="finished")
    with pytest.raises(UserError, match=r"^`(inputs|x|x1)`: got"):
        list(measure.observe([state], [probe(torch.ones(4, 5))]))
