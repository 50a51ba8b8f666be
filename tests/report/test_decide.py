"""An inconclusive claim says what would decide it; what is said is so."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from regimes.cli import app
from regimes.core.error import UserError
from regimes.core.estimate import Estimate, mean, quantile
from regimes.report import page
from regimes.report.claim import Claim, verdict, verdicts
from regimes.report.decide import units_needed, with_ways
from regimes.study import Option, Scale, Study, execute, grid, run_study
from tests.study.toy import Toy

FILE = '''
from regimes.core import estimate
from regimes.report.claim import Claim
from regimes.study import Option, Run, Scale, Study, grid


class Draw(Run):
    """A number whose spread stays."""

    columns = {"value": float}
    seed: int
    shift: float = 0.0

    @classmethod
    def perform(cls, runs, data, tick):
        for run in runs:
            yield run, [{"value": run.shift + (-1) ** run.seed}]


STUDY = Study(
    name="draw",
    title="Numbers",
    runs=[Draw],
    scales={"quick": Scale(lambda given: grid(Draw, seed=range(given["seeds"]), shift=given["shift"]), "", "")},
    options={"seeds": Option(int, 4), "shift": Option(float, 0.0)},
    claims=[Claim("D1", "none", "small", 0.0, "made up", (-0.6, 0.6), lambda rows: estimate.mean(rows["value"]))],
)
'''


def value_of(frame: pd.DataFrame) -> Estimate:
    return mean(frame.loc[frame["step"] == 1, "value"])


def claim(allowed: tuple[float | None, float | None], **other: Any) -> Claim:
    return Claim(
        "T1", "none", "a sentence", 1.0, "made up", allowed, other.pop("statistic", value_of), **other
    )


def study(*claims: Claim, **options: Option) -> Study:
    def sweep(settings: Mapping[str, Any]) -> Any:
        return grid(Toy, width=[1], seed=range(settings.get("seeds", 4)))

    given = options or {"seeds": Option(int, 4)}
    return Study("toy", "A toy", (Toy,), {"quick": Scale(sweep, "", "")}, options=given, claims=claims)


def way_of(one: Study, out: Path) -> dict[str, str] | None:
    run_study(one, "quick", out, quiet=True)
    return with_ways(verdicts(one.claims, pd.read_parquet(out / "rows")), one, out)[0]["decide"]


@pytest.mark.parametrize(
    ("value", "allowed"),
    [
        (0.5, (0.4, None)),
        (0.5, (None, 0.6)),
        (0.5, (0.3, 0.6)),
        (0.5, (0.6, None)),
        (0.5, (None, 0.4)),
        (0.5, (0.0, 0.4)),
    ],
)
def test_so_many_decide_in_four_of_five_repetitions(value: float, allowed: Any) -> None:
    """By plain simulation: values about the one that was measured, with the spread that was measured."""
    n, spread, times = 4, 0.2, 3000
    half = quantile(n - 1) * spread / math.sqrt(n)
    one = {"value": value, "low": value - half, "high": value + half, "range": list(allowed), "n": n}
    needed = units_needed(one | {"scale": "plain", "freedom": n - 1})
    assert needed is not None and needed > n
    draws = np.random.default_rng(0).normal(value, spread, (times, needed))
    reach = quantile(needed - 1) * draws.std(1, ddof=1) / math.sqrt(needed)
    decided = sum(
        verdict(Estimate(float(c), float(c - w), float(c + w), needed), allowed) != "inconclusive"
        for c, w in zip(draws.mean(1), reach, strict=True)
    )
    assert 0.8 - 4 * math.sqrt(0.16 / times) < decided / times < 0.87


def test_what_no_number_decides_has_none() -> None:
    one = {
        "value": 0.5,
        "low": 0.4,
        "high": 0.6,
        "range": [0.5, None],
        "n": 4,
        "scale": "plain",
        "freedom": 3,
    }
    assert units_needed(one) is None


def test_the_command_decides_the_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is run as printed, from the terminal and from the page."""
    monkeypatch.setattr(execute, "pace", lambda: 1.0)  # which else differs from one reading to the next
    file, out = tmp_path / "my draw.py", tmp_path / "out"
    file.write_text(FILE)

    def regimes(*words: str | Path) -> Result:
        return CliRunner().invoke(app, [str(word) for word in words], prog_name="regimes")

    assert regimes("run", file, "--out", out, "--on", "here", "--set", "shift=0.25").exit_code == 0
    told = json.loads(regimes("claims", out, "--study", file, "--json").stdout)[0]
    assert told["verdict"] == "inconclusive"
    words = shlex.split(told["decide"]["command"])
    count = int(words[-1])
    assert words == ["regimes", "run", str(file), "--scale", "quick", "--out", str(out), "--set", "shift=0.25",
                     "--seeds", str(count)]  # fmt: skip
    assert told["decide"]["text"] == (
        f"about {count} seeds would decide it with probability 0.8, if value and spread stay"
    )
    assert told["decide"]["cost"].startswith(f"{count - 4} runs more, about ")
    shown = regimes("claims", out, "--study", file).stdout
    assert told["decide"]["command"] in shown and told["decide"]["cost"] in shown
    assert f"about {count} seeds would decide it" in (out / "report.html").read_text()
    assert regimes(*words[1:], "--on", "here").exit_code == 0
    after = json.loads(regimes("claims", out, "--study", file, "--json").stdout)[0]
    assert (after["n"], after["verdict"], after["decide"]) == (count, "reproduced", None)


