"""The spectrum of the tangent kernel: against the singular values of a plain Jacobian, and what random pixels are."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from regimes import data
from regimes.papers.lazy_training.figures import kernel_spectrum
from regimes.papers.lazy_training.runs import ImageRun, SpectrumRun
from regimes.papers.lazy_training.study import SPECTRA, STUDY
from regimes.study import Run, run_study

RUN = SpectrumRun(n=4)
RANDOM = RUN.model_copy(update={"pixels": "random"})
NOTHING = pd.DataFrame()


def row_of(run: Run) -> dict[str, Any]:
    ((_, (row,)),) = SpectrumRun.perform([run], None, lambda text: None)
    return row


def jacobian(run: SpectrumRun) -> dict[str, Tensor]:
    """df_a(x_i)/dw as (n C, size) for each parameter, one backward pass for each sample and output."""
    network = ImageRun(seed=run.seed, gain=run.gain, dtype=run.dtype).start((1, 8, 8))
    names, leaves = zip(*network.named_parameters(), strict=True)
    rows = [
        [g.reshape(-1) for g in torch.autograd.grad(out, leaves, retain_graph=True)]
        for sample in run.points(None).train.x
        for out in network(sample[None])[0]
    ]
    return {name: torch.stack(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def squared_singular_values(blocks: dict[str, Tensor]) -> list[float]:
    return torch.linalg.svdvals(torch.cat(list(blocks.values()), 1)).square().tolist()


@pytest.mark.parametrize("run", [RUN, RANDOM, RUN.model_copy(update={"seed": 3})], ids=repr)
def test_eigenvalues_are_the_squared_singular_values_of_the_jacobian(run: SpectrumRun) -> None:
    row, blocks = row_of(run), jacobian(run)
    values = row["eigenvalues"]
    expected = squared_singular_values(blocks)
    assert len(values) == len(expected) == 10 * run.n
    assert values == pytest.approx(expected, rel=1e-8, abs=1e-12 * expected[0])
    trace = sum(float(block.square().sum()) for block in blocks.values())
    assert row["trace"] == pytest.approx(trace, rel=1e-12)
    assert math.fsum(values) == pytest.approx(trace, rel=1e-12)


def test_the_row_says_how_the_first_eigenvalues_stand_out() -> None:
    row = row_of(RUN)
    values = np.array(row["eigenvalues"])
    assert (np.diff(values) <= 0).all() and values[-1] > -1e-12 * values[0]
    assert row["head"] == pytest.approx(values[:10].sum() / values.sum()) and 0 < row["head"] < 1
    assert row["eigengap"] == values[9] / values[10] > 1


def test_the_gain_acts_as_homogeneity_says() -> None:
    """Weights times s, ReLU, biases 0: f ~ s^q, so df/dW ~ s^(q-1), and df/db by the layers above it alone."""
    blocks, gain = jacobian(RUN), 1.3
    layers = list(dict.fromkeys(name.partition(".")[0] for name in blocks))
    q = len(layers)
    scaled = {}
    for name, block in blocks.items():
        layer, kind = name.split(".")
        power = q - 1 if kind == "weight" else q - 1 - layers.index(layer)
        scaled[name] = gain**power * block
    found = row_of(RUN.model_copy(update={"gain": gain}))["eigenvalues"]
    expected = squared_singular_values(scaled)
    assert q == 5 and found == pytest.approx(expected, rel=1e-8, abs=1e-12 * expected[0])


@pytest.mark.parametrize("run", [RUN, RANDOM], ids=repr)
def test_every_image_has_pixels_of_mean_square_one(run: SpectrumRun) -> None:
    x = run.model_copy(update={"n": 50}).points(None).train.x
    assert x.shape == (50, 1, 8, 8)
    torch.testing.assert_close(x.square().mean((1, 2, 3)), torch.ones(50, dtype=torch.float64))
    assert abs(float(x.mean())) < 0.1


def test_random_pixels_are_independent_and_drawn_by_the_seed() -> None:
    run = RANDOM.model_copy(update={"n": 400})
    x = run.points(None).train.x.flatten(1)
    covariance = x.T @ x / len(x) - torch.eye(64, dtype=torch.float64)
    assert float(covariance.abs().max()) < 6 * math.sqrt(2 / 400)
    assert torch.equal(x, run.points(None).train.x.flatten(1))
    assert not torch.equal(x, run.model_copy(update={"seed": 1}).points(None).train.x.flatten(1))


def test_images_are_the_first_of_the_training_set_whatever_the_seed() -> None:
    expected = data.load("digits", task="classes", train=4, test=500).train.x
    for seed in (0, 1):
        assert torch.equal(RUN.model_copy(update={"seed": seed}).points(None).train.x, expected)


def test_random_pixels_need_no_files(tmp_path: Path) -> None:
    x = SpectrumRun(dataset="cifar-10", pixels="random", n=3).points(tmp_path).train.x
    assert x.shape == (3, 3, 32, 32)


@pytest.mark.parametrize("model", ["vgg", "resnet"])
def test_the_networks_of_the_paper_have_a_spectrum(model: str) -> None:
    run = SpectrumRun(dataset="cifar-10", model=model, width_factor=1 / 64, pixels="random", n=2)  # pyright: ignore[reportArgumentType]
    row = row_of(run)
    assert len(row["eigenvalues"]) == 20
    assert sum(row["eigenvalues"]) == pytest.approx(row["trace"], rel=1e-10)


def wanted(size: str, *datasets: str) -> list[SpectrumRun]:
    sweep = SPECTRA[size].sweep(datasets, range(3), "cpu")
    return [run for run in sweep(NOTHING) if isinstance(run, SpectrumRun)]


@pytest.mark.parametrize("size", ["quick", "small", "paper"])
def test_every_image_run_has_one_on_random_pixels(size: str) -> None:
    runs = wanted(size, "cifar-10", "fashion-mnist")
    pairs = {
        kind: {run.all_but("pixels") for run in runs if run.pixels == kind} for kind in ("real", "random")
    }
    assert pairs["real"] == pairs["random"] and 2 * len(pairs["real"]) == len(runs)
    assert {run.dataset for run in runs} == {"cifar-10", "fashion-mnist"}
    assert {run.seed for run in runs} == {0, 1, 2}
    assert {run.dtype for run in runs} == {"float64"}


def test_the_paper_scale_is_the_published_one() -> None:
    (run, *_) = runs = wanted("paper", "cifar-10")
    assert {(run.model, run.n, run.width_factor, run.gain) for run in runs} == {("vgg", 500, 1.0, 1.0)}
    assert run.cost() > max(run.cost() for run in wanted("small", "cifar-10"))


def test_the_small_scale_has_a_narrow_vgg_on_cifar() -> None:
    narrow = [run for run in wanted("small", "cifar-10", "fashion-mnist") if run.model == "vgg"]
    assert {(run.dataset, run.width_factor) for run in narrow} == {("cifar-10", 0.25)}
    assert not [run for run in wanted("small", "fashion-mnist") if run.model == "vgg"]


def test_a_study_stores_what_the_figure_needs(tmp_path: Path) -> None:
    runs = [
        RUN.model_copy(update={"pixels": kind, "seed": seed})
        for kind in ("real", "random")
        for seed in (0, 1)
    ]
    scale = replace(STUDY.scales["quick"], sweep=lambda _: lambda _: runs)
    study = replace(
        STUDY,
        scales={"quick": scale},
        claims=lambda _: [],
        figures=lambda _: [],
    )
    result = run_study(study, "quick", tmp_path, quiet=True)
    assert result.finished == 4 and not result.failures
    frame = pd.read_parquet(tmp_path / "rows")
    assert (
        frame.loc[(frame["pixels"] == "real") & (frame["seed"] == 0), "eigenvalues"].iloc[0].tolist()
        == (row_of(RUN)["eigenvalues"])
    )
    (axes,) = kernel_spectrum(frame).axes
    assert axes.get_title(loc="left") == "digits, n = 4\nfour convolutions"
