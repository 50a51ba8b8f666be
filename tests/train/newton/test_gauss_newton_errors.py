"""What GaussNewton refuses, by name: numbers, targets, modules, batches that do not fit."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regimes import train
from regimes.core.error import UserError
from regimes.core.loss import cross_entropy, hinge, squared
from tests.train.newton import dense
from tests.train.newton.dense import F64
from tests.train.newton.networks import STEPS, bare, mlp, moved, task


def test_more_terms_than_memory() -> None:
    x, y = torch.randn(20, 4, dtype=F64), torch.zeros(20, 3, dtype=F64)
    kernel: Any
    for kernel, fits in (
        ("full", "at most 5 samples, or kernel='products'"),
        ("trace", "at most 15 samples, or"),
    ):
        optimizer = train.GaussNewton(mlp(3).double(), loss=squared, kernel=kernel, memory=32 * 15**2 + 9)
        with pytest.raises(UserError, match=f"^`memory`: got .*{fits}"):
            optimizer.step(x, y)
    optimizer = train.GaussNewton(mlp(3).double(), loss=squared, memory=32 * 15**2)
    assert optimizer.step(x, y).kernel == "products"
    optimizer = train.GaussNewton(mlp(3).double(), loss=squared, kernel="full", memory=32 * 20**2)
    with pytest.raises(UserError, match="kernel='trace', or kernel='products'"):
        optimizer.step(x, y)


def refuse(message: str, call: Callable[[], object]) -> None:
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_what_is_wrong_is_named() -> None:
    x, y = task(5, 3, squared)
    step = inspect.unwrap(train.GaussNewton.step)
    refuse("^`x`: got empty|^`x`: got shape", lambda: step(bare(), x[:0], y[:0]))
    refuse(r"^`x`: \[0, 0\] is nan", lambda: step(bare(), x * math.nan, y))
    refuse("^`x`: got  ?torch.float64", lambda: step(bare(), x[:, :3], y))
    refuse("^`y`: got floats", lambda: step(bare(), x, y[:, :2]))
    refuse("^`y`: got torch.int64", lambda: step(bare(cross_entropy), x, torch.tensor([0, 1, 2, 3, 0])))
    refuse("^`y`: got values", lambda: step(bare(cross_entropy, 1), x, y[:, 0]))
    refuse(r"^`check\[1\]`: got floats", lambda: step(bare(), x, y, (x.clone(), y[:, :2])))
    refuse("^`check`: got the batch that is solved", lambda: step(bare(), x, y, (x, y.clone())))
    refuse("^`check`: got the batch that is solved", lambda: step(bare(), x, y, (x[:], y)))
    refuse("^`param_group`", lambda: bare().add_param_group({"params": [nn.Parameter(torch.ones(1))]}))
    sgd = torch.optim.SGD(mlp(3).parameters(), lr=0.1)
    refuse("^`state_dict`: 'damping' is missing", lambda: bare().load_state_dict(sgd.state_dict()))
    two = train.GaussNewton(nn.Linear(2, 2), loss=squared)
    refuse("^`state_dict`: is that of", lambda: bare().load_state_dict(two.state_dict()))
    for name in ("lr", "damping"):
        for number in (0.0, -1.0, math.inf):
            refuse(f"^`{name}`: got", lambda name=name, number=number: bare(**{name: number}))
    refuse("^`loss`: got Hinge", lambda: inspect.unwrap(train.GaussNewton)(mlp(1), loss=hinge))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(5), nn.Dropout(0.5)], ids=["batch norm", "dropout"])
def test_what_couples_samples_or_is_random_is_refused(layer: nn.Module) -> None:
    module = nn.Sequential(nn.Linear(4, 5), layer, nn.Linear(5, 1)).double()
    refuse(f"`module`: '1' \\({type(layer).__name__}\\)", lambda: train.GaussNewton(module, loss=squared))
    module.eval()
    optimizer = train.GaussNewton(module, loss=squared)
    assert optimizer.step(*task(4, 1, squared)).taken
    module.train()
    refuse(f"`module`: '1' \\({type(layer).__name__}\\)", lambda: optimizer.step(*task(4, 1, squared)))


class Centred(nn.Module):
    """Couples samples, and no layer says so."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def test_a_module_that_couples_samples_of_its_own_is_refused() -> None:
    module = nn.Sequential(mlp(2), Centred()).double()
    kernel: Any
    kernel: Any
    for kernel in STEPS:
        optimizer = train.GaussNewton(module, loss=squared, kernel=kernel)
        refuse(
            "^`module`: gives a sample other outputs", lambda step=optimizer.step: step(*task(4, 2, squared))
        )


def test_what_is_frozen_later_stays_and_what_is_new_is_named() -> None:
    x, y = task(5, 3, squared)
    optimizer = bare()
    module = optimizer.module
    assert isinstance(module, nn.Sequential)
    module[0].requires_grad_(False)
    before = copy.deepcopy(module[0].state_dict())
    expected = dense.step(module, x, y, squared, 0.1)
    found, _ = moved(optimizer, x, y)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    assert all(torch.equal(before[name], p) for name, p in module[0].named_parameters())
    module.append(nn.Linear(3, 3).double())
    refuse("^`module`: '3.weight' requires grad, and did not", lambda: optimizer.step(x, y))
