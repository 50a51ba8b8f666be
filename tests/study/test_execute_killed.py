"""A study killed at any moment loses at most the runs in flight; nothing is repeated or left behind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from regimes.study import run_study
from tests.study.toy import STUDY

PAUSE = 0.04
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def start(out: Path) -> subprocess.Popen[str]:
    """The toy study in a process and a process group of its own, with two workers."""
    command = [sys.executable, "-m", "tests.study.toy", str(out), "pool:2", str(PAUSE)]
    return subprocess.Popen(
        command,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def alive(group: int) -> list[int]:
    """Processes of a group that still run (a dead one nobody has asked after is not alive)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, leader = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(leader) == group and state not in "ZX":
            found.append(int(folder.name))
    return found


def count(out: Path) -> int:
    return len(list((out / "rows").glob("*.parquet")))


def wait_for(process: subprocess.Popen[str], out: Path, files: int) -> None:
    """Until so many runs are finished or the process is."""
    end = time.monotonic() + 20.0
    while time.monotonic() < end and process.poll() is None and count(out) < files:
        time.sleep(0.005)


def all_end(group: int) -> bool:
    """Whether all processes of a group end within seconds."""
    end = time.monotonic() + 5.0
    while (left := alive(group)) and time.monotonic() < end:
        time.sleep(0.01)
    return not left


def rows_of(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / "rows").drop(columns="seconds")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    out = tmp_path_factory.mktemp("undisturbed")
    run_study(STUDY, "quick", out, settings={"pause": PAUSE}, quiet=True)
    return rows_of(out)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
def test_a_study_killed_again_and_again_ends_with_the_same_rows(
    tmp_path: Path, undisturbed: pd.DataFrame, kills: int
) -> None:
    order = random.Random(kills)
    whole = len(set(undisturbed["key"]))
    hit = 0
    for kill in range(kills):
        # at start-up every fifth time, else after a random share of what is left for the remaining kills
        process = start(tmp_path)
        before = count(tmp_path)
        more = 0 if kill % 5 == 4 else order.randint(0, max(1, 2 * (whole - before) // (kills - kill)))
        wait_for(process, tmp_path, min(before + more, whole - 1))
        time.sleep(order.uniform(0, 0.5 if more == 0 else PAUSE))
        hit += process.poll() is None
        process.kill()
        process.communicate()
        assert all_end(process.pid), "a worker outlives its parent"
        assert count(tmp_path) >= before
    assert hit > kills // 2, "nearly every kill must meet a process at work"
    process = start(tmp_path)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert f"{whole} of {whole} runs finished" in out
    found = rows_of(tmp_path)
    pd.testing.assert_frame_equal(found, undisturbed, check_exact=True)
    assert not found.duplicated(["key", "step"]).any()
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "rows", "study.json"}
    assert count(tmp_path) == whole == len(list((tmp_path / "rows").iterdir()))


def workers_of(group: int) -> list[int]:
    """The worker processes of a session, from the first moment of their lives."""
    found = []
    for process in alive(group):
        try:
            command = (Path("/proc") / str(process) / "cmdline").read_bytes()
        except OSError:
            continue
        found += [process] * (b"spawn_main" in command)
    return found


def struck(process: subprocess.Popen[str], order: random.Random) -> str:
    """Send a signal to the session or to one of its workers, if they are there; who was hit, and by what."""
    victims = workers_of(process.pid) if order.random() < 0.8 else [process.pid]
    by = order.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSEGV])
    if not victims or process.poll() is not None:
        return ""
    who = "session" if victims == [process.pid] else "worker"
    if who == "worker" and by == signal.SIGINT:
        by = signal.SIGTERM  # workers ignore Ctrl-C
    try:
        os.kill(order.choice(victims), by)
    except ProcessLookupError:
        return ""
    return f"{who} {by.name}"


@pytest.mark.slow
@pytest.mark.parametrize("kills", [200])
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
def test_whoever_is_killed_by_whatever_signal_nothing_is_lost_and_nothing_is_done_twice(
    tmp_path: Path, undisturbed: pd.DataFrame, kills: int
) -> None:
    order = random.Random(kills)
    hits: Counter[str] = Counter()
    whole, studies = len(set(undisturbed["key"])), 0
    while hits.total() < kills:
        out = tmp_path / str(studies := studies + 1)
        ever: set[Path] = set()
        while count(out) < whole:
            process = start(out)
            while process.poll() is None:
                time.sleep(order.uniform(0, 0.6))
                if hits.total() < kills and (hit := struck(process, order)):
                    hits[hit] += 1
                now = set((out / "rows").glob("*.parquet"))
                assert ever <= now, "a finished run is lost"
                ever = now
            _, err = process.communicate()
            assert all_end(process.pid), f"a worker outlives its parent\n{err}"
            assert not list((out / "aside").glob("*")), "a file of rows is torn"
        told = json.loads((out / "study.json").read_text())["sessions"]
        assert told[-1]["finished"] <= whole
        pd.testing.assert_frame_equal(rows_of(out), undisturbed, check_exact=True)
    print(f"{hits.total()} kills in {studies} studies: {dict(hits)}")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
def test_ctrl_c_stops_every_process_and_tells_how_to_continue(tmp_path: Path) -> None:
    """A terminal sends the signal to the whole group, workers included."""
    process = start(tmp_path)
    wait_for(process, tmp_path, 3)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    last = err.splitlines()[-1]
    assert "Interrupted: interrupted: " in last and f"{count(tmp_path)} of " in last
    assert "to continue: python " in last
    assert err.count("Traceback") == 1, "a worker complains"
    assert all_end(process.pid)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "rows", "study.json"}
