"""From pixels to inputs: area averages, mean image removed, norm sqrt(d), principal components, in float64.

What is fitted (the mean image, the components) is fitted once on a given set of points; the result is a value
that can be applied to any others. Only the points asked for are ever converted, so that a small subset of a
large data set is cheap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from regimes.core.error import UserError

__all__ = ["Components", "Transform", "area_average", "area_weights", "fit", "principal_components"]

CHUNK = 10_000


@dataclass(frozen=True, eq=False)
class Components:
    """Principal components of points z of mean ``mean`` (d,): ``vectors`` (d, k), each divided by the
    standard deviation along it, so that (z - mean) @ vectors has variance 1; ``explained`` is their share of
    the variance."""

    mean: np.ndarray
    vectors: np.ndarray
    explained: float


@dataclass(frozen=True, eq=False)
class Transform:
    """What turns pixels into inputs, in this order: divide by ``top``; average to ``size``; subtract
    ``mean``; scale to norm sqrt(d) if ``norm``; project on ``components``."""

    top: int
    size: int | None
    mean: np.ndarray | None
    norm: bool
    components: Components | None = None

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Inputs of images (n, c, h, w) uint8: (n, c, h, w), or (n, k) after a projection; float64."""
        images = self.images(pixels)
        if self.components is None:
            return images
        return (images.reshape(len(images), -1) - self.components.mean) @ self.components.vectors

    def images(self, pixels: np.ndarray) -> np.ndarray:
        """All but the projection: (n, c, h, w) float64."""
        images = area_average(pixels / self.top, self.size)
        if self.mean is not None:
            images -= self.mean
        if self.norm:
            flat = images.reshape(len(images), -1)
            norms = np.sqrt(np.einsum("nd,nd->n", flat, flat))
            if not norms.all():
                raise UserError(
                    "`norm`: an image is zero, or equals the mean image, and cannot be scaled; use norm=False"
                )
            images *= (np.sqrt(flat.shape[1]) / norms)[:, None, None, None]
        return images


def fit(
    pixels: np.ndarray,
    rows: np.ndarray,
    top: int,
    size: int | None,
    center: bool,
    norm: bool,
    pca: int | None,
) -> Transform:
    r"""The transform whose mean image and components are those of ``pixels[rows]``.

    The mean image comes from integer sums and is exact; the covariance of the points z,
    :math:`\frac{1}{n} \sum_i (z_i - \bar z) (z_i - \bar z)^T`, is summed in float64 over chunks.
    Source: Geiger et al. (2020), arXiv 1906.08034, the authors' code: mean image removed, images at norm
    sqrt(d), components of variance 1, all of it over all points.

    Args:
        pixels: (n, c, h, w) uint8.
        rows: indices of the points to fit on.
        top: the largest value a pixel can have.
        size: side of the averaged images, ``None`` to keep them.
        center: whether to subtract the mean image.
        norm: whether to scale every image to norm sqrt(d).
        pca: number of components, ``None`` for none.
    """
    mean = None
    if center:
        sums = sum(
            (chunk.sum(0, dtype=np.int64) for chunk in chunks(pixels, rows)),
            np.zeros(pixels.shape[1:], np.int64),
        )
        mean = area_average((sums / (len(rows) * top))[None], size)[0]
    plain = Transform(top, size, mean, norm)
    if pca is None:
        return plain
    points = (plain.images(chunk).reshape(len(chunk), -1) for chunk in chunks(pixels, rows))
    return Transform(top, size, mean, norm, principal_components(points, pca))


def chunks(pixels: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), CHUNK):
        yield pixels[rows[start : start + CHUNK]]


def principal_components(points: Iterator[np.ndarray], count: int) -> Components:
    """The leading ``count`` principal components of points that come in chunks (m, d) float64.

    Deterministic: the eigenvectors of the covariance are computed exactly, and the sign of each is such that
    its largest entry in absolute value is positive.

    Raises:
        UserError: if fewer than ``count`` directions have any variance.
    """
    total, sums, products = 0, np.zeros(()), np.zeros(())
    origin = None
    for chunk in points:
        # Sums about the mean of the first chunk: nothing is lost to cancellation if it is far from zero.
        origin = chunk.mean(0) if origin is None else origin
        shifted = chunk - origin
        total += len(shifted)
        sums = sums + shifted.sum(0)
        products = products + shifted.T @ shifted
    if origin is None:
        raise UserError("`pca`: no points to fit the components on")
    shift = sums / total
    covariance = products / total - np.outer(shift, shift)
    span = (len(covariance) - count, len(covariance) - 1)
    values, vectors = scipy.linalg.eigh(covariance, subset_by_index=span)
    values, vectors = values[::-1], vectors[:, ::-1]
    trace = float(np.trace(covariance))
    if not values[-1] > 1e-12 * trace:
        rank = int((np.linalg.eigvalsh(covariance) > 1e-12 * trace).sum())
        raise UserError(
            f"`pca`: {count} came, but the points vary along {rank} directions only; use at most {rank}"
        )
    largest = vectors[np.abs(vectors).argmax(0), np.arange(count)]
    scaled = vectors * (np.sign(largest) / np.sqrt(values))
    return Components(origin + shift, np.ascontiguousarray(scaled), float(values.sum()) / trace)


def area_average(images: np.ndarray, size: int | None) -> np.ndarray:
    """Images (n, c, h, w) averaged to (n, c, size, size) over equal areas: 28 to 14, 2 x 2 blocks.

    >>> area_average(np.arange(16.0).reshape(1, 1, 4, 4), 2).tolist()
    [[[[2.5, 4.5], [10.5, 12.5]]]]
    """
    if size is None:
        return images
    return area_weights(images.shape[2], size) @ images @ area_weights(images.shape[3], size).T


def area_weights(length: int, size: int) -> np.ndarray:
    """(size, length): row i averages [i length/size, (i + 1) length/size) of a line of pixels of side 1.

    >>> area_weights(3, 2) * 3
    array([[2., 1., 0.],
           [0., 1., 2.]])
    """
    pixel = np.arange(length) * size  # in units of 1/size of a pixel: whole numbers, no rounding
    cell = np.arange(size)[:, None] * length
    shared = np.minimum(pixel + size, cell + length) - np.maximum(pixel, cell)
    return np.maximum(shared, 0) / length
