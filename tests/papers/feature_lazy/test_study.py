"""The study of lazy and feature training: what its sweeps want, what its claims say, and a flow that is killed."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from regimes.core.error import UserError
from regimes.papers.catalog import CATALOG
from regimes.papers.feature_lazy.claims import claims
from regimes.papers.feature_lazy.runs import FlowRun
from regimes.papers.feature_lazy.study import CURVE, STUDY
from regimes.report.claim import verdicts
from regimes.study import run_study
from tests.papers.feature_lazy import synthetic

NOTHING = pd.DataFrame()
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


def wanted(scale: str, **given: object) -> list[FlowRun]:
    settings = STUDY.settings(scale, given)
    return [run for run in STUDY.sweep(scale, settings)(NOTHING) if isinstance(run, FlowRun)]


@pytest.mark.parametrize("scale", list(STUDY.scales))
def test_a_scale_has_the_widths_seeds_and_depths_its_claims_need(scale: str) -> None:
    runs = wanted(scale)
    assert len({run.key for run in runs}) == len(runs)
    assert len({run.width for run in runs}) >= 4  # a power of h
    assert len({run.seed for run in runs}) >= 12  # ensembles
    reach = [run.alpha * math.sqrt(run.width) for run in runs if run.law == "ntk"]
    assert min(reach) <= 0.01 and max(reach) >= 1e4  # both regimes


def test_the_small_scale_holds_both_data_sets_both_depths_and_every_law() -> None:
    runs = wanted("small")
    assert {(run.dataset, run.depth, run.pca) for run in runs} == {
        ("mnist", 2, 10),
        ("mnist", 3, 10),
        ("fashion-mnist", 2, None),
        ("fashion-mnist", 3, None),
    }
    assert {run.law for run in runs} == {"ntk", "standard", "mean-field", "mup"}


def test_settings_choose_what_is_run() -> None:
    runs = wanted("quick", datasets="mnist,emnist", depths="3", seeds=2, members=4)
    assert {run.dataset for run in runs} == {"mnist", "emnist"}
    assert {run.depth for run in runs} == {3}
    seeds = {h: {run.seed for run in runs if run.width == h} for h in (16, 32, 128)}
    assert seeds == {16: set(range(8)), 32: set(range(4)), 128: {0, 1}}
    with pytest.raises(UserError, match="did you mean 'members'"):
        STUDY.settings("quick", {"member": 3})


def test_every_law_meets_at_the_same_x() -> None:
    """The conventions of alpha are those of ``control.width``: x = sqrt(h) alpha under NTK, alpha under mean-field."""
    by_law = {law: [r for r in wanted("quick", laws=law) if r.width == 64] for law in ("ntk", "mean-field")}
    ntk = {round(run.alpha * 8, 9) for run in by_law["ntk"]}
    assert {round(run.alpha, 9) for run in by_law["mean-field"]} <= ntk


def laws_obeyed() -> pd.DataFrame:
    frame = synthetic.study(widths=(16, 32, 64, 128, 256), exponents=np.log10(CURVE), seeds=12, noise=0.02)
    return frame.assign(run="FlowRun", law="ntk", n=300)


def test_claims_of_rows_that_obey_the_laws_are_reproduced() -> None:
    found = verdicts(claims, laws_obeyed())
    verdict = {one["id"].split("/", 1)[0] + "/" + one["claim"][:4]: one["verdict"] for one in found}
    ids = {one["id"].split("/")[0] for one in found}
    assert ids == {f"R{i}" for i in range(6, 13)}
    wrong = [(one["id"], one["value"], one["range"]) for one in found if one["verdict"] != "reproduced"]
    # the made-up rows say nothing of ensembles of one error; every law of theirs must be found
    assert not [one for one in wrong if one[0].split("/")[0] != "R12"], verdict


def test_a_slip_in_the_width_is_not_reproduced() -> None:
    """h in place of sqrt(h): the crossover moves by another power of the width, and the claim says so."""
    frame = laws_obeyed()
    slipped = frame.assign(alpha=frame["alpha"] * frame["width"] ** 1.5)
    star = next(one for one in verdicts(claims, slipped) if one["id"].startswith("R6"))
    assert star["verdict"] == "not reproduced"
    assert star["value"] == pytest.approx(1.0, abs=0.1)


def test_ranges_and_references_are_those_of_the_registry() -> None:
    ranges = {one["id"].rsplit("/", 1)[0]: one["range"] for one in verdicts(claims, laws_obeyed())}
    assert ranges["R6"] == pytest.approx([-0.6, -0.4])
    assert ranges["R7"] == pytest.approx([-1.5, -1.1])
    assert ranges["R8/dK"] == ranges["R8/dW"] == pytest.approx([-1.1, -0.9])
    assert ranges["R9"] == pytest.approx([-0.44, -0.24])
    assert ranges["R10/feature"] == pytest.approx([0.9, 1.1])
    assert ranges["R10/lazy"] == pytest.approx([-0.1, 0.1])
    assert ranges["R11/lazy"] == pytest.approx([-1.2, -0.8])
    assert ranges["R12/lazy"] == [None, 0.15]


def test_the_catalogue_names_every_claim_of_the_study() -> None:
    made = {one["id"].split("/")[0] for one in verdicts(claims, laws_obeyed())}
    assert made <= set(CATALOG[STUDY.name].card.claims)


def test_no_rows_no_claims() -> None:
    assert verdicts(claims, NOTHING) == []


def test_a_run_is_the_same_alone_and_in_company() -> None:
    """Rows, bit for bit but for the time they took: what makes a run a pure function of its fields."""
    base = FlowRun(n=40, n_test=60, n_probe=20, width=16, max_steps=100)
    runs = [base.model_copy(update={"alpha": a, "seed": seed}) for a in (0.05, 25.0) for seed in (0, 1)]
    together = {run.key: rows for run, rows in FlowRun.perform(runs, None, lambda text: None)}
    for run in runs:
        ((_, alone),) = FlowRun.perform([run], None, lambda text: None)
        for mine, ours in zip(alone, together[run.key], strict=True):
            first, second = (pd.Series(row).drop("seconds", errors="ignore") for row in (mine, ours))
            pd.testing.assert_series_equal(first, second, check_exact=True)


FILE = """
from regimes.study import Scale, Study, grid
from regimes.papers.feature_lazy.runs import FlowRun

