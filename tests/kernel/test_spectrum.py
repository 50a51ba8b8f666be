"""The spectrum of a tangent kernel through products with it: eigenpairs, and estimates with honest errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from regimes import models
from regimes.core.error import UserError
from regimes.kernel import spectrum
from regimes.kernel.operator import ntk_operator
from tests import reference
from tests.measure.awkward import F64, D, build


def inputs(n: int = 5) -> Tensor:
    return torch.randn(n, D, dtype=F64, generator=torch.Generator().manual_seed(n))


def formed(module: nn.Module, x: Tensor) -> Tensor:
    """The kernel as the matrix with index i c + a."""
    k = sum(reference.kernel(module, x, x).values(), torch.zeros(()))
    return k.transpose(1, 2).flatten(2).flatten(0, 1).detach()


@pytest.mark.parametrize("name", ["mlp with biases and outputs", "tied", "scaled", "images"])
def test_leading_eigenpairs(name: str) -> None:
    k, expected = ntk_operator(build(name), inputs(8)), formed(build(name), inputs(8)).numpy()
    wanted = np.linalg.eigvalsh(expected)[::-1]
    for count in (1, 3, len(expected) - 1):
        pairs = k.eigenpairs(count)
        np.testing.assert_allclose(pairs.values, wanted[:count], rtol=1e-9, atol=1e-12 * wanted[0])
        np.testing.assert_allclose(pairs.vectors.T @ pairs.vectors, np.eye(count), atol=1e-9)
        moved = expected @ pairs.vectors - pairs.vectors * pairs.values
        np.testing.assert_allclose(pairs.residuals, np.linalg.norm(moved, axis=0), atol=1e-12 * wanted[0])
        assert (pairs.residuals <= 1e-9 * wanted[0]).all()
    loose, again = k.eigenpairs(3, tolerance=0.1, seed=4), k.eigenpairs(3, tolerance=0.1, seed=4)
    assert np.array_equal(loose.vectors, again.vectors)
    for value, residual in zip(loose.values, loose.residuals, strict=True):
        assert np.abs(wanted - value).min() <= residual + 1e-12 * wanted[0]


def test_eigenpairs_that_do_not_converge_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    eigsh = spectrum.eigsh
    monkeypatch.setattr(spectrum, "eigsh", lambda *args, **named: eigsh(*args, **named, maxiter=1, ncv=3))
    with pytest.raises(UserError, match="`tolerance`: at 0 only"):
        ntk_operator(build("mlp with biases and outputs"), inputs(30)).eigenpairs(2)


def test_a_kernel_that_is_zero() -> None:
    k = ntk_operator(build("constant"), inputs())
    pairs = k.eigenpairs(2)
    assert not pairs.values.any() and not pairs.residuals.any()
    np.testing.assert_array_equal(pairs.vectors.T @ pairs.vectors, np.eye(2))
    for probes in (2, 8):
        assert k.trace(probes) == k.effective_rank(probes) == spectrum.StochasticEstimate(0.0, 0.0)


@pytest.mark.parametrize("probes", [2, 3, 9])
@pytest.mark.parametrize("memory", [None, 1])
def test_estimates_are_those_of_the_formed_kernel(memory: int | None, probes: int) -> None:
    k = ntk_operator(build("scaled"), inputs(8), memory=memory)
    full = formed(build("scaled"), inputs(8)).numpy()
    for seed in range(2):
        found = k.trace(probes, seed), k.effective_rank(probes, seed)
        expected = estimates(full, probes, seed)
        for one, other in zip(found, expected, strict=True):
            assert one.value == pytest.approx(other.value, rel=1e-9)
            assert one.error == pytest.approx(other.error, rel=1e-6)


def estimates(
    k: np.ndarray, probes: int, seed: int
) -> tuple[spectrum.StochasticEstimate, spectrum.StochasticEstimate]:
    """Trace and effective rank by probes, of a matrix."""
    product, size = k.__matmul__, len(k)
    return (
        spectrum.trace(product, lambda v: float(v @ k @ v), size, probes, seed),
        spectrum.effective_rank(product, size, probes, seed),
    )


@pytest.mark.parametrize("probes", [32, 64])
@pytest.mark.parametrize("outputs", [1, 3])
def test_standard_errors_are_honest(outputs: int, probes: int) -> None:
    """Over 400 seeds: the mean is right, the error is the spread, and z is spread like Student's t."""
    k = formed(models.mlp(D, 30, 2, outputs), inputs(120 // outputs)).numpy()
    truth = np.trace(k), np.trace(k) ** 2 / np.sum(k * k)
    found = [estimates(k, probes, seed) for seed in range(400)]
    for true, each in zip(truth, zip(*found, strict=True), strict=True):
        values, errors = np.array([(one.value, one.error) for one in each]).T
        spread = values.std(ddof=1)
        # Six standard errors of what is tested; the mean of z has in addition the skewness of the values.
        assert abs(values.mean() - true) <= 6 * spread / math.sqrt(400)
        assert 0.75 <= np.sqrt(np.mean(errors**2)) / spread <= 1.33
        z = (values - true) / errors
        assert abs(z.mean()) <= 0.6
        assert 0.75 <= z.std() <= 1.5
        assert np.mean(np.abs(z) <= 2) >= 0.85


def test_the_bias_of_the_ratio_is_taken_off() -> None:
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((40, 40)))[0]
    k = (rotation * np.repeat([1.0, 0.3], [10, 30])) @ rotation.T
    true = np.trace(k) ** 2 / np.sum(k * k)
    found = [spectrum.effective_rank(k.__matmul__, 40, 2, seed).value for seed in range(1500)]
    v = np.random.default_rng(0).choice((-1.0, 1.0), (1500, 2, 40))
    plain = (v * (v @ k)).sum(2).mean(1) ** 2 / ((v @ k) ** 2).sum(2).mean(1)
    assert abs(np.mean(found) - true) < 0.25 * (plain.mean() - true)


@settings(max_examples=25, deadline=None)
@given(size=st.integers(2, 12), rank=st.integers(1, 4), extra=st.integers(0, 5), seed=st.integers(0, 99))
def test_estimates_are_exact_where_the_sketch_holds_the_kernel(
    size: int, rank: int, extra: int, seed: int
) -> None:
    factor = np.random.default_rng(seed).standard_normal((size, rank))
    k = factor @ factor.T
    truth = np.trace(k), np.trace(k) ** 2 / np.sum(k * k)
    # More directions than the rank: random signs may miss one.
    for true, one in zip(truth, estimates(k, 4 * (rank + 12) + extra, seed), strict=True):
        assert one.value == pytest.approx(true, rel=1e-6)
        assert one.error <= 1e-6 * true


def test_names_the_mistake() -> None:
    k = ntk_operator(models.mlp(D, 3, 1), inputs())
    for count in (0, 5, True):
        with pytest.raises(UserError, match=r"`k`: got .* below n c = 5; .*measure\.ntk"):
            k.eigenpairs(count)
    for method in (k.trace, k.effective_rank):
        with pytest.raises(UserError, match="`probes`: got 1, expected"):
            method(1)