def test_without_an_interval_the_first_step_is_to_have_one(tmp_path: Path) -> None:
    one = study(claim((0.9, None)), seeds=Option(int, 1))
    way = way_of(one, tmp_path)
    assert way is not None
    assert way["text"] == "there is no interval yet; with 3 seeds there is one"
    assert way["command"].endswith("--seeds 3")


def broken(frame: pd.DataFrame) -> Estimate:
    raise UserError("`frame` says nothing")


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (study(claim((1.0, None), unit="")), "not decided by more seeds: they do not narrow its interval"),
        (study(claim((1.0, None)), members=Option(int, 4)), "but the study has no option `seeds` for them"),
        (study(claim((1.0, None), statistic=broken)), "not decided by more seeds: its rows are all there"),
        (
            study(claim((0.5, None), statistic=lambda frame: Estimate(0.5, 0.4, 0.6, 4))),
            "not decided by more seeds: the value lies at an end of the range",
        ),
    ],
)
def test_what_seeds_cannot_decide_is_said(tmp_path: Path, one: Study, words: str) -> None:
    way = way_of(one, tmp_path)
    assert way is not None and words in way["text"] and not way["command"]


def test_what_is_not_finished_is_finished_first(tmp_path: Path) -> None:
    one = study(claim((1.0, None), statistic=broken))
    run_study(one, "quick", tmp_path, quiet=True)
    next((tmp_path / "rows").iterdir()).unlink()
    [found] = with_ways(verdicts(one.claims, pd.DataFrame()), one, tmp_path)
    assert found["decide"]["text"] == "what it rests on is not finished"
    assert found["decide"]["command"] == f"regimes run toy --scale quick --out {tmp_path}"
    assert found["decide"]["cost"].startswith("1 run more, about ")


def test_decided_claims_and_other_studies_have_no_way(tmp_path: Path) -> None:
    one = study(claim((0.9, None)))
    assert way_of(one, tmp_path) is None
    values = np.random.default_rng(0).normal(size=4)
    found = verdicts([claim((0.0, None), statistic=lambda frame: mean(values))], pd.DataFrame())
    assert with_ways(found, object(), tmp_path)[0]["decide"] is None
    assert with_ways(found, replace(one), tmp_path / "nowhere")[0]["decide"] is None
    assert page.build(tmp_path, one)[0]["decide"] is None


def test_a_command_reads_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the sweep, the claims, what would decide them and the page ask for the rows one after the other."""
    file, out = tmp_path / "draw.py", tmp_path / "out"
    file.write_text(FILE)
    read: list[Path] = []
    whole = Path.read_bytes

    def counted(path: Path) -> bytes:
        read.append(path)
        return whole(path)

    begin = ("run", str(file), "--out", str(out), "--on", "here", "--set", "shift=0.25")
    assert CliRunner().invoke(app, begin).exit_code == 0
    monkeypatch.setattr(Path, "read_bytes", counted)
    for words in (
        begin,
        ("claims", str(out), "--study", str(file)),
        ("report", str(out), "--study", str(file)),
    ):
        read.clear()
        assert CliRunner().invoke(app, words).exit_code in (0, 1)
        rows = sorted(path for path in read if path.suffix == ".parquet")
        assert rows == sorted((out / "rows").iterdir())
