"""The tangent kernel against two other libraries, which compute it in ways of their own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from regimes import measure
from tests.measure.awkward_case import F64, D, normal
from tests.properties import assert_close

N, BATCH = 5, 3


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.Conv2d(4, 3, 2, bias=False),
        nn.BatchNorm2d(3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(12, 3),
    )


Network = tuple[Callable[[], nn.Module], Callable[[int], Tensor]]
NETWORKS: dict[str, Network] = {"mlp": (mlp, normal(D)), "cnn": (cnn, normal(2, 5, 5))}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    build, samples = NETWORKS[request.param]
    return build().eval().to(F64), samples(N)


@contextmanager
def quiet() -> Iterator[None]:
    """What these libraries import and call in torch is deprecated there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@contextmanager
def double() -> Iterator[None]:
    """float64 by default. The scratch memory of nngeometry is of the default dtype: without this, norms and
    convolutions of a float64 network agree to 1e-8 only."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(F64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def gram_of_nngeometry(module: nn.Module, x: Tensor) -> Tensor:
    """Gram matrices of layers, contracted during the backward pass: (n, n, c, c). For 0.3 and later."""
    loader = DataLoader(TensorDataset(x), batch_size=BATCH)
    with quiet():
        pytest.importorskip("nngeometry")
        try:
            from nngeometry.gram import GramMatrix  # pyright: ignore[reportMissingImports]
        except ImportError:
            from nngeometry.generator import Jacobian
            from nngeometry.object import FMatDense

            outputs = module(x).shape[1]
            jacobian = Jacobian(model=module, n_output=outputs)
            gram = FMatDense(generator=jacobian, examples=loader).get_dense_tensor()
        else:
            gram = GramMatrix(model=module, loader=loader).to_torch()
    return gram.detach().permute(1, 3, 0, 2)


def gram_of_curvlinops(module: nn.Module, x: Tensor, x2: Tensor | None = None) -> Tensor:
    """J J2^T from products with unit vectors, forward mode after backward mode: (n, n2, c, c)."""
    with quiet():
        pytest.importorskip("curvlinops")
        from curvlinops import (  # pyright: ignore[reportMissingImports]
            JacobianLinearOperator,
            TransposedJacobianLinearOperator,
        )

        def batches(samples: Tensor) -> list[tuple[Tensor, Tensor]]:
            return [(part, torch.zeros(len(part))) for part in samples.split(BATCH)]

        parameters = list(module.parameters())
        second = x if x2 is None else x2
        pulled = TransposedJacobianLinearOperator(module, parameters, batches(second))
        pushed = JacobianLinearOperator(module, parameters, batches(x))
        c = pulled.shape[1] // len(second)
        gram = pushed @ (pulled @ torch.eye(pulled.shape[1], dtype=x.dtype))
    return gram.detach().view(len(x), c, len(second), c).transpose(1, 2)


def test_agrees_with_nngeometry(network: tuple[nn.Module, Tensor]) -> None:
    with double():
        expected = gram_of_nngeometry(*network)
    assert_close(measure.ntk(*network), expected, 1e-10)


def test_agrees_with_curvlinops(network: tuple[nn.Module, Tensor]) -> None:
    module, x = network
    assert_close(measure.ntk(module, x), gram_of_curvlinops(module, x), 1e-10)
    assert_close(measure.ntk(module, x, x[:2]), gram_of_curvlinops(module, x, x[:2]), 1e-10)
