"""Training from a frozen kernel: what a lazy network does, and mistakes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import aslinearoperator
from torch import Tensor, nn

from regimes import control, measure, models, train
from regimes.core.error import UserError
from regimes.core.loss import cross_entropy, hinge, soft_hinge, squared
from tests.train.kernels import F64, TIGHT
from tests.train.plain import task

# Types and shapes are checked while the tests run, before the function is.
BARE = inspect.unwrap(train.kernel)


def network(outputs: int = 1, seed: int = 0, law: control.Law = control.NTK) -> nn.Module:
    return models.mlp(4, 40, 2, outputs, seed=seed, law=law)


def data(samples: int = 14, classes: int = 0) -> tuple[Tensor, Tensor]:
    x, y = task(samples, 4)
    return x, y if not classes else torch.arange(samples) % classes


def weighted(net: nn.Module, x: Tensor, z: Tensor | None = None) -> Tensor:
    """The full kernel, each layer with its rate."""
    rates = {name.rpartition(".")[0]: rate for name, rate in control.rates(net).items()}
    layers = measure.ntk(net, x, z, by_layer=True)
    return torch.stack([rates[name] * k for name, k in layers.items()]).sum(0)


@pytest.mark.parametrize("alpha", [1e4, 1e6])
@pytest.mark.parametrize("law", [control.NTK, control.MEAN_FIELD], ids=lambda law: law.name)
@pytest.mark.parametrize("classes", [0, 3])
def test_a_lazy_network_takes_the_same_steps(alpha: float, law: control.Law, classes: int) -> None:
    """Same number of steps, times, losses and outputs, up to 1 / alpha; and the same end."""
    x, y = data(classes=classes)
    net = network(classes or 1, law=law)
    loss = cross_entropy if classes else soft_hinge
    limits = {"loss": loss, "max_steps": 60}
    flow = list(train.flow(control.scale(net, alpha), x, y, **limits))
    path = list(train.kernel(weighted(net, x), y, **limits))
    assert len(flow) == len(path) and flow[-1].status == path[-1].status
    for theirs, mine in zip(flow, path, strict=True):
        assert mine.step == theirs.step and mine.time == pytest.approx(theirs.time, rel=1e-12)
        assert theirs.outputs is not None
        torch.testing.assert_close(mine.outputs, theirs.outputs, rtol=30 / alpha, atol=30 / alpha)
        assert mine.loss == pytest.approx(theirs.loss, rel=30 / alpha)


def test_at_equal_times_a_lazy_network_has_the_closed_form() -> None:
    x, y = data()
    net, alpha = network(), 1e5
    path = train.kernel(measure.ntk(net, x), y)
    test = torch.randn(9, 4, dtype=F64)
    cross = measure.ntk(net, test, x)
    for state in train.flow(control.scale(net, alpha), x, y, loss=squared, tolerance=TIGHT, max_steps=400):
        same = path.at(state.time)
        assert state.outputs is not None
        torch.testing.assert_close(same.outputs, state.outputs, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(same.predict(cross), state(test), rtol=5e-3, atol=5e-3)
    assert state.time > 0.1


def test_gradient_descent_on_the_linearised_network_ends_at_the_kernel_solve() -> None:
    """In the limit of small steps at every time, and whatever the steps at the end."""
    x, y = data(4)
    test = torch.randn(9, 4, dtype=F64)
    net = network()
    module = control.scale(control.linearize(net), 10.0)
    k, cross = measure.ntk(net, x, reduce="trace"), measure.ntk(net, test, x, reduce="trace")
    rate = 4 / float(torch.linalg.eigvalsh(k)[-1])
    path = train.kernel(k, y)
    for state in train.descent(module, x, y, loss=squared, lr=0.01 * rate, steps=200):
        same = path.at(state.time)
        assert state.outputs is not None
        torch.testing.assert_close(same.outputs, state.outputs, rtol=5e-3, atol=5e-3)
    torch.testing.assert_close(same.predict(cross), state(test), rtol=5e-3, atol=5e-3)
    *_, end = train.descent(module, x, y, loss=squared, lr=rate, momentum=0.9, steps=600)
    solve = path.at(math.inf)
    assert end.outputs is not None
    torch.testing.assert_close(end.outputs, y[:, None], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(end(test), solve.predict(cross), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(solve.predict(cross)[:, 0], cross @ torch.linalg.solve(k, y))


def at(path: train.KernelPath, t: Any) -> train.KernelState:
    """The state at a time of any type."""
    return inspect.unwrap(type(path).at)(path, t)


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "shape": (lambda: BARE(torch.ones(3, 2), torch.ones(3)), r"`kernel`: got shape \(3, 2\)"),
    "cube": (
        lambda: BARE(torch.ones(3, 3, 2, 1), torch.ones(3)),
        r"`kernel`: got shape \(3, 3, 2, 1\)",
    ),
    "nan": (lambda: BARE(torch.full((2, 2), math.nan), torch.ones(2)), r"`kernel`: \[0, 0\] is nan"),
    "count": (
        lambda: BARE(torch.eye(3), torch.ones(2)),
        "`targets`: got 2, expected one for each of 3 rows",
    ),
    "operator": (
        lambda: BARE(aslinearoperator(np.eye(5)), torch.ones(2)),
        r"`kernel`: got an operator of shape \(5, 5\), expected \(n c, n c\) for n = 2",
    ),
    "floats": (
        lambda: BARE(torch.eye(3)[..., None].expand(3, 3, 2), torch.ones(3)),
        r"`targets`: got floats of shape \(3,\) for 2 outputs",
    ),
    "zero and one": (
        lambda: BARE(torch.eye(2), torch.tensor([0.0, 1.0]), loss=hinge),
        r"`targets`: got values from 0 to 1, expected -1 and \+1 for Hinge; 2 \* y - 1",
    ),
    "classes": (
        lambda: BARE(torch.eye(2), torch.tensor([0, 1]), loss=soft_hinge),
        "`targets`: got torch.int64 for SoftHinge and 2 outputs, expected floats",
    ),
    "many floats": (
        lambda: BARE(torch.eye(2), torch.ones(2, 2), loss=cross_entropy),
        r"`targets`: got floats of shape \(2, 2\) for 2 outputs, expected \(2,\) for one output",
    ),
    "class": (
        lambda: BARE(torch.eye(2), torch.tensor([0, 3]), start=torch.zeros(2, 3)),
        r"`targets`: got torch.int64 \(2,\) from 0 to 3, expected \(2,\) class indices \(int64\) below 3",
    ),
    "no targets": (
        lambda: BARE(torch.eye(2), torch.ones(0)),
        r"`targets`: got torch\.float32 \(0,\), expected a tensor of real numbers",
    ),
    "complex targets": (
        lambda: BARE(torch.eye(2), torch.ones(2).to(torch.complex64)),
        r"`targets`: got torch\.complex64 \(2,\), expected a tensor of real numbers",
    ),
    "bool targets": (
        lambda: BARE(torch.eye(2), torch.tensor([True, False])),
        r"`targets`: got torch\.bool \(2,\) from 0 to 1, expected .* class indices .* y\.long\(\)",
    ),
    "whole numbers": (
        lambda: BARE(torch.eye(2), torch.tensor([1, -1]), loss=soft_hinge),
        r"`targets`: got torch\.int64 for SoftHinge .*, expected floats -1 and \+1; y\.double\(\)",
    ),
    "nan target": (
        lambda: BARE(torch.eye(2), torch.tensor([1, math.nan])),
        r"`targets`: \[1\] is nan",
    ),
    "start": (
        lambda: BARE(torch.eye(2), torch.ones(2), start=torch.ones(3)),
        r"`start`: got shape \(3,\), expected \(2, 1\)",
    ),
    "start type": (
        lambda: BARE(torch.eye(2), torch.ones(2), start=np.ones(2)),  # pyright: ignore[reportArgumentType]
        r"`start`: got ndarray, expected a tensor \(2, 1\)",
    ),
    "loss": (
        lambda: BARE(torch.eye(2), torch.ones(2), loss="hinge"),  # pyright: ignore[reportArgumentType]
        "`loss`: got 'hinge', expected a loss",
    ),
    "tolerance": (
        lambda: BARE(torch.eye(2), torch.ones(2), tolerance=1e-3),  # pyright: ignore[reportArgumentType]
        r"`tolerance`: got 0\.001, expected a regimes\.train\.Tolerance",
    ),
    "complex operator": (
        lambda: BARE(aslinearoperator(np.eye(2, dtype=complex)), torch.ones(2)),
        "`kernel`: got an operator of complex128, expected one of real numbers",
    ),
    "no time": (
        lambda: BARE(torch.eye(2), torch.ones(2)).at(math.nan),
        "`t`: got nan, expected a time",
    ),
    "time as text": (
        lambda: at(BARE(torch.eye(2), torch.ones(2)), "1"),
        "`t`: got '1', expected a time",
    ),
    "seconds": (
        lambda: BARE(torch.eye(2), torch.ones(2), max_seconds=math.nan),
        "`max_seconds`: got nan, expected 0 or more",
    ),
    "time": (lambda: BARE(torch.eye(2), torch.ones(2)).at(-1.0), "`t`: got -1.0, expected a time"),
    "steps": (lambda: BARE(torch.eye(2), torch.ones(2), max_steps=-1), "`max_steps`: got -1"),
    "ridge": (
        lambda: BARE(torch.eye(2), torch.ones(2), ridge=-1.0),
        "`ridge`: got -1.0, expected a finite",
    ),
    "alpha": (
        lambda: BARE(torch.eye(2), torch.ones(2), alpha=0.0),
        "`alpha`: got 0.0, expected a positive",
    ),
    "cross": (
        lambda: BARE(torch.eye(2), torch.ones(2)).at(1.0).predict(torch.ones(4, 3)),
        r"`cross`: got shape \(4, 3\), expected \('t', 2\)",
    ),
    "cross axes": (
        lambda: BARE(torch.eye(2)[..., None, None], torch.ones(2)).at(1.0).predict(torch.ones(4, 2)),
        r"`cross`: got shape \(4, 2\), expected \('t', 2, 1, 1\)",
    ),
    "cross of nan": (
        lambda: BARE(torch.eye(2), torch.ones(2)).at(1.0).predict(torch.full((1, 2), math.nan)),
        r"`cross`: \[0, 0\] is nan",
    ),
    "cross type": (
        lambda: inspect.unwrap(train.KernelState.predict)(
            train.kernel(torch.eye(2), torch.ones(2)).at(1.0),
            np.ones((4, 2)),  # pyright: ignore[reportArgumentType]
        ),
        r"`cross`: got ndarray, expected \('t', 2\), a tensor",
    ),
    "no validation": (
        lambda: BARE(torch.eye(2), torch.ones(2)).best(torch.ones(0, 2), torch.ones(0)),
        r"`targets`: got torch\.float32 \(0,\), expected .* n at least 1",
    ),
    "validation of nan": (
        lambda: BARE(torch.eye(2), torch.ones(2)).best(torch.full((1, 2), math.nan), torch.ones(1)),
        r"`cross`: \[0, 0\] is nan",
    ),
    "validation": (
        lambda: inspect.unwrap(train.KernelPath.best)(
            train.kernel(torch.eye(2), torch.ones(2)), torch.ones(4, 2), torch.ones(3)
        ),
        r"`targets`: got floats of shape \(3,\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_named(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(UserError, match=message):
        call()


@pytest.mark.parametrize("kind", [float, np.float32, np.int64, torch.tensor])
def test_settings_are_any_kind_of_number(kind: Callable[[float], Any]) -> None:
    k, y = torch.eye(3, dtype=F64) * 2, torch.randn(3, dtype=F64)
    expected = train.kernel(k, y, alpha=2.0, ridge=3.0).at(1.0)
    found = at(BARE(k, y, alpha=kind(2), ridge=kind(3)), kind(1))
    assert torch.equal(found.outputs, expected.outputs) and type(found.time) is float


def test_a_path_has_no_graph() -> None:
    k, y = torch.eye(3, dtype=F64).requires_grad_(), torch.ones(3, dtype=F64).requires_grad_()
    for loss in (squared, soft_hinge):
        state = train.kernel(k, y, loss=loss, start=torch.zeros(3, dtype=F64).requires_grad_()).at(0.1)
        assert not state.outputs.requires_grad and not state.coefficients.requires_grad


def test_wrong_types_are_named() -> None:
    with pytest.raises(UserError, match="`kernel`: got ndarray, expected a tensor or a scipy LinearOperator"):
        BARE(np.eye(2), torch.ones(2))  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="`targets`: got list, expected a tensor"):
        BARE(torch.eye(2), [1.0, 1.0])  # pyright: ignore[reportArgumentType]
