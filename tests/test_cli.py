"""The command line: light until it has to work, and one line for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner, Result

import regimes
from regimes.cli import app
from regimes.papers.catalog import CATALOG, Entry, find_study

HEAVY = {"torch", "numpy", "pandas", "pyarrow", "matplotlib", "scipy", "sklearn", "jinja2"}

STUDY = '''
from regimes.report.claim import Claim, Estimate
from regimes.study import Option, Run, Scale, Study, grid


class Walk(Run):
    """A walk of so many steps."""

    columns = {"distance": float}
    steps: int
    seed: int = 0

    @classmethod
    def perform(cls, runs, data, tick):
        for run in runs:
            if run.steps > 1000:
                raise KeyboardInterrupt
            if run.steps > 100:
                raise ArithmeticError("too far")
            yield run, [{"distance": run.steps**0.5}]


def farthest(frame):
    value = float(frame["distance"].max())
    return Estimate(value, value, value, len(frame))


def sweep(settings):
    return grid(Walk, steps=settings["steps"], seed=range(settings["seeds"]))


def claim(id, low):
    return Claim(id, "none", "a walk goes far", 2.0, "derived here", (low, None), farthest)


STUDY = Study(
    name="walk",
    title="A walk",
    runs=[Walk],
    scales={"quick": Scale(sweep, "a second", "walks")},
    options={"steps": Option(tuple[int, ...], (1, 4)), "seeds": Option(int, 1)},
    claims=(claim("W1", 1.5),),
)
'''


@pytest.fixture
def study(tmp_path: Path) -> str:
    """A small study of the user's own."""
    path = tmp_path / "walk.py"
    path.write_text(STUDY)
    return str(path)


def regimes_command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="regimes")


def assert_mistake(result: Result, *words: str) -> None:
    """One line on standard error, exit code 2, nothing else."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


def modules_after(*arguments: str) -> set[str]:
    """The modules that are loaded when the command has answered."""
    program = f"""
import atexit, sys
from regimes.cli import main
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
sys.argv[1:] = {list(arguments)}
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize("arguments", [("--help",), ("list",), ("--version",), ("run", "--help")])
def test_what_only_informs_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert not modules_after(*arguments) & HEAVY


def test_list_shows_every_study_its_claims_and_its_costs() -> None:
    shown = regimes_command("list").stdout
    for study in CATALOG.values():
        assert study.card.name in shown
        assert ", ".join(study.card.claims) in shown
        assert all(f"{scale}: {cost}" in shown for scale, cost in study.card.cost.items())


@pytest.mark.parametrize(
    "entry", [one for one in CATALOG.values() if one.module], ids=lambda one: one.card.name
)
def test_the_catalogue_says_of_a_study_what_it_is(entry: Entry) -> None:
    study, card = find_study(entry.card.name), entry.card
    assert (study.name, study.title, study.paper) == (card.name, card.title, card.paper)
    assert {name: scale.cost for name, scale in study.scales.items()} == card.cost


