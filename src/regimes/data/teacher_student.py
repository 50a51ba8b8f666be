"""Inputs on a sphere, and targets from a teacher of few neurons."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.stream import entropy
from regimes.data.dataset import Dataset, Split, count

__all__ = ["Teacher", "teacher"]


@dataclass(frozen=True, eq=False, repr=False)
class Teacher:
    r"""y(x) = sum_k a_k relu(b_k . x), and points x uniform on the unit sphere.

    Attributes:
        dataset: train, test and probe points, with the provenance. Targets are real numbers, of the squared
            loss; there are no classes, and every label is -1.
        a: the outer weights, -1 or +1, (units,).
        b: the directions, (units, d), each of norm 1.
        seed: of neurons and points.
    """

    dataset: Dataset
    a: Float[Tensor, " units"]
    b: Float[Tensor, "units d"]
    seed: int

    @checked
    def __call__(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """y(x).

        Raises:
            UserError: if the points are not in d dimensions.
        """
        if x.dim() != 2 or x.shape[1] != self.b.shape[1]:
            raise UserError(f"`x`: got shape {tuple(x.shape)}, expected (n, {self.b.shape[1]})")
        return (x @ self.b.to(x).T).relu() @ self.a.to(x)

    @checked
    def sample(self, points: int, *, seed: int) -> Split:
        """Fresh points with their targets, for the population loss: no training or test point is among them.

        Args:
            points: how many.
            seed: of the points; another one gives other points.

        Raises:
            UserError: if ``points`` is below 1, or the seed negative.
        """
        check_seed(seed)
        count("points", points)
        return split(self.a, self.b, points, stream(self.seed, *self.b.shape, "fresh", seed), self.b.dtype)

    def __repr__(self) -> str:
        return f"Teacher({len(self.a)} units, seed {self.seed}, {self.dataset!r})"


@checked
def teacher(
    inputs: int,
    *,
    units: int = 3,
    train: int = 1000,
    test: int = 1000,
    probe: int = 256,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Teacher:
    r"""A regression task: inputs uniform on the unit sphere of R^d, targets from a teacher of few ReLU neurons.

    .. math:: y(x) = \sum_k a_k \max(b_k \cdot x, 0), \qquad |a_k| \, \|b_k\| = 1

    Directions are uniform on the sphere and signs are fair, all independent. Only the products matter, so that
    each b_k has norm 1 and a_k = -1 or +1. The students are those of :func:`regimes.models.two_layer`.

    The same arguments give the same points, whatever the dtype; a smaller training set is the beginning of a
    larger one, and the test points do not depend on it. Tasks of one seed in other dimensions, or with other units,
    are independent.

    Args:
        inputs: d.
        units: neurons of the teacher.
        train: number of training points.
        test: number of test points.
        probe: number of probe points, the first of the test points; all of these if there are fewer.
        seed: of neurons and points.
        dtype: the floating type of inputs and targets; they are drawn in float64.

    Raises:
        UserError: if a number is below 1, the seed negative, or the dtype not a floating one.

    Source: Chizat, Oyallon, Bach 2019, section 3.1; three neurons there, d = 2 with 15 points and d = 100 with
    1000.

    >>> task = teacher(100, train=500)
    >>> task
    Teacher(3 units, seed 0, Dataset(teacher, regression: 500 train, 1000 test, 256 probe, x (100,)))
    >>> fresh = task.sample(200, seed=1)
    >>> torch.equal(fresh.y, task(fresh.x))
    True
    """
    sizes = {"inputs": inputs, "units": units, "train": train, "test": test, "probe": probe}
    for name, size in sizes.items():
        count(name, size)
    check_seed(seed)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UserError(f"`dtype`: {dtype!r} came, expected a floating type such as torch.float64")
    random = stream(seed, units, inputs, "neurons")
    b = sphere(random, units, inputs).to(dtype)
    a = torch.from_numpy(random.choice([-1.0, 1.0], units)).to(dtype)
    train_part = split(a, b, train, stream(seed, units, inputs, "train"), dtype)
    test_part = split(a, b, test, stream(seed, units, inputs, "test"), dtype)
    probe_part = Split(test_part.x[:probe], test_part.y[:probe], test_part.labels[:probe])
    provenance = {
        "name": "teacher",
        "title": f"uniform on the unit sphere, a teacher of {units} ReLU neurons",
        "source": "drawn by numpy.random.default_rng",
        "numpy": np.__version__,
        "task": "regression",
        "inputs": inputs,
        "units": units,
        "seed": seed,
        "train": train,
        "test": test,
        "probe": len(probe_part),
        "dtype": str(dtype).removeprefix("torch."),
    }
    dataset = Dataset("teacher", "regression", train_part, test_part, probe_part, (), provenance)
    return Teacher(dataset, a, b, seed)


def check_seed(seed: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UserError(f"`seed`: {seed!r} came, expected a whole number from 0 on")


def stream(seed: int, units: int, inputs: int, *purpose: str | int) -> np.random.Generator:
    """One stream of random numbers for each purpose: more points of one kind change none of another."""
    return np.random.default_rng(entropy(seed, "teacher", units, inputs, *purpose))


def sphere(random: np.random.Generator, points: int, inputs: int) -> Float[Tensor, "n d"]:
    """Points uniform on the unit sphere."""
    x = torch.from_numpy(random.standard_normal((points, inputs)))
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True)


def split(a: Tensor, b: Tensor, points: int, random: np.random.Generator, dtype: torch.dtype) -> Split:
    """Points of one stream with their targets."""
    x = sphere(random, points, b.shape[1]).to(dtype)
    return Split(x, (x @ b.T).relu() @ a, torch.full((points,), -1))
