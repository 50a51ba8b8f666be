"""Networks and their frozen kernels: what a row says, which claims it makes, and what is no ground for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from regimes import control, data, measure, models, train
from regimes.core.error import UserError
from regimes.core.loss import soft_hinge
from regimes.papers.catalog import CATALOG
from regimes.papers.feature_lazy.claims import claims
from regimes.papers.feature_lazy.figures import FIGURES, FROZEN, figures
from regimes.papers.feature_lazy.figures import frozen as figure_frozen
from regimes.papers.feature_lazy.runs import FlowRun, FrozenRun
from regimes.papers.feature_lazy.study import STUDY
from regimes.papers.feature_lazy.tables.frozen import networks, regimes
from regimes.report.claim import verdicts
from regimes.report.page import draw
from regimes.study import Run
from tests.papers.feature_lazy import synthetic

NOTHING = pd.DataFrame()
FC = FrozenRun(model="fc", pca=5, depth=1, width=16, n=10, n_test=60, n_probe=20, tolerance=1e-3)
# with four channels not every start comes to its last margin at alpha = 0.01
CNN = FrozenRun(model="cnn", width=4, n=10, n_test=40, n_probe=10, tolerance=1e-3, seed=2)


def rows_of(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    found = FrozenRun.perform(runs, None, lambda text: None)
    return {run.key: row for run, (row,) in found}


def at(run: FrozenRun, **changes: Any) -> FrozenRun:
    return FrozenRun(**{**dict(run), **changes})


@pytest.mark.parametrize("run", [FC, CNN], ids=["fc", "cnn"])
def test_in_the_lazy_limit_the_kernel_of_the_start_is_the_network(run: FrozenRun) -> None:
    """F from the network and from its frozen kernels differ by O(1 / alpha), in one regime and not in the other."""
    near, far, moved = (
        rows_of([one])[one.key] for one in (at(run, alpha=1e3), at(run, alpha=1e5), at(run, alpha=0.01))
    )
    for row in (near, far, moved):
        assert row["status"] == "finished" and row["train_error"] == 0
    assert far["dK"] == pytest.approx(near["dK"] / 100, rel=0.1)
    for name in ("initial", "final"):
        # one step more or less to the last margin is all that may differ
        assert far[f"{name}_gap"] < 0.02 and far[f"{name}_error"] == pytest.approx(
            far["test_error"], abs=1 / run.n_test
        )
        assert moved[f"{name}_gap"] > 0.05
    assert moved["dK"] > 1 > near["dK"]
    # lazy or not, the network starts at the same kernel
    assert moved["initial_error"] == far["initial_error"] and moved["initial_steps"] == far["initial_steps"]


def test_the_row_is_what_a_plain_composition_gives() -> None:
    run = at(FC, alpha=0.3, seed=2)
    row = rows_of([run])[run.key]
    points = data.load("digits", task="parity", train=run.n, test=run.n_test, merge=True, pca=5, flat=True)
    network, steps = models.mlp(5, 16, 1, seed=2), train.Tolerance(gradient=1e-3)
    (*_, end) = train.flow(control.scale(network, 0.3), points.train.x, points.train.y, tolerance=steps)
    said = end(points.test.x).detach()[:, 0]
    assert row["test_outputs"] == said.tolist()
    assert row["test_error"] == measure.error_rate(said, points.test.y)
    kernels = []
    for values in (dict(network.named_parameters()), end.materialize().network.state_dict()):  # type: ignore[union-attr]
        network.load_state_dict({name: value.detach().clone() for name, value in values.items()})
        kernels.append(measure.ntk(network, torch.cat([points.train.x, points.test.x]), reduce="trace"))
    for name, whole in zip(("initial", "final"), kernels, strict=True):
        # the kernel of f, so without alpha
        path = train.kernel(whole[: run.n, : run.n], points.train.y, loss=soft_hinge, tolerance=steps)
        outputs = path.at(math.inf).predict(whole[run.n :, : run.n])[:, 0]
        assert row[f"{name}_error"] == measure.error_rate(outputs, points.test.y)
        assert row[f"{name}_gap"] == pytest.approx(float((outputs - said).norm() / said.norm()), rel=1e-6)
    probe = slice(run.n, run.n + run.n_probe)
    assert row["dK"] == pytest.approx(measure.drift(kernels[1][probe, probe], kernels[0][probe, probe]))


@pytest.mark.parametrize("run", [FC, CNN], ids=["fc", "cnn"])
def test_a_run_is_the_same_alone_and_in_company(run: FrozenRun) -> None:
    """Rows, bit for bit but for the time they took: what makes a run a pure function of its fields."""
    runs = [at(run, alpha=alpha, seed=seed) for alpha in (0.05, 25.0) for seed in (0, 1)]
    assert len({one.batch for one in runs}) == 1
    together = rows_of(runs)
    for one in runs:
        alone = rows_of([one])[one.key]
        for mine, ours in zip(alone.items(), together[one.key].items(), strict=True):
            assert mine == ours or mine[0] == "seconds"


def test_a_flow_that_is_cut_short_says_so_and_freezes_no_kernel() -> None:
    run = at(FC, max_steps=3)
    row = rows_of([run])[run.key]
    assert row["status"] == "stopped" and row["step"] == 3
    assert "final_error" not in row and "initial_error" not in row


def test_a_function_that_does_not_end_has_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its steps are known, and no error or distance; those of the network are what they were."""
    whole = rows_of([FC])[FC.key]
    kernel = train.kernel
    monkeypatch.setattr(train, "kernel", lambda *given, **named: kernel(*given, **{**named, "max_steps": 3}))
    row = rows_of([FC])[FC.key]
    assert row["status"] == "finished" and row["test_error"] == whole["test_error"]
    assert row["initial_steps"] == row["final_steps"] == 3
    assert not row.keys() & {"initial_error", "final_error", "initial_gap", "final_gap"}