SWEEP = grid(FlowRun, width=[8, 12, 16, 24], alpha=[0.01, 1.0, 100.0], seed=range(3), n=40, n_test=60, n_probe=20)
STUDY = Study("killed", "Killed and started again", runs=[FlowRun], scales={"quick": Scale(lambda s: SWEEP, "", "")})
"""


def rows_of(out: Path) -> pd.DataFrame:
    frame = pd.read_parquet(out / "rows").drop(columns="seconds")
    return frame.sort_values(["key", "step", "status"], ignore_index=True)


@pytest.mark.slow
def test_killed_at_twenty_moments_the_rows_are_those_of_an_undisturbed_study(tmp_path: Path) -> None:
    file = tmp_path / "study.py"
    file.write_text(FILE)
    command = [sys.executable, "-m", "regimes.cli", "run", str(file), "--on", "pool:2", "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], env=ENVIRONMENT, check=True, capture_output=True)
    chance = random.Random(0)
    for _ in range(20):
        process = subprocess.Popen(
            [*command, str(tmp_path / "killed")],
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(chance.uniform(1.0, 6.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*command, str(tmp_path / "killed")], env=ENVIRONMENT, check=True, capture_output=True)
    whole, killed = rows_of(tmp_path / "whole"), rows_of(tmp_path / "killed")
    assert len(list((tmp_path / "killed" / "rows").iterdir())) == whole["key"].nunique() == 36
    pd.testing.assert_frame_equal(whole, killed, check_exact=True)


def test_run_study_reaches_a_verdict_on_a_tiny_plane(tmp_path: Path) -> None:
    """From nothing to claims on real flows, in this process."""
    scale = STUDY.scales["quick"]
    runs = [run for run in wanted("quick", seeds=1, members=1) if run.width == 32 and run.alpha > 0.5]
    small = [run.model_copy(update={"n": 60, "n_test": 100, "n_probe": 30}) for run in runs]
    from dataclasses import replace

    study = replace(STUDY, scales={"quick": replace(scale, sweep=lambda settings: lambda frame: small)})
    result = run_study(study, "quick", tmp_path, quiet=True)
    assert result.finished == len(small) and not result.failures
    found = {one["id"]: one for one in verdicts(claims, pd.read_parquet(tmp_path / "rows"))}
    lazy = found["R8/dK/digits-L=2"]
    assert lazy["value"] == pytest.approx(-1, abs=0.05)