def test_version() -> None:
    assert regimes_command("--version").stdout == f"regimes {regimes.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "feature-lzy"), ("`STUDY`", "did you mean 'feature-lazy'?")),
        (("run", "two-regimes"), ("planned", "available: lazy-training, feature-lazy")),
        (("run", "nowhere.py"), ("nowhere.py", "no such file")),
        (("claims", "nowhere"), ("`OUT`", "no such directory")),
        (("report", "nowhere"), ("`OUT`", "no such directory")),
        (("fetch", "minst", "--to", "nowhere"), ("did you mean 'mnist'?",)),
    ],
)
def test_a_mistake_is_one_line(arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert_mistake(regimes_command(*arguments), *words)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (("--scale", "quik"), ("did you mean 'quick'?",)),
        (("--set", "stps=3"), ("did you mean 'steps'?",)),
        (("--set", "steps"), ("expected name=value",)),
        (("--set", "steps=many"), ("`steps`",)),
        (("--device", "cpu"), ("`device`", "no option of study walk")),
        (("--seeds", "2", "--set", "seeds=3"), ("keep one",)),
        (("--on", "pol"), ("did you mean 'pool'?",)),
    ],
)
def test_a_mistake_in_an_option_is_one_line(
    study: str, tmp_path: Path, extra: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert_mistake(regimes_command("run", study, "--out", tmp_path / "out", *extra), *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert_mistake(
        regimes_command("run", "feature-lazy", "--out", tmp_path / "out", "--device", "cuda"), "`--device`"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("STUDY = 1", ("STUDY",)),
        ("x = 1", ("no STUDY",)),
        ("def", ("line 1", "SyntaxError")),
        ("1 / 0", ("ZeroDivisionError",)),
    ],
)
def test_a_mistake_in_a_study_file_is_one_line(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert_mistake(regimes_command("run", path), *words)


@pytest.mark.parametrize(
    "arguments", [("rin",), ("run",), ("run", "x", "--sclae"), ("run", "x", "--seeds", "0")]
)
def test_a_mistake_in_the_command_exits_with_two(arguments: tuple[str, ...]) -> None:
    assert regimes_command(*arguments).exit_code == 2


def test_dry_run_says_what_and_writes_nothing(study: str, tmp_path: Path) -> None:
    result = regimes_command("run", study, "--out", tmp_path / "out", "--seeds", "3", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "6 runs" in result.stdout
    assert not (tmp_path / "out").exists()


def test_a_study_runs_is_judged_and_is_not_run_again(study: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = regimes_command("run", study, "--out", out, "--on", "here")
    assert first.exit_code == 0, first.output
    assert "2 of 2 runs finished (2 in this session" in first.stdout
    assert str(out / "report.html") in first.stdout
    assert (out / "report.html").is_file()
    again = regimes_command("run", study, "--out", out, "--on", "here")
    assert "2 of 2 runs finished (0 in this session" in again.stdout

    told = regimes_command("claims", out, "--study", study, "--json")
    assert told.exit_code == 0, told.output
    [verdict] = json.loads(told.stdout)
    promised = {"id", "paper", "claim", "value", "low", "high", "reference", "range", "verdict"}
    assert promised <= verdict.keys()
    assert (verdict["id"], verdict["value"], verdict["verdict"]) == ("W1", 2.0, "reproduced")
    assert json.loads((out / "claims.json").read_text()) == [verdict]

    (out / "report.html").unlink()
    assert regimes_command("report", out, "--study", study).exit_code == 0
    assert (out / "report.html").is_file()


def test_claims_exit_with_one_unless_all_are_reproduced(study: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    regimes_command("run", study, "--out", out, "--on", "here", "--set", "steps=1")
    result = regimes_command("claims", out, "--study", study)
    assert result.exit_code == 1, result.output
    assert "W1" in result.stdout


@pytest.mark.parametrize("command", ["claims", "report"])
@pytest.mark.parametrize(
    ("record", "words"),
    [
        (
            {"study": "walk", "source": "evil/payload.py"},
            ("study walk", "evil/payload.py", "--study FILE.py"),
        ),
        ({"study": "evil/payload.py"}, ("--study FILE.py",)),
        ({"study": "feature-lazy", "source": "evil/payload.py"}, ("--study FILE.py",)),
        (
            {"study": "x\x1b]0;title\x07\ny", "source": "\x1b[2J.py"},
            ("x\\x1b]0;title\\x07\\ny", "\\x1b[2J.py"),
        ),
        ({"study": "two-regimes"}, ("planned",)),
    ],
)
def test_a_results_directory_names_no_code_to_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    record: dict[str, str],
    words: tuple[str, ...],
) -> None:
    """Wherever the command is given, whatever is in the directory."""
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "payload.py").write_text(f"open({str(tmp_path / 'was run')!r}, 'w')\n" + STUDY)
    (evil / "study.json").write_text(json.dumps({"scale": "quick", "sessions": [], "source": None, **record}))
    monkeypatch.chdir(tmp_path)
    assert_mistake(regimes_command(command, "evil"), *words)
    assert not (tmp_path / "was run").exists()


def test_the_study_given_must_be_that_of_the_directory(study: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    regimes_command("run", study, "--out", out, "--on", "here")
    assert_mistake(regimes_command("claims", out), "study walk of a file", study, "add: --study FILE.py")
    assert_mistake(regimes_command("claims", out, "--study", "feature-lazy"), "holds walk")
    assert regimes_command("claims", out, "--study", study).exit_code == 0


def test_no_verdict_rests_on_an_altered_row(study: str, tmp_path: Path) -> None:
    """Neither that of `claims` nor that of `report`; both name the file, and `run` does its run again."""
    out = tmp_path / "out"
    regimes_command("run", study, "--out", out, "--on", "here")
    files = sorted((out / "rows").iterdir())
    for victim in files:
        content = victim.read_bytes()
        table = pq.ParquetFile(pa.BufferReader(content)).read()
        place = table.column_names.index("distance")
        pq.write_table(table.set_column(place, "distance", pa.array([99.0])), victim)
        told = regimes_command("claims", out, "--study", study, "--json")
        assert json.loads(told.stdout)[0]["value"] in (1.0, 2.0)
        assert f"warning: {victim.name} is altered since it was written: left out" in told.stderr
        assert regimes_command("report", out, "--study", study).exit_code == 0
        assert f"{victim.name} is altered since it was written: left out" in (out / "report.html").read_text()
        assert json.loads((out / "claims.json").read_text()) == json.loads(told.stdout)
        victim.write_bytes(content)
    files[0].write_bytes(b"")
    with pytest.warns(UserWarning, match="moved to"):
        again = regimes_command("run", study, "--out", out, "--on", "here")
    assert "2 of 2 runs finished (1 in this session" in again.stdout
    assert json.loads(regimes_command("claims", out, "--study", study, "--json").stdout)[0]["value"] == 2.0


def test_a_failed_run_is_told_and_does_not_stop_the_others(study: str, tmp_path: Path) -> None:
    result = regimes_command("run", study, "--out", tmp_path / "out", "--on", "here", "--set", "steps=1,101")
    assert result.exit_code == 1
    assert "1 of 2 runs finished" in result.stdout
    assert "too far" in result.stdout


def test_ctrl_c_is_one_line_that_says_how_to_go_on(study: str, tmp_path: Path) -> None:
    result = regimes_command("run", study, "--out", tmp_path / "out", "--on", "here", "--set", "steps=1,1001")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1].startswith("interrupted")
