"""The runs of the lazy-training study: each against a plain loop or a limit, alone and in company."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from regimes import data, models
from regimes.papers.lazy_training.runs import ImageRun, RateRun, StudentRun
from regimes.report.fit import power_law
from regimes.study import Run

RATE = RateRun(inputs=3, width=6, depth=1, n=6, horizon=2.0, dt=0.1)
STUDENT = StudentRun(inputs=8, n=32, n_test=16, width=8, steps=25, lr=0.5)
IMAGE = ImageRun(n=40, n_test=30, epochs=2, batch_size=20)


def rows_of(runs: Sequence[Run]) -> dict[str, list[dict[str, Any]]]:
    return {run.key: rows for run, rows in type(runs[0]).perform(runs, None, lambda text: None)}


def end_of(run: Run) -> dict[str, Any]:
    return rows_of([run])[run.key][-1]


COMPANIES = {
    "rates": [RATE.model_copy(update={"alpha": alpha}) for alpha in (0.5, 4.0, 1000.0)],
    "students": [
        STUDENT.model_copy(update={"tau": tau, "lr": lr, "seed": seed, "linear": seed == 1})
        for tau, lr, seed in ((0.1, 2.0, 0), (1.0, 0.2, 1), (1.0, 0.1, 0))
    ],
    "students of odd sizes": [
        STUDENT.model_copy(update={"tau": tau, "seed": seed, "width": 10, "inputs": 3, "n": 7})
        for tau, seed in ((0.1, 0), (1.0, 1), (2.0, 0))
    ],
    "images": [IMAGE.model_copy(update={"alpha": alpha}) for alpha in (1.0, 100.0)],
}


@pytest.mark.parametrize("name", COMPANIES)
def test_a_run_is_the_same_alone_and_in_company(name: str) -> None:
    """Rows, bit for bit but for the time they took: what makes a run a pure function of its fields."""
    runs = COMPANIES[name]
    together = rows_of(runs)
    for run in runs:
        alone = rows_of([run])[run.key]
        for mine, ours in zip(alone, together[run.key], strict=True):
            first, second = (pd.Series(row).drop("seconds", errors="ignore") for row in (mine, ours))
            pd.testing.assert_series_equal(first, second, check_exact=True)


def test_members_of_one_program_share_what_is_stacked() -> None:
    assert len({run.batch for run in COMPANIES["students"]}) == 1
    assert STUDENT.model_copy(update={"width": 16}).batch != STUDENT.batch
    assert RATE.model_copy(update={"seed": 1}).batch != RATE.batch
    assert STUDENT.cap > 1
    assert STUDENT.model_copy(update={"width": 10}).cap == STUDENT.cap


def test_the_steps_of_the_flow_are_small_enough() -> None:
    """Half the step changes none of the distances by more than a part in a hundred thousand."""
    for alpha in (1.0, 1024.0):
        run = RateRun(alpha=alpha, horizon=2.0)
        coarse, fine = (end_of(run.model_copy(update={"dt": dt})) for dt in (0.05, 0.025))
        for column in ("moved", "apart", "missed"):
            assert fine[column] == pytest.approx(coarse[column], rel=1e-5)


def test_the_distances_have_the_powers_of_the_theorem() -> None:
    alphas = [64.0, 256.0, 1024.0]
    found = rows_of([RATE.model_copy(update={"alpha": alpha}) for alpha in alphas])
    ends = pd.DataFrame([rows[-1] for rows in found.values()])
    for column, power in (("moved", -1.0), ("apart", -2.0), ("missed", -1.0)):
        assert power_law(alphas, ends[column]).exponent == pytest.approx(power, abs=0.02)


def test_a_student_learns_as_a_plain_loop_does() -> None:
    run = STUDENT.model_copy(update={"tau": 0.7, "scaling": "1/sqrt(m)", "symmetric": False, "seed": 3})
    task = data.teacher(run.inputs, train=run.n, test=run.n_test, seed=3).dataset
    net = models.two_layer(run.inputs, run.width, scaling="1/sqrt(m)", tau=0.7, seed=3)
    optimiser = torch.optim.SGD(net.parameters(), lr=run.lr)
    tests = []
    for _ in range(run.steps):
        optimiser.zero_grad()
        ((net(task.train.x)[:, 0] - task.train.y).square().mean() / 2).backward()
        optimiser.step()
        with torch.no_grad():
            tests.append(float((net(task.test.x)[:, 0] - task.test.y).square().mean() / 2))
    rows = rows_of([run])[run.key]
    assert rows[-1]["status"] == "finished"
    assert rows[-1]["step"] == run.steps
    assert [row["test_loss"] for row in rows[1:]] == pytest.approx(
        [tests[row["step"] - 1] for row in rows[1:]]
    )
    assert rows[-1]["best_loss"] == min(row["test_loss"] for row in rows)


def test_a_symmetric_student_starts_at_zero() -> None:
    task = data.teacher(STUDENT.inputs, train=STUDENT.n, test=STUDENT.n_test, seed=0).dataset
    first = rows_of([STUDENT])[STUDENT.key][0]
    assert first["train_loss"] == pytest.approx(float(task.train.y.square().mean()) / 2)


def test_a_large_start_ends_where_the_linearised_model_does() -> None:
    """tau^2 is an output scale: in its limit the student is its own linearisation, and in the other it is not."""
    gaps = []
    for tau in (0.3, 30.0):
        end = end_of(
            STUDENT.model_copy(update={"tau": tau, "lr": 0.2 / tau**2, "steps": 200, "linear": True})
        )
        gaps.append(abs(end["test_loss"] / end["linear_loss"] - 1))
    assert gaps[1] < 1e-3 < 1e-2 < gaps[0]


def test_a_plain_start_is_part_of_the_linearised_model() -> None:
    """Without symmetry the linear model starts where the student does; a start at 0 would have another loss."""
    run = STUDENT.model_copy(update={"symmetric": False, "linear": True, "lr": 0.001, "steps": 3})
    first, *_, end = rows_of([run])[run.key]
    assert abs(end["test_loss"] - first["test_loss"]) > 1e-3 * first["test_loss"]
    assert end["linear_loss"] == pytest.approx(end["test_loss"], rel=1e-3)


def test_a_student_that_diverges_says_so() -> None:
    end = end_of(STUDENT.model_copy(update={"tau": 10.0, "lr": 10.0, "steps": 100}))
    assert end["status"] == "diverged"


def test_neurons_are_followed_where_that_is_asked() -> None:
    run = STUDENT.model_copy(update={"inputs": 2, "width": 6, "traced": True})
    rows = rows_of([run])[run.key]
    start = models.two_layer(2, 6, scaling="1", symmetric=True, seed=0)
    a, b = (start.get_parameter(name).detach() for name in ("2.weight", "0.weight"))
    first = a[0].abs()[:, None] * b
    assert np.reshape(rows[0]["neurons"], (6, 2)).tolist() == first.tolist()
    assert np.linalg.norm(np.reshape(rows[-1]["teacher"], (3, 2)), axis=1) == pytest.approx(1.0)


def test_a_network_on_images_stays_itself_under_a_large_scale() -> None:
    moving, frozen = (end_of(run) for run in COMPANIES["images"])
    assert moving["stability"] < frozen["stability"] <= 1.0
    assert frozen["stability"] > 0.98
    for end in (moving, frozen):
        assert end["status"] == "finished" and end["step"] == 4
        assert 0.1 < end["train_accuracy"] <= 1.0
        assert 30 * end["test_accuracy"] == pytest.approx(round(30 * end["test_accuracy"]))


@pytest.mark.parametrize("model", ["vgg", "resnet"])
def test_the_networks_of_the_paper_run_at_a_small_width(model: str) -> None:
    run = ImageRun(model=model, width_factor=1 / 64, dtype="float64")  # pyright: ignore[reportArgumentType]
    network = run.start((3, 32, 32))
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert network(x).shape == (2, 10)


def test_a_step_too_large_for_the_linear_dynamics_is_told() -> None:
    """A loss that has grown, finite as it may be, is no end of training."""
    small, large = (end_of(IMAGE.model_copy(update={"alpha": 1000.0, "lr": lr})) for lr in (0.1, 2.0))
    assert (small["status"], large["status"]) == ("finished", "diverged")
    assert np.isfinite(large["loss_end"])
