"""Bad command lines by the thousand: exit code 2, a line (or the usage and its box), no traceback, at once."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from regimes import cli
from tests.bad_commands import Places, bad_commands
from tests.test_cli import STUDY

SECONDS = 30.0
"""Far more than any of them takes, far less than what any of them asks for would take."""
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    folder = tmp_path_factory.mktemp("bad")
    (study := folder / "walk.py").write_text(STUDY)
    command = [
        sys.executable,
        "-m",
        "regimes.cli",
        "run",
        str(study),
        "--out",
        str(folder / "whole"),
        "--on",
        "here",
    ]
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, timeout=120)
    return Places.make(folder, str(study), folder / "whole")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty directory, without a network and without what a session leaves behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.socket.connect", lambda *_: (_ for _ in ()).throw(OSError("no network")))
    monkeypatch.setattr("regimes.cli.fix_rounding", lambda: None)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)


def shown(message: Warning | str, category: type[Warning], filename: str, line: int, *_: object) -> None:
    sys.stderr.write(warnings.formatwarning(message, category, filename, line))


def answered(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[object, str, str]:
    """Exit code, standard output and standard error of the console command, in this process."""
    streams = [
        io.TextIOWrapper(io.BytesIO(), "utf-8", errors=errors) for errors in ("strict", "backslashreplace")
    ]
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("always")
        patch.setattr(warnings, "showwarning", shown)  # pytest keeps them to itself
        patch.setattr(sys, "argv", ["regimes", *arguments])
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        patch.setattr(os, "dup2", lambda *_: None)  # the real standard output is that of the tests
        try:
            cli.main()
            code = None
        except SystemExit as end:
            code = end.code
    texts = []
    for stream in streams:
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())  # pyright: ignore[reportAttributeAccessIssue]
    return code, texts[0], texts[1]


def fault_of(code: object, out: str, err: str) -> str:
    """What is wrong with the answer to a bad command line, or nothing."""
    if code != 2:
        return f"exit code {code}"
    if "Traceback" in err or "unforeseen" in err or "Error:" in out:
        return "a traceback, or what nobody foresaw"
    if re.search(r"[\x00-\x09\x0b-\x1f\x7f]", err):
        return "a sign that does something to a terminal"
    if err.startswith(("Usage: ", "╭─ Error")):
        return "" if "╭─ Error" in err else "no reason"
    lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
    if len(lines) != 1 or not lines[0].startswith("error: "):
        return f"{len(lines)} lines"
    return ""


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("count", [120, pytest.param(4000, marks=pytest.mark.slow)])
def test_a_bad_command_line_is_answered_in_a_line(
    count: int, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = []
    for arguments in bad_commands(count, count, places):
        began = time.monotonic()
        code, out, err = answered(arguments, monkeypatch)
        fault = fault_of(code, out, err) or ("late" if time.monotonic() - began > SECONDS else "")
        if fault:
            wrong.append(f"{fault}: {[part[:80] for part in arguments]}\n{out[-500:]}{err[-1500:]}")
    assert not wrong, f"{len(wrong)} of {count}\n" + "\n".join(wrong[:20])


@pytest.mark.usefixtures("offline")
@pytest.mark.slow
def test_so_it_is_in_a_process_of_its_own(places: Places) -> None:
    for arguments in bad_commands(40, 1, places):
        command = [sys.executable, "-m", "regimes.cli", *arguments]
        found = subprocess.run(command, env=ENVIRONMENT, capture_output=True, timeout=300)
        fault = fault_of(found.returncode, found.stdout.decode(), found.stderr.decode())
        assert not fault, f"{fault}: {arguments}\n{found.stderr.decode()}"


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """A line of a shell in which ``$R`` is the command."""
    given = {**ENVIRONMENT, "R": f"{sys.executable} -m regimes.cli"}
    return subprocess.run(["bash", "-c", line], env=given, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_standard_output_is_one_line() -> None:
    found = shell("$R list > /dev/full")
    assert found.returncode == 2
    assert found.stderr == "error: the system says: no space left on device\n"


def test_a_reader_that_leaves_and_a_closed_output_are_nothing() -> None:
    assert shell("$R list | head -1").stderr == ""
    assert shell("$R list >&-").stderr == ""
    assert shell("$R list 2>&- | tail -1").stderr == ""


def test_what_nobody_foresaw_is_a_line_and_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: None
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for error, words in (
        (KeyError("a\nb"), r"error: unforeseen: KeyError: 'a\nb' (test_bad_commands.py, line"),
        (MemoryError(), "error: out of memory"),
        (SystemExit(0), "error: unforeseen: RuntimeError: sys.exit(0) was called"),
        (OSError(5, "Input/output error", "a\x1b"), r"error: a\x1b: input/output error"),
    ):

        def fail(*_: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr("regimes.cli.stored_study", fail)
        code, out, err = answered(["claims", "x"], monkeypatch)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(words)
        for file in re.findall(r"the traceback is in (\S+)", err):
            assert "Traceback" in Path(file).read_text()


def test_no_home_is_the_name_of_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, places: Places, offline: None
) -> None:
    code, _, err = answered(["claims", "~nouser/x"], monkeypatch)
    assert code == 2
    assert err.startswith("error: `out`: got") and "no user of that name has a home here" in err
    for option in ("--out", "--data"):
        assert answered(["run", places.study, option, "~nouser", "--on", "here"], monkeypatch)[0] == 2
    assert not list(tmp_path.iterdir())
    code, out, _ = answered(["run", places.study, "--out", "\udcff~nouser", "--on", "here"], monkeypatch)
    assert code == 0
    assert "they are in \\udcff~nouser" in out
    assert (Path("\udcff~nouser") / "report.html").is_file()
    assert answered(["claims", "\udcff~nouser", "--study", places.study], monkeypatch)[0] == 0