def test_one_experiment_has_one_key() -> None:
    with pytest.raises(UserError, match="a cnn has depth = 4 and no pca"):
        FrozenRun(model="cnn", depth=2)
    with pytest.raises(UserError, match="a cnn has depth = 4 and no pca"):
        FrozenRun(model="cnn", pca=10)


def test_the_cost_counts_what_a_convolution_does() -> None:
    """16 units at 4 x 4, 4 x 4, 2 x 2, 2 x 2 of digits: h = 16, kernels 3 x 3, one channel in."""
    run = FrozenRun(model="cnn", width=16)
    assert run._sizes() == (9 * 16 + 3 * 9 * 256, 640, 16 * 144 + (16 + 4 + 4) * 9 * 256)
    network = models.cnn(1, 16, kernel=3)
    assert run._sizes()[0] + 16 == sum(p.numel() for p in network.parameters())
    assert at(run, width=32).cost() > run.cost()


def wanted(scale: str, **given: object) -> list[Run]:
    return list(STUDY.sweep(scale, STUDY.settings(scale, given))(NOTHING))


@pytest.mark.parametrize("scale", list(STUDY.scales))
def test_a_scale_has_its_networks_in_both_regimes(scale: str) -> None:
    """At the quick scale there is no convolutional one: it could not decide R13."""
    runs = [run for run in wanted(scale) if isinstance(run, FrozenRun)]
    assert len({run.key for run in runs}) == len(runs)
    assert {run.model for run in runs} == ({"fc"} if scale == "quick" else {"fc", "cnn"})
    for model in {run.model for run in runs}:
        own = [run for run in runs if run.model == model]
        reach = {
            x: {r.seed for r in own if math.isclose(r.alpha * math.sqrt(r.width), x)} for x in (0.1, 1e4, 1e6)
        }
        assert len({run.batch for run in own}) == 1
        assert len(reach[0.1]) >= (6 if model == "fc" else 3) and reach[0.1] == reach[1e4] | reach[1e6]


def test_the_first_data_set_is_that_of_the_frozen_kernels() -> None:
    runs = [r for r in wanted("small", datasets="cifar-10,mnist", frozen=1) if isinstance(r, FrozenRun)]
    assert {(r.dataset, r.model, r.size, r.pca) for r in runs} == {
        ("cifar-10", "fc", None, None),
        ("cifar-10", "cnn", 16, None),
    }
    assert not [r for r in wanted("quick", frozen=0) if isinstance(r, FrozenRun)]


def test_runs_of_the_plane_do_not_hang_on_those_of_frozen_kernels() -> None:
    plane = [run.key for run in wanted("quick") if isinstance(run, FlowRun)]
    assert plane == [run.key for run in wanted("quick", frozen=0)]


def obeyed(model: str = "cnn", seeds: int = 6) -> pd.DataFrame:
    """Rows in which R13 and R14 hold: 2 % against 4 %, and an ensemble twice as good."""
    return pd.DataFrame(_rows(model, seeds))


