"""The study of lazy training: what its sweeps want, what its claims say, and a study that is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from regimes.papers.catalog import CATALOG
from regimes.papers.lazy_training.claims import WINDOW, claims
from regimes.papers.lazy_training.figures import figures
from regimes.papers.lazy_training.runs import RateRun, StudentRun
from regimes.papers.lazy_training.runs.images import ImageRun
from regimes.papers.lazy_training.study import STUDY
from regimes.report.claim import verdicts
from regimes.study import Run, grid, run_study
from tests.papers.lazy_training.synthetic import laws_obeyed

NOTHING = pd.DataFrame()


def wanted(scale: str, **given: object) -> list[Run]:
    return list(STUDY.sweep(scale, STUDY.settings(scale, given))(NOTHING))


def images(runs: list[Run]) -> list[ImageRun]:
    return [run for run in runs if isinstance(run, ImageRun)]


@pytest.mark.parametrize("scale", list(STUDY.scales))
def test_a_scale_has_the_runs_its_claims_need(scale: str) -> None:
    runs = wanted(scale)
    assert len({run.key for run in runs}) == len(runs)
    octaves = sorted({run.alpha for run in runs if isinstance(run, RateRun)})
    fitted = [alpha for alpha in octaves if WINDOW[0] <= alpha <= WINDOW[1]]
    assert fitted == [2.0**k for k in range(5, 11)]  # five octaves
    students = [run for run in runs if isinstance(run, StudentRun) and not run.traced]
    tau = {run.tau: run for run in students if run.symmetric}
    assert {0.01, 3.0, 10.0} <= set(tau) and tau[10.0].linear
    wide = {run.scaling for run in students if not run.symmetric and run.width == 512}
    assert wide == {"1/sqrt(m)", "1/m"}
    assert {run.seed for run in students} == set(range(5))
    assert {run.alpha for run in images(runs)} >= {1.0, 10.0, 100.0, 1000.0}


@pytest.mark.parametrize("scale", list(STUDY.scales))
def test_students_share_a_scale_of_time(scale: str) -> None:
    """lr tau^2 is the step in the limit of large tau; lr times the power of m is that of both scalings."""
    students = [run for run in wanted(scale) if isinstance(run, StudentRun) and not run.traced]
    large = {round(run.lr * run.tau**2, 6) for run in students if run.symmetric and run.tau > 0.1}
    assert len(large) == 1
    plain = {run.lr / (run.width if run.scaling == "1/m" else 1) for run in students if not run.symmetric}
    assert len(plain) == 1
    assert max(run.lr for run in students if run.symmetric) == 10.0


def test_the_small_scale_holds_both_data_sets() -> None:
    assert {run.dataset for run in images(wanted("small"))} == {"fashion-mnist", "cifar-10"}
    assert {run.dataset for run in images(wanted("quick"))} == {"digits"}


def test_wide_networks_are_wanted_at_the_scale_of_the_paper_alone() -> None:
    wide = {scale: [r for r in images(wanted(scale)) if r.width_factor > 1] for scale in STUDY.scales}
    assert not wide["quick"] and not wide["small"]
    assert {(run.model, run.alpha) for run in wide["paper"]} == {
        (model, alpha) for model in ("vgg", "resnet") for alpha in (1.0, 1e7)
    }


@pytest.mark.parametrize("scale", list(STUDY.scales))
def test_large_scales_are_in_double_precision(scale: str) -> None:
    assert all(run.dtype == "float64" for run in images(wanted(scale)) if run.alpha > 1e3)


def test_settings_choose_what_is_run() -> None:
    runs = wanted("quick", datasets="mnist,cifar-10", alphas="1,5", seeds=2)
    assert {(run.dataset, run.alpha, run.seed) for run in images(runs)} == {
        (name, alpha, seed) for name in ("mnist", "cifar-10") for alpha in (1.0, 5.0) for seed in (0, 1)
    }


def by_id(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    return {one["id"]: one for one in verdicts(claims, frame)}


def test_claims_of_rows_that_obey_the_laws_are_reproduced() -> None:
    found = by_id(laws_obeyed())
    assert {name.split("/")[0] for name in found} == {"R1", "R2", "R3", "R4", "R5"}
    wrong = [
        (one["id"], one["value"], one["note"]) for one in found.values() if one["verdict"] != "reproduced"
    ]
    assert not wrong
    assert {name.split("/")[0] for name in found} <= set(CATALOG[STUDY.name].card.claims)


def test_ranges_are_those_of_the_registry() -> None:
    ranges = {name: one["range"] for name, one in by_id(laws_obeyed()).items()}
    assert ranges["R1/weights"] == ranges["R1/outputs"] == pytest.approx([-1.1, -0.9])
    assert ranges["R1/distance"] == pytest.approx([-2.1, -1.9])
    assert ranges["R2/ratio"] == [10.0, None]
    assert ranges["R2/plateau"] == [0.9, 1.1]
    assert ranges["R2/linear"] == [0.95, 1.05]
    assert ranges["R3"] == [3.0, None]
    assert ranges["R4/drop/cifar-10"] == [0.15, None]
    assert ranges["R4/drop/digits"] == ranges["R4/drop/fashion-mnist"] == [0.05, None]
    assert ranges["R4/moving/cifar-10"] == [None, 0.9]
    assert ranges["R4/frozen/cifar-10"] == [0.98, None]


Slip = Callable[[pd.DataFrame], Any]
SLIPS: dict[str, tuple[str, Slip]] = {
    # no centring: the weights move by what the start demands, whatever alpha is
    "R1/weights": ("moved", lambda f: f["moved"] * f["alpha"]),
    # the linear path followed with too coarse a step
    "R1/distance": ("apart", lambda f: f["apart"] + 1e-3 * f["moved"]),
    "R1/outputs": ("missed", lambda f: f["missed"] ** 2),
    "R2/ratio": ("test_loss", lambda f: f["test_loss"].where(f["tau"] != 0.01, 1.0)),
    "R2/plateau": ("test_loss", lambda f: f["test_loss"] * f["tau"].where(f["tau"] >= 3, 1.0)),
    "R2/linear": ("linear_loss", lambda f: f["linear_loss"] * 1.2),
    "R3": ("test_loss", lambda f: f["test_loss"].where(f["scaling"] != "1/m", 3.0)),
    "R4/drop/cifar-10": ("test_accuracy", lambda f: f["test_accuracy"] * 0 + 0.5),
    "R4/moving/cifar-10": ("stability", lambda f: f["stability"] * 0 + 0.99),
    "R4/frozen/cifar-10": ("stability", lambda f: f["stability"] - 0.1),
}


@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_is_not_reproduced(name: str) -> None:
    column, slip = SLIPS[name]
    frame = laws_obeyed()
    assert by_id(frame.assign(**{column: slip(frame)}))[name]["verdict"] == "not reproduced"


def test_what_was_not_run_is_said() -> None:
    frame = laws_obeyed()
    without = by_id(frame.loc[frame["tau"] != 0.01])["R2/ratio"]
    assert without["verdict"] == "inconclusive" and "tau = 0.01" in without["note"]
    diverged = frame.assign(status=frame["status"].where(frame["width"] != 512, "diverged"))
    assert by_id(diverged)["R3"]["verdict"] == "inconclusive"
    assert not [name for name in by_id(frame.loc[frame["run"] != "ImageRun"]) if name.startswith("R4")]


def test_no_rows_no_claims() -> None:
    assert verdicts(claims, NOTHING) == []
    assert len(figures(NOTHING)) == 6


def test_run_study_reaches_verdicts_on_tiny_tasks(tmp_path: Path) -> None:
    """From nothing to claims, in this process."""
    common: dict[str, Any] = {"inputs": 8, "n": 48, "n_test": 32, "width": 8, "steps": 200}
    runs = [
        *grid(RateRun, alpha=[32.0, 181.0, 1024.0], seed=range(3), horizon=1.0, n=6, width=6)(NOTHING),
        *(StudentRun(tau=tau, lr=0.2 / tau**2, linear=True, seed=s, **common) for tau in (3, 10) for s in range(3)),
    ]  # fmt: skip
    study = replace(STUDY, scales={"quick": replace(STUDY.scales["quick"], sweep=lambda _: lambda _: runs)})
    result = run_study(study, "quick", tmp_path, quiet=True)
    assert result.finished == len(runs) and not result.failures
    frame = pd.read_parquet(tmp_path / "rows")
    found = by_id(frame)
    assert [found[f"R1/{name}"]["verdict"] for name in ("weights", "distance", "outputs")] == [
        "reproduced"
    ] * 3
    assert found["R2/linear"]["value"] == pytest.approx(1.0, abs=0.01)
    losses = frame.loc[frame["run"] == "StudentRun"].sort_values(["key", "step"]).groupby("key")["best_loss"]
    assert all(later <= earlier for _, own in losses for earlier, later in pairwise(np.array(own)))
