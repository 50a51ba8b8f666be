"""The figure of the kernel spectrum shows the eigenvalues of the rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from regimes.core.error import UserError
from regimes.papers.lazy_training.figures import kernel_spectrum
from regimes.report.page import draw

N, C, SEEDS = 40, 5, 3


def spectrum(factor: float = 1.0) -> np.ndarray:
    """1/i, with the first C ten times higher."""
    values = 1 / np.arange(1, N * C + 1)
    values[:C] *= 10
    return factor * values


def rows(**changes: Any) -> list[dict[str, Any]]:
    common = {"run": "SpectrumRun", "status": "finished", "dataset": "digits", "model": "conv", "n": N,
              "width_factor": 1.0, "gain": 1.0, "dtype": "float64"}  # fmt: skip
    return [
        common
        | {"key": f"{pixels}{seed}{changes}", "pixels": pixels, "seed": seed}
        | {"eigenvalues": spectrum(2.0**seed).tolist()}
        | changes
        for pixels in ("real", "random")
        for seed in range(SEEDS)
    ]


def lines(axes: Axes) -> dict[str, np.ndarray]:
    return {str(line.get_label()): np.array(line.get_xydata()) for line in axes.lines}


def test_curves_are_shares_of_the_sum() -> None:
    """Whatever factor a seed has, the curve is that of the shares; no seed is apart, so the band has no width."""
    (axes,) = kernel_spectrum(pd.DataFrame(rows())).axes
    shares = spectrum() / spectrum().sum()
    for label in ("images", "random pixels"):
        index, value = lines(axes)[label].T
        assert index[: C + 2].tolist() == list(range(1, C + 3)) and index[-1] == N * C
        assert value == pytest.approx(shares[index.astype(int) - 1])
    assert len(axes.collections) == 2
    for band in axes.collections:
        heights = np.array(band.get_paths()[0].vertices)[:, 1]
        assert [heights.min(), heights.max()] == pytest.approx([shares.min(), shares.max()])
    assert axes.get_xscale() == axes.get_yscale() == "log"


def test_the_law_is_where_the_spectrum_follows_it() -> None:
    (axes,) = kernel_spectrum(pd.DataFrame(rows())).axes
    law = lines(axes)["1/i"]
    shares = spectrum() / spectrum().sum()
    assert law[:, 0].tolist() == [C + 1, N * C]
    assert law[:, 1] == pytest.approx(shares[[C, N * C - 1]])


def test_the_number_of_outputs_is_marked() -> None:
    (axes,) = kernel_spectrum(pd.DataFrame(rows())).axes
    assert any(line[:, 0].tolist() == [C, C] for line in lines(axes).values())
    assert [text.get_text() for text in axes.texts] == [f"i = C = {C}"]


def test_seeds_that_differ_have_a_geometric_mean_and_a_band() -> None:
    frame = pd.DataFrame(rows())
    tilted = [
        (np.array(values) * (np.arange(N * C) + 1.0) ** (0.1 * seed)).tolist()
        for values, seed in zip(frame["eigenvalues"], frame["seed"], strict=True)
    ]
    (axes,) = kernel_spectrum(frame.assign(eigenvalues=tilted)).axes
    shares = np.array([np.array(each) / sum(each) for each in tilted[:SEEDS]])
    index, value = lines(axes)["images"].T
    middle = np.exp(np.log(shares).mean(0))
    assert value == pytest.approx(middle[index.astype(int) - 1])
    vertices = np.array(axes.collections[0].get_paths()[0].vertices)
    assert vertices[:, 1].min() < middle.min() and vertices[:, 1].max() > middle.max()


def test_one_seed_has_no_band() -> None:
    (axes,) = kernel_spectrum(pd.DataFrame(rows()).loc[lambda frame: frame["seed"] == 0]).axes
    assert not axes.collections


def test_rounding_below_zero_is_left_out() -> None:
    values = spectrum()
    values[-3:] = [1e-17, 0.0, -1e-16]
    (axes,) = kernel_spectrum(pd.DataFrame(rows(eigenvalues=values.tolist()))).axes
    index, value = lines(axes)["images"].T
    assert np.isnan(value[index > N * C - 3]).all() and (value[index <= N * C - 3] > 0).all()


def test_more_is_rounding_in_single_precision() -> None:
    values = spectrum()
    values[-3:] = 1e-6
    for dtype in ("float64", "float32"):
        (axes,) = kernel_spectrum(pd.DataFrame(rows(eigenvalues=values.tolist(), dtype=dtype))).axes
        index, value = lines(axes)["images"].T
        assert np.isfinite(value[index <= N * C - 3]).all()
        assert np.isfinite(value[-1]) == (dtype == "float64")
        assert ("float32" in axes.get_title(loc="left")) is (dtype == "float32")


def test_a_kernel_of_rank_c_has_no_law() -> None:
    values = np.where(np.arange(N * C) < C, 1.0, 0.0)
    (axes,) = kernel_spectrum(pd.DataFrame(rows(eigenvalues=values.tolist()))).axes
    assert np.isnan(lines(axes)["1/i"][:, 1]).all()
    assert np.isfinite(lines(axes)["images"][:, 1]).sum() == C


def test_every_data_set_and_network_has_a_panel() -> None:
    narrow = rows(dataset="cifar-10", model="vgg", width_factor=0.25)
    frame = pd.DataFrame([*rows(), *rows(dataset="cifar-10"), *narrow])
    titles = [axes.get_title(loc="left").split("\n") for axes in kernel_spectrum(frame).axes]
    assert titles == [
        ["cifar-10, n = 40", "four convolutions"],
        ["cifar-10, n = 40", "VGG-11 x 0.25"],
        ["digits, n = 40", "four convolutions"],
    ]


def test_images_alone_are_drawn() -> None:
    frame = pd.DataFrame(rows())
    for kind, label in (("real", "images"), ("random", "random pixels")):
        (axes,) = kernel_spectrum(frame.loc[frame["pixels"] == kind]).axes
        assert {label, "1/i"} <= set(lines(axes))


def test_is_drawn_on_a_page_or_says_why_not() -> None:
    entry = ("kernel_spectrum", "Kernel spectrum", kernel_spectrum, "caption")
    shown = draw(entry, pd.DataFrame(rows()))
    assert shown.svg and shown.png and not shown.note
    with pytest.raises(UserError, match="eigenvalues"):
        kernel_spectrum(pd.DataFrame(rows(eigenvalues=None)))
    with pytest.raises(UserError):
        kernel_spectrum(pd.DataFrame(rows(run="ImageRun")))
    with pytest.raises(UserError):
        kernel_spectrum(pd.DataFrame(rows(status="running")))
