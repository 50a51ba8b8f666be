"""Smaller, centred and normed images, and principal components, by their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regimes.core.error import UserError
from regimes.data.transform import area_average, area_weights, fit, principal_components

PIXELS = np.random.default_rng(0).integers(0, 256, (300, 1, 6, 6), np.uint8)
ROWS = np.arange(0, 300, 2)


@given(st.integers(1, 40), st.integers(1, 40))
def test_area_weights_share_out_every_pixel_equally(length: int, size: int) -> None:
    weights = area_weights(length, size)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-14)
    np.testing.assert_allclose(weights.sum(0), size / length, rtol=1e-14)


@given(st.integers(1, 12), st.integers(1, 12))
def test_area_weights_are_the_average_over_a_finer_grid(length: int, size: int) -> None:
    fine = np.repeat(np.eye(length), size, axis=1).reshape(length, size, length).mean(2).T
    np.testing.assert_allclose(area_weights(length, size), fine, rtol=0, atol=1e-14)


def test_halving_is_the_mean_of_blocks() -> None:
    images = np.random.default_rng(0).random((3, 2, 28, 28))
    blocks = images.reshape(3, 2, 14, 2, 14, 2).mean((3, 5))
    np.testing.assert_allclose(area_average(images, 14), blocks, rtol=1e-14)


@pytest.mark.parametrize("size", [None, 3, 4])
def test_the_mean_image_of_the_points_fitted_on_is_removed(size: int | None) -> None:
    transform = fit(PIXELS, ROWS, 255, size, True, False, None)
    np.testing.assert_allclose(transform(PIXELS[ROWS]).mean(0), 0, atol=1e-14)
    assert abs(transform(PIXELS).mean(0)).max() > 1e-3, "and not of the others"


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("size", [None, 3])
def test_the_norm_is_the_root_of_the_dimension(center: bool, size: int | None) -> None:
    images = fit(PIXELS, ROWS, 255, size, center, True, None)(PIXELS)
    dimension = np.prod(images.shape[1:])
    np.testing.assert_allclose(
        np.linalg.norm(images.reshape(300, -1), axis=1), np.sqrt(dimension), rtol=1e-14
    )


def test_components_have_variance_one_and_are_uncorrelated() -> None:
    inputs = fit(PIXELS, ROWS, 255, None, True, True, 7)(PIXELS[ROWS])
    assert inputs.shape == (150, 7)
    np.testing.assert_allclose(inputs.mean(0), 0, atol=1e-13)
    np.testing.assert_allclose(inputs.T @ inputs / len(inputs), np.eye(7), atol=1e-12)


def test_components_are_those_of_the_singular_values() -> None:
    points = np.random.default_rng(1).normal(size=(200, 12)) * np.arange(1, 13) + 1e3
    components = principal_components(iter(np.split(points, 4)), 3)
    inputs = (points - components.mean) @ components.vectors
    left, singular, _ = np.linalg.svd(points - points.mean(0), full_matrices=False)
    np.testing.assert_allclose(abs(inputs), abs(left[:, :3]) * np.sqrt(200), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(
        components.explained, (singular[:3] ** 2).sum() / (singular**2).sum(), rtol=1e-12
    )


def test_the_signs_do_not_depend_on_the_chunks() -> None:
    points = np.random.default_rng(2).normal(size=(120, 8)) * np.arange(1, 9)
    whole = principal_components(iter([points]), 8)
    parts = principal_components(iter(np.split(points, 5)), 8)
    np.testing.assert_allclose(whole.vectors, parts.vectors, rtol=1e-9, atol=1e-12)
    assert (whole.vectors[abs(whole.vectors).argmax(0), np.arange(8)] > 0).all()


def test_more_components_than_directions_are_refused() -> None:
    points = np.random.default_rng(3).normal(size=(50, 2)) @ np.ones((2, 6)) + np.arange(6)
    with pytest.raises(UserError, match="`pca`: 2 came, but the points vary along 1 directions only"):
        principal_components(iter([points]), 2)


def test_no_points_are_refused() -> None:
    with pytest.raises(UserError, match="`pca`: no points"):
        principal_components(iter([]), 2)


def test_an_image_without_a_direction_is_refused() -> None:
    pixels = np.concatenate([PIXELS, np.zeros((1, 1, 6, 6), np.uint8)])
    with pytest.raises(UserError, match="`norm`: an image is zero"):
        fit(pixels, ROWS, 255, None, False, True, None)(pixels)
