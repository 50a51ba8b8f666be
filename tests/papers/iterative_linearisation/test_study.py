"""The study of iterative linearisation: what its sweeps want, what its claims say, and a study that is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure

from regimes.papers.catalog import CATALOG
from regimes.papers.iterative_linearisation.claims import FEW, MANY, claims
from regimes.papers.iterative_linearisation.figures import FIGURES, figures
from regimes.papers.iterative_linearisation.runs import DampingRun, IdentityRun, MlpBlocks
from regimes.papers.iterative_linearisation.study import STUDY
from regimes.papers.iterative_linearisation.tables import BLOCKS, side_by_side, tables
from regimes.report.claim import judge, verdicts
from regimes.report.style import as_bytes
from regimes.study import grid, run_study
from tests.papers.iterative_linearisation.synthetic import TASKS, claims_obeyed

NOTHING = pd.DataFrame()


def wanted(scale: str, **given: object) -> list[Any]:
    return list(STUDY.sweep(scale, STUDY.settings(scale, given))(NOTHING))


def by_id(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    return {one["id"]: one for one in verdicts(claims, frame)}


@pytest.mark.parametrize("scale", list(STUDY.scales))
def test_a_scale_has_the_runs_its_claims_need(scale: str) -> None:
    runs = wanted(scale)
    assert len({run.key for run in runs}) == len(runs)
    blocks: list[Any] = [run for run in runs if isinstance(run, tuple(BLOCKS.values()))]
    tasks = {(type(run), getattr(run, "dataset", ""), run.loss) for run in blocks}
    assert len(tasks) >= 2
    for kind, dataset, loss in tasks:
        own = [
            run
            for run in blocks
            if (type(run), getattr(run, "dataset", ""), run.loss) == (kind, dataset, loss)
        ]
        assert (
            len({(run.steps, run.lr, run.momentum, run.n) for run in own}) == 1
        )  # the same budget for every K
        ladder = [run for run in own if run.once is None]
        for seed in {run.seed for run in own}:
            spent = {-(-run.steps // run.period) for run in ladder if run.seed == seed}
            assert spent >= {1, FEW, MANY} and 1 in {run.period for run in ladder if run.seed == seed}
        assert {run.seed for run in own if run.once is not None} <= {run.seed for run in ladder}
    assert {run.kind for run in runs if isinstance(run, IdentityRun)} == {
        "sgd", "momentum", "adam", "adamw", "linear",
    }  # fmt: skip
    assert any(isinstance(run, DampingRun) for run in runs)


def test_settings_choose_what_is_run() -> None:
    runs = wanted("small", networks="parity", seeds=3, controls=2)
    assert {type(run).__name__ for run in runs} == {"ParityBlocks", "IdentityRun", "DampingRun"}
    assert {run.seed for run in runs if not isinstance(run, IdentityRun | DampingRun)} == {0, 1, 2}
    assert {run.seed for run in runs if isinstance(run, DampingRun)} == {0, 1}


def test_claims_of_rows_that_obey_them_are_reproduced() -> None:
    found = by_id(claims_obeyed())
    wrong = [
        (one["id"], one["value"], one["note"]) for one in found.values() if one["verdict"] != "reproduced"
    ]
    assert not wrong
    assert {name.split("/")[0] for name in found} == set(CATALOG[STUDY.name].card.claims)
    powers = {name: one["power"] for name, one in found.items() if one["kind"] == "claim"}
    assert not [name for name, power in powers.items() if power is None or power < 0.8]


def test_ranges_are_those_of_the_registry() -> None:
    ranges = {name: one["range"] for name, one in by_id(claims_obeyed()).items()}
    for task in TASKS:
        assert ranges[f"R15/within/{task}"] == [None, 1.0]
        assert ranges[f"R15/flat/{task}"] == [-1.0, 1.0]
        assert ranges[f"R15/early/{task}"] == [0.0, None]
        assert ranges[f"R16/never/{task}"] == [2.0, None]
        assert ranges[f"P3-C/{task}"] == [0.5, None]
    assert {tuple(each) for name, each in ranges.items() if name.startswith("R17")} == {(None, 1e-10)}
    assert ranges["P3-D/cosine"] == [0.9, None] and ranges["P3-D/closed"] == [None, 1e-10]
    assert [name for name in ranges if name.startswith("R16/chance")] == ["R16/chance/2-parity"]


Slip = Callable[[pd.DataFrame], Any]
SLIPS: dict[str, tuple[str, Slip]] = {
    "R15/within": ("network_accuracy", lambda f: f["network_accuracy"].where(f["period"] != 100, 0.85)),
    "R15/flat": ("network_accuracy", lambda f: f["network_accuracy"].where(f["period"] != 10, 0.95)),
    "R15/early": ("linear_accuracy", lambda f: f["linear_accuracy"].where(f["once"].isna(), 0.65)),
    "R16/never": ("linear_accuracy", lambda f: f["linear_accuracy"].where(f["period"] != 1000, 0.895)),
    "R16/chance": ("linear_accuracy", lambda f: f["linear_accuracy"].where(f["period"] != 1000, 0.85)),
    "R15/stable": ("bound", lambda f: f["bound"] / 20),
    "P3-C": ("kernel_moved", lambda f: f["kernel_moved"] * f["step"] ** 2),
    "R17": ("apart", lambda f: f["apart"] + 1e-9),
    "P3-D/cosine": ("newton_cosine", lambda f: f["newton_cosine"].where(f["step"] != 10, 0.8)),
    "P3-D/closed": ("closed_apart", lambda f: f["closed_apart"].where(f["step"] != 10, 1e-9)),
}  # fmt: skip


@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_is_not_reproduced(name: str) -> None:
    column, slip = SLIPS[name]
    frame = claims_obeyed()
    frame = frame.assign(**{column: slip(frame)})
    told = [judge(one, frame)["verdict"] for one in claims(frame) if one.id.startswith(name)]
    assert told and set(told) == {"not reproduced"}


def test_what_is_judged_is_what_was_trained() -> None:
    """The network at the end of blocks, the linear model of runs whose anchor stays."""
    frame = claims_obeyed()
    table = side_by_side(frame)
    assert set(table["task"]) == set(TASKS) and sorted(set(table["U"])) == [1, 4, 10, 100, 1000]
    own = table.loc[(table["task"] == "digits-mlp") & (table["U"] == 1)].iloc[0]
    assert own["network (%)"].startswith("30.") and own["linear model (%)"].startswith("60.")
    value = by_id(frame)["R16/never/digits-mlp"]["value"]
    assert value == pytest.approx(30.0, abs=0.2)


def test_the_share_of_the_first_two_blocks() -> None:
    """Movement 1 / block: 1.5 over the tenth harmonic number."""
    share = 1.5 / sum(1 / k for k in range(1, 11))
    assert by_id(claims_obeyed())["P3-C/2-parity"]["value"] == pytest.approx(share)


def test_of_few_points_updates_on_a_parity_are_outside_this_scale() -> None:
    found = by_id(claims_obeyed().assign(n=800))
    told = {name for name, one in found.items() if one["verdict"] == "outside this scale"}
    assert told == {"R15/within/2-parity", "R15/flat/2-parity"}


def test_what_was_not_run_is_said() -> None:
    frame = claims_obeyed()
    found = by_id(frame.loc[frame["period"] != 100])
    assert found["R15/within/2-parity"]["verdict"] == "inconclusive"
    assert "U = 10" in found["R15/within/2-parity"]["note"]
    found = by_id(frame.loc[frame["once"].isna()])
    assert not [name for name in found if name.startswith("R15/early")]
    assert verdicts(claims, NOTHING) == []
    assert len(figures(NOTHING)) == len(FIGURES) and not tables(NOTHING)


@pytest.mark.parametrize("number", range(len(FIGURES)))
def test_a_figure_shows_every_task(number: int) -> None:
    name, _, draw, _ = FIGURES[number]
    drawn = draw(claims_obeyed())
    assert isinstance(drawn, Figure) and as_bytes(drawn, "svg")
    titles = [axes.get_title(loc="left").split(",")[0] for axes in drawn.axes if axes.axison]
    if name in ("accuracy_updates", "linearised_once", "block_losses"):
        assert sorted(titles) == sorted(TASKS)
    frame = claims_obeyed()
    assert [entry[0] for entry in figures(frame)] == [entry[0] for entry in FIGURES]
    assert [entry[0] for entry in figures(frame.loc[frame["run"] == "DampingRun"])] == [
        "newton_cosine", "filters",
    ]  # fmt: skip


def test_the_ladder_shows_means_and_both_ends() -> None:
    frame = claims_obeyed()
    axes = FIGURES[0][2](frame).axes[0]
    lines = {bars.get_label(): bars.lines[0] for bars in axes.containers}
    assert lines["network"].get_ydata()[-1] == pytest.approx(90.0, abs=0.1)
    assert len(lines["linear model"].get_xdata()) == 4
    level = {line.get_label(): line.get_ydata()[0] for line in axes.lines}
    assert level["K = 1"] == pytest.approx(90.0, abs=0.1) and level["K = T"] == pytest.approx(60.0, abs=0.1)


def tiny() -> list[Any]:
    common: dict[str, Any] = {"n": 40, "n_test": 30, "steps": 20, "width": 6, "seed": range(2), "n_probe": 8}
    found: list[Any] = [
        *grid(MlpBlocks, period=[1, 2, 20], **common)(NOTHING),
        *grid(MlpBlocks, once=2, **common)(NOTHING),
    ]
    found += grid(IdentityRun, kind=["sgd", "linear"], steps=4, seed=range(2))(NOTHING)
    return [*found, *grid(DampingRun, n=8, width=6, lr=0.1, steps=20, seed=range(2))(NOTHING)]


def test_run_study_reaches_verdicts_on_tiny_tasks(tmp_path: Path) -> None:
    """From nothing to claims, in this process; U = 100 is not there."""
    runs = tiny()
    study = replace(STUDY, scales={"quick": replace(STUDY.scales["quick"], sweep=lambda _: lambda _: runs)})
    result = run_study(study, "quick", tmp_path, quiet=True)
    assert result.finished == len(runs) and not result.failures
    frame = pd.read_parquet(tmp_path / "rows")
    found = by_id(frame)
    assert [name for name, one in found.items() if one["value"] is None] == ["R15/flat/digits-mlp"]
    controls = {
        name: one["verdict"] for name, one in found.items() if name.startswith(("R17", "P3-D/closed"))
    }
    assert len(controls) == 3 and set(controls.values()) == {"reproduced"}
    for _, _, draw, _ in FIGURES:
        assert isinstance(draw(frame), Figure)


@pytest.mark.slow
def test_the_quick_study_runs_whole(tmp_path: Path) -> None:
    result = run_study(STUDY, "quick", tmp_path, quiet=True)
    assert not result.failures
    found = by_id(pd.read_parquet(tmp_path / "rows"))
    controls = {name: one["verdict"] for name, one in found.items() if one["kind"] == "control"}
    assert controls and set(controls.values()) == {"reproduced"}
    assert not [name for name, one in found.items() if one["value"] is None]