def _rows(model: str, seeds: int) -> Iterator[dict[str, Any]]:
    random = np.random.default_rng(0)
    target = np.where(np.arange(1000) % 2, 1.0, -1.0)
    for regime, x, error, dk in (("feature", 0.1, 0.02, 300.0), ("lazy", 1e4, 0.04, 1e-3)):
        # half of the errors of a member are common to all, half are its own
        shared = random.permutation(1000)
        common, rest = shared[: int(500 * error)], shared[int(500 * error) :]
        for seed in range(seeds):
            own = random.choice(rest, int(500 * error), replace=False)
            said = target.copy()
            said[np.concatenate([common, own])] *= -1
            near = 0.002 * random.standard_normal(2)
            yield {
                "run": "FrozenRun", "key": f"{model}-{regime}-{seed}", "status": "finished", "dataset": "mnist",
                "model": model, "depth": 4, "width": 16, "n": 5000, "alpha": x / 4, "seed": seed, "dK": dk,
                "test_error": error, "test_outputs": said.tolist(), "test_targets": target.tolist(),
                "initial_error": 0.04 + near[0] / (10 if regime == "lazy" else 1), "final_error": error + near[1],
            }  # fmt: skip


def judged(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    return {one["id"].removesuffix("/mnist-cnn-h=16-n=5000"): one for one in verdicts(claims, frame)}


def test_claims_of_rows_that_obey_them_are_reproduced() -> None:
    found = judged(obeyed())
    assert {name: one["verdict"] for name, one in found.items()} == dict.fromkeys(
        ("R13", "R13/ensemble", "R14/final", "R14/initial"), "reproduced"
    )
    assert found["R13"]["value"] == pytest.approx(0.5)
    assert found["R13/ensemble"]["value"] == pytest.approx(0.5, abs=0.01)
    rows = obeyed()
    feature, lazy = (rows.loc[rows["alpha"] < 1], rows.loc[rows["alpha"] > 1])
    assert found["R14/final"]["value"] == pytest.approx(
        100 * (feature["final_error"] - feature["test_error"]).mean()
    )
    assert found["R14/initial"]["value"] == pytest.approx(
        100 * (lazy["initial_error"] - lazy["test_error"]).mean()
    )
    ranges = {name: one["range"] for name, one in found.items()}
    assert ranges["R13"] == ranges["R13/ensemble"] == [None, 0.8]
    assert (ranges["R14/final"], ranges["R14/initial"]) == ([-1.0, 1.0], [-0.5, 0.5])
    assert {name.split("/")[0] for name in found} <= set(CATALOG[STUDY.name].card.claims)


def test_few_images_are_outside_this_scale_whatever_came_out() -> None:
    for rows in (obeyed(), obeyed().assign(test_error=0.03)):
        found = {one["id"].split("/mnist")[0]: one for one in verdicts(claims, rows.assign(n=192))}
        words = {name: one["verdict"] for name, one in found.items()}
        assert words["R13"] == words["R13/ensemble"] == "outside this scale"
        assert found["R13"]["value"] == judged(rows)["R13"]["value"]
        assert found["R13"]["note"].startswith("n = 192, and it takes 1000: ")


def test_a_fully_connected_network_says_nothing_of_convolutions() -> None:
    assert {one["id"].split("/")[0] for one in verdicts(claims, obeyed("fc"))} == {"R14"}


WRONG = {
    "lazy as good as feature": ("R13", lambda rows: rows.assign(test_error=0.03), "not reproduced"),
    "regimes exchanged": (
        "R13",
        lambda rows: rows.assign(test_error=0.06 - rows["test_error"]),
        "not reproduced",
    ),
    "kernels of the start as those of the end": (
        "R14/final",
        lambda rows: rows.assign(final_error=rows["initial_error"]),
        "not reproduced",
    ),
    "a lazy kernel that is off by a point": (
        "R14/initial",
        lambda rows: rows.assign(initial_error=rows["initial_error"] + 0.01),
        "not reproduced",
    ),
    "a feature regime whose kernel did not move": ("R13", lambda rows: rows.assign(dK=0.5), "inconclusive"),
    "no lazy network": ("R14/initial", lambda rows: rows.loc[rows["alpha"] < 1], "inconclusive"),
    "one seed": ("R13", lambda rows: rows.loc[rows["seed"] == 0], "inconclusive"),
    "flows that did not end": ("R14/final", lambda rows: rows.assign(final_error=np.nan), "inconclusive"),
}


@pytest.mark.parametrize("case", WRONG)
def test_rows_that_do_not_obey_do_not_pass(case: str) -> None:
    name, change, verdict = WRONG[case]
    assert judged(change(obeyed()))[name]["verdict"] == verdict


def test_pairs_are_of_one_seed() -> None:
    """A start that is bad in both regimes is no scatter of the ratio: paired, it cancels."""
    rows = obeyed()
    factor = 1 + rows["seed"] / 4
    scaled = judged(rows.assign(test_error=factor * rows["test_error"]))["R13"]
    assert scaled["value"] == pytest.approx(0.5)
    assert scaled["high"] - scaled["low"] < 1e-9


def test_runs_that_did_not_end_do_not_count() -> None:
    rows = obeyed()
    worse = rows.assign(key=rows["key"] + "-", test_error=0.5, status="stopped")
    assert judged(pd.concat([rows, worse], ignore_index=True))["R13"]["value"] == pytest.approx(0.5)


def both() -> pd.DataFrame:
    plane = synthetic.study((16, 32, 64), seeds=4, noise=0.02).assign(run="FlowRun", law="ntk")
    return pd.concat([plane, obeyed(), obeyed("fc")], ignore_index=True)


def test_the_claims_of_the_plane_do_not_see_these_rows() -> None:
    frame = both()
    alone = frame.loc[frame["run"] == "FlowRun"].dropna(axis="columns", how="all")
    mixed = {one["id"]: one for one in verdicts(claims, frame)}
    for one in verdicts(claims, alone):
        assert mixed[one["id"]]["value"] == one["value"]
    assert {name.split("/")[0] for name in mixed} - {
        one["id"].split("/")[0] for one in verdicts(claims, alone)
    } == {
        "R13",
        "R14",
    }


@pytest.mark.parametrize("entry", FIGURES, ids=[entry[0] for entry in FIGURES])
def test_every_figure_is_drawn_from_the_rows_of_both(entry: tuple[Any, ...]) -> None:
    shown = draw(entry, both())
    assert shown.svg and shown.png and not shown.note


def test_the_figures_are_those_of_the_rows() -> None:
    names = [entry[0] for entry in figures(both())]
    assert set(FROZEN) <= set(names)
    alone = both().loc[lambda rows: rows["run"] == "FlowRun"]
    assert set(names) - {entry[0] for entry in figures(alone)} == set(FROZEN)


def test_figures_show_the_numbers_of_the_rows() -> None:
    drawn = figure_frozen.regime_error(obeyed())
    (axes,) = drawn.axes
    handles, labels = axes.get_legend_handles_labels()
    shown = {label: handle[0].get_ydata() for label, handle in zip(labels, handles, strict=True)}  # type: ignore[index]
    assert shown["one network, mean"] == pytest.approx([2.0, 4.0])
    assert shown["average of all"] == pytest.approx([1.0, 2.0], abs=0.05)
    frozen = figure_frozen.frozen_error(both())
    assert [axes.get_title(loc="left") for axes in frozen.axes] == [
        "mnist, fc, h = 16, n = 5000",
        "mnist, cnn, h = 16, n = 5000",
    ]
    words = [tick.get_text() for tick in frozen.axes[0].get_xticklabels()]
    assert words == ["kernel at\nthe start", "network", "kernel at\nthe end"]


@pytest.mark.parametrize("draw_one", [figure_frozen.regime_error, figure_frozen.frozen_error])
def test_a_single_seed_is_drawn_and_no_rows_are_a_user_error(
    draw_one: Callable[[pd.DataFrame], Figure],
) -> None:
    assert draw_one(obeyed(seeds=1)).axes
    for frame in (NOTHING, obeyed().iloc[:0], obeyed().assign(run="FlowRun")):
        with pytest.raises(UserError):
            draw_one(frame)


def test_networks_are_told_apart() -> None:
    frame = pd.concat([obeyed(), obeyed("fc"), obeyed().assign(width=8, key="other")], ignore_index=True)
    assert [name for name, _ in networks(frame)] == [
        "mnist, fc, h = 16, n = 5000",
        "mnist, cnn, h = 8, n = 5000",
        "mnist, cnn, h = 16, n = 5000",
    ]
    assert len(networks(frame, "fc")) == 1
    with pytest.raises(UserError, match="no finished fc"):
        networks(obeyed(), "fc")
    with pytest.raises(UserError, match="no network in the lazy regime"):
        regimes(networks(obeyed())[0][1].loc[lambda rows: rows["x"] < 1])
