"""A study of many runs: the time and the memory of `claims`, of `report` and of a command that finds all done.

    python benchmarks/store.py [--runs 20000]

makes a study file and the rows of its runs in a temporary directory, and runs each command in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from regimes.study import Store, load_study_file, run_study

STUDY = '''
from regimes.core import estimate
from regimes.report.claim import Claim
from regimes.report.style import canvas
from regimes.study import Option, Run, Scale, Study, grid

MEASURED = {f"m{i}": float for i in range(30)}


class Point(Run):
    """Made-up numbers of one width and seed."""

    columns = {"status": str, "step": int, "outputs": list[float], **MEASURED}
    width: int
    seed: int

    @classmethod
    def perform(cls, runs, data, tick):
        for run in runs:
            values = {name: run.width + 1 / (1 + i + run.seed) for i, name in enumerate(MEASURED)}
            yield run, [{"status": "finished", "step": 1, "outputs": [0.5] * 10, **values}]


def draw(frame):
    figure, grid = canvas(1, 1)
    grid[0][0].plot(frame["width"], frame["m0"], ".")
    return figure


STUDY = Study(
    name="many-points",
    title="Many points",
    runs=[Point],
    scales={"quick": Scale(lambda given: grid(Point, width=range(100), seed=range(given["seeds"])), "", "")},
    options={"seeds": Option(int, 200)},
    claims=[Claim("M1", "none", "above", 0.0, "made up", (0.0, None), lambda rows: estimate.mean(rows["m0"]))],
    figures=[("points", "Points", draw, "All of them.")],
)
'''


def timed(*words: str | Path) -> str:
    """Run a command; the seconds it takes, those of the processor, and the most memory it holds."""
    began = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", "regimes.cli", *map(str, words)], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - began
    own = usage.ru_utime + usage.ru_stime
    return f"{seconds:6.1f} s  {own:6.1f} s of CPU  {usage.ru_maxrss / 1024:5.0f} MiB  exit code {child.returncode}"


def main() -> None:
    """Make the study and print a line for each command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20_000, help="rounded up to hundreds")
    seeds = -(-parser.parse_args().runs // 100)
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "many.py", Path(folder) / "out"
        file.write_text(STUDY)
        run_study(load_study_file(file), "quick", out, settings={"seeds": seeds}, quiet=True)
        print(f"{len(Store(out))} runs, one row each")
        print("claims", timed("claims", out, "--study", file))
        print("report", timed("report", out, "--study", file))
        print("resume", timed("run", file, "--out", out, "--on", "here", "--seeds", str(seeds)))


if __name__ == "__main__":
    main()
