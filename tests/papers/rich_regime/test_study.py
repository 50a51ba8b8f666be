"""The study of the rich regime: what its sweeps want, what its claims say, and a study that is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy.stats import rankdata

from regimes.papers.catalog import CATALOG
from regimes.papers.rich_regime.claims import NORMAL, claims
from regimes.papers.rich_regime.figures import FIGURES, MOVEMENT, figures, sparse_error
from regimes.papers.rich_regime.runs import ConvActivityRun, ConvSparseRun, SparseRun
from regimes.papers.rich_regime.study import STUDY
from regimes.papers.rich_regime.tables import ACTIVITY, SPARSE
from regimes.report.claim import judge, verdicts
from regimes.report.style import as_bytes
from regimes.study import grid, run_study
from tests.papers.rich_regime.synthetic import claims_obeyed

NOTHING = pd.DataFrame()


def wanted(scale: str, **given: object) -> list[Any]:
    return list(STUDY.sweep(scale, STUDY.settings(scale, given))(NOTHING))


@pytest.mark.parametrize("network", ["mlp", "cnn"])
@pytest.mark.parametrize("scale", list(STUDY.scales))
def test_a_scale_has_the_runs_its_claims_need(scale: str, network: str) -> None:
    runs = wanted(scale)
    assert len({run.key for run in runs}) == len(runs)
    moved: list[Any] = [run for run in runs if type(run) is ACTIVITY[network]]
    assert {run.law for run in moved} == {"standard", "mup"}
    assert len({run.width for run in moved}) >= 4
    for law in ("standard", "mup"):
        seeds = {run.seed for run in moved if run.law == law}
        assert {(run.width, run.seed) for run in moved if run.law == law} >= {
            (width, seed) for width in {run.width for run in moved} for seed in seeds
        }
    sparse: list[Any] = [run for run in runs if type(run) is SPARSE[network]]
    if (scale, network) == ("quick", "cnn"):
        assert not sparse  # 1000 images are too few for it
        return
    assert {(run.policy, run.p) for run in sparse} >= {
        (name, 0.2) for name in ("all", "top", "ends", "sampled")
    }
    for dataset in {run.dataset for run in sparse}:
        assert len({run.epochs for run in sparse if run.dataset == dataset}) == 1  # equal steps
    assert len({run.seed for run in sparse}) >= (8 if scale == "quick" else 10)


def test_settings_choose_what_is_run() -> None:
    runs = wanted("quick", datasets="mnist,digits", widths="8", chances="0.5", momentum=0.9, seeds=2)
    assert {(run.dataset, run.seed, run.momentum) for run in runs if isinstance(run, SparseRun)} == {
        (name, seed, 0.9) for name in ("mnist", "digits") for seed in (0, 1)
    }
    # what the claims are about is there whatever is asked for
    assert {run.p for run in runs if isinstance(run, SparseRun) and run.policy == "sampled"} == {0.2, 0.5}
    runs = wanted("small", networks="cnn")
    assert {type(run) for run in runs} == {ConvActivityRun, ConvSparseRun}
    momenta = {(type(run), run.momentum) for run in wanted("small")}
    assert {(SparseRun, 0.0), (ConvSparseRun, 0.9)} <= momenta and len(momenta) == 4


def by_id(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    return {one["id"]: one for one in verdicts(claims, frame)}


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_claims_of_rows_that_obey_them_are_reproduced(network: str) -> None:
    found = by_id(claims_obeyed(network=network))
    wrong = [
        (one["id"], one["value"], one["note"]) for one in found.values() if one["verdict"] != "reproduced"
    ]
    assert not wrong
    assert {name.split("/")[0] for name in found} == set(CATALOG[STUDY.name].card.claims)
    assert all(
        one["power"] is not None and one["power"] >= 0.8 for one in found.values() if one["kind"] == "claim"
    )


def test_ranges_are_those_of_the_registry() -> None:
    ranges = {name: one["range"] for name, one in by_id(claims_obeyed()).items()}
    assert ranges["R20/share/digits"] == [0.05, None]
    assert ranges["R20/bottom/digits-standard"] == [1.0, None]
    assert ranges["R20/rising/digits-standard"] == [0.0, None]
    assert ranges["R20/median/digits"] == [None, 0.2]
    assert ranges["R20/reset/digits"] == ranges["R20/controls/digits"] == [0.01, None]
    assert ranges["R21/ends/digits"] == [None, 1.5]
    assert ranges["R21/top/digits"] == [1.5, None]
    assert ranges["R21/sampled/digits"] == [-1.0, 1.0]
    assert ranges["R21/cost/digits"] == [None, 0.5]
    convolutional = {name: one["range"] for name, one in by_id(claims_obeyed(network="cnn")).items()}
    strict = {"R20/rising/digits-cnn-standard", "R20/rising/digits-cnn-mup"}
    for name, allowed in convolutional.items():
        assert allowed == ([0.01, None] if name in strict else ranges[name.replace("digits-cnn", "digits")])


Slip = Callable[[pd.DataFrame], Any]
SLIPS: dict[str, tuple[str, Slip]] = {
    "R20/share": ("top_moved", lambda f: f["top_moved"] / 5),
    "R20/tail": ("top_moved", lambda f: f["top_moved"] * 0 + NORMAL - 0.01),
    "R20/median": ("median_change", lambda f: f["median_change"] * 10),
    "R20/reset": ("reset_layered", lambda f: f["reset_active"] - 0.01),
    "R20/controls": ("reset_random", lambda f: f["reset_active"] + 0.01),
    "R20/bottom": ("layer_enrichment", lambda f: f["layer_enrichment"].map(lambda each: [0.5] * 4, "ignore")),
    "R20/rising": ("width", lambda f: 1 / f["width"]),
    "R21/ends": ("test_accuracy", lambda f: f["test_accuracy"].where(f["policy"] != "ends", 0.9)),
    "R21/top": ("test_accuracy", lambda f: f["test_accuracy"].where(f["policy"] != "top", 0.95)),
    "R21/sampled": ("test_accuracy", lambda f: f["test_accuracy"].where(f["policy"] != "all", 0.97)),
    "R21/least": ("products", lambda f: f["products"].where(f["policy"] != "top", f["products"] * 10)),
    "R21/cost": ("products", lambda f: f["products"] * 3),
}  # fmt: skip


@pytest.mark.parametrize("network", ["mlp", "cnn"])
@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_is_not_reproduced(name: str, network: str) -> None:
    column, slip = SLIPS[name]
    frame = claims_obeyed(network=network)
    frame = frame.assign(**{column: slip(frame)})
    told = [judge(one, frame)["verdict"] for one in claims(frame) if one.id.startswith(f"{name}/")]
    assert told and set(told) == {"not reproduced"}


def test_a_sampled_policy_that_is_far_better_does_not_match_either() -> None:
    frame = claims_obeyed()
    better = frame["test_accuracy"].where(frame["policy"] != "sampled", 0.99)
    assert by_id(frame.assign(test_accuracy=better))["R21/sampled/digits"]["verdict"] == "not reproduced"


def test_the_share_of_a_normal_sample() -> None:
    z = np.sort(np.random.default_rng(0).standard_normal(2_000_000) ** 2)[::-1]
    assert z[: len(z) // 100].sum() / z.sum() == pytest.approx(NORMAL, abs=5e-4)


def test_no_drop_at_all_is_not_twice_no_drop() -> None:
    frame = claims_obeyed()
    nothing = {f"reset_{kind}": frame["reset_none"] for kind in ("active", "layered", "random", "least")}
    found = by_id(frame.assign(**nothing))
    assert {found[f"R20/{name}/digits"]["verdict"] for name in ("reset", "controls")} == {"not reproduced"}


def test_the_trend_is_spearmans_correlation() -> None:
    frame = claims_obeyed()
    random = np.random.default_rng(1)
    noisy = frame["layer_enrichment"].map(lambda each: [float(random.random()), *each[1:]], "ignore")
    frame = frame.assign(layer_enrichment=noisy)
    own = frame.loc[(frame["run"] == "ActivityRun") & (frame["law"] == "standard")]
    plain = [
        np.corrcoef(rankdata(part["width"]), rankdata([each[0] for each in part["layer_enrichment"]]))[0, 1]
        for _, part in own.groupby("seed")
    ]
    assert by_id(frame)["R20/rising/digits-standard"]["value"] == pytest.approx(np.mean(plain))


def test_three_widths_show_no_trend() -> None:
    frame = claims_obeyed()
    found = by_id(frame.loc[frame["width"] != 16])
    assert found["R20/rising/digits-standard"]["verdict"] == "outside this scale"
    assert found["R20/bottom/digits-standard"]["verdict"] == "reproduced"


def test_of_few_images_the_top_layer_alone_is_outside_this_scale() -> None:
    found = by_id(claims_obeyed().assign(n=1000))
    told = {name for name, one in found.items() if one["verdict"] == "outside this scale"}
    assert told == {"R21/top/digits"} and found["R21/top/digits"]["value"] == pytest.approx(9.5, abs=0.5)


def test_what_was_not_run_is_said() -> None:
    frame = claims_obeyed()
    found = by_id(frame.loc[~((frame["policy"] == "sampled") & (frame["p"] == 0.2))])
    assert found["R21/sampled/digits"]["verdict"] == "inconclusive"
    assert "p = 0.2" in found["R21/sampled/digits"]["note"]
    assert not [name for name in by_id(frame.loc[frame["run"] == "SparseRun"]) if name.startswith("R20")]
    assert not [name for name in by_id(frame.loc[frame["run"] != "SparseRun"]) if name.startswith("R21")]


def test_no_rows_no_claims() -> None:
    assert verdicts(claims, NOTHING) == []
    assert len(figures(NOTHING)) == len(FIGURES)


@pytest.mark.parametrize("number", range(len(FIGURES)))
def test_a_figure_shows_both_networks(number: int) -> None:
    name, _, draw, _ = FIGURES[number]
    frame = pd.concat([claims_obeyed(), claims_obeyed(network="cnn")])
    drawn = draw(frame)
    assert isinstance(drawn, Figure)
    titles = [axes.get_title(loc="left") for axes in drawn.axes if axes.axison]
    pairs = [f"digits, {network}" for network in ("mlp", "cnn")]
    if name in MOVEMENT:
        assert titles == [f"{pair}, {law} law" for pair in pairs for law in ("standard", "mup")]
    elif not name.endswith("in_time"):
        assert titles == pairs
    assert as_bytes(drawn, "svg")
    assert [entry[0] for entry in figures(frame)] == [entry[0] for entry in FIGURES]


def test_figures_are_of_the_rows_there_are() -> None:
    frame = claims_obeyed(network="cnn")
    assert [entry[0] for entry in figures(frame)] == [name for name, *_ in FIGURES if name != "mlp_in_time"]
    looked = frame.loc[frame["run"] == "ConvActivityRun"]
    assert [entry[0] for entry in figures(looked)] == list(MOVEMENT)


def test_equal_cost_is_counted_in_epochs_of_all_layers() -> None:
    """20 steps of 50 samples are an epoch of 1000: the curve of all layers ends at 400 / 20."""
    figure = sparse_error(claims_obeyed())
    ends = {bars.get_label(): bars.lines[0].get_xdata()[-1] for bars in figure.axes[0].containers}
    assert ends["all layers"] == pytest.approx(20.0)
    assert ends["top only"] == pytest.approx(1.0)
    assert ends["sampled, p = 0.2"] == pytest.approx(4.8)


def test_run_study_reaches_verdicts_on_tiny_tasks(tmp_path: Path) -> None:
    """From nothing to claims, in this process."""
    common: dict[str, Any] = {"n": 60, "n_test": 40, "epochs": 3, "width": 8, "seed": range(2)}
    runs = [
        run
        for network in ("mlp", "cnn")
        for wanted in (
            grid(ACTIVITY[network], **{**common, "width": [4, 8, 12, 16][: 4 if network == "mlp" else 2]}),
            grid(SPARSE[network], policy=["all", "top", "ends", "sampled"], **common),
        )
        for run in wanted(NOTHING)
    ]
    study = replace(STUDY, scales={"quick": replace(STUDY.scales["quick"], sweep=lambda _: lambda _: runs)})
    result = run_study(study, "quick", tmp_path, quiet=True)
    assert result.finished == len(runs) and not result.failures
    frame = pd.read_parquet(tmp_path / "rows")
    found = by_id(frame)
    assert len(found) == 2 * 12
    assert not [one["note"] for one in found.values() if one["value"] is None]
    assert found["R21/cost/digits"]["verdict"] in ("reproduced", "inconclusive")
    for _, _, draw, _ in FIGURES:
        assert isinstance(draw(frame), Figure)
