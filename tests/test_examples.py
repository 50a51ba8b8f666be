"""The examples run; with the library and without it they print the same numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

import pytest

from tests.conftest import ROOT


@cache
def printed(name: str) -> list[list[float]]:
    """The numbers of the table that an example prints, row by row."""
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / name)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return [[float(word) for word in line.split()] for line in done.stdout.splitlines()[1:]]


def test_the_library_prints_what_plain_pytorch_prints() -> None:
    plain, library = printed("minimal.py"), printed("minimal_with_regimes.py")
    assert len(plain) == len(library) == 5
    for one, other in zip(plain, library, strict=True):
        assert other == pytest.approx(one, rel=1e-6)


def test_small_alpha_is_rich_and_large_alpha_lazy() -> None:
    drifts = [row[3] for row in printed("minimal_with_regimes.py")]
    assert drifts == sorted(drifts, reverse=True)
    assert drifts[0] > 1 and drifts[-1] < 0.05
