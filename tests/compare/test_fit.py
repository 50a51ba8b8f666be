"""What trains the models of a comparison: any optimiser of torch, the loss of the targets, several seeds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regimes import compare, control, measure, models
from regimes.core.error import UserError
from regimes.core.loss import cross_entropy, squared
from regimes.train.descent import order

F64 = torch.float64
EPOCHS, BATCH = 3, 10


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


X, TEST = draw(24, 4), draw(30, 4, seed=1)
Y, Y_TEST = X[:, :3].argmax(1), TEST[:, :3].argmax(1)


def network(seed: int = 0) -> nn.Module:
    return models.mlp(4, 8, 1, 3, seed=seed)


def asked(module: Any = None, y: Tensor = Y, y_test: Tensor = Y_TEST, **settings: Any) -> compare.Comparison:
    settings = {"epochs": EPOCHS, "batch_size": BATCH, "seeds": 1, "reduce": "trace", **settings}
    return compare.would_linear_do(module or network(), X, y, TEST, y_test, **settings)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)


def by_hand(module: nn.Module, make: Callable[[Any], torch.optim.Optimizer], seed: int) -> Tensor:
    """The held-out outputs after a plain loop of PyTorch."""
    optimizer = make(module.parameters())
    for epoch in range(EPOCHS):
        for index in order(seed, epoch, len(X)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(X[index]), Y[index]).backward()
            optimizer.step()
    with torch.no_grad():
        return module(TEST)


def test_any_optimiser_takes_the_steps_of_both() -> None:
    found = asked(optimizer=adamw, seed=3)
    for name, module in (("network", network()), ("linearisation", control.linearize(network()))):
        outputs = by_hand(module, adamw, 3)
        row = found.table.loc[name].to_dict()
        assert row["error"] == measure.error_rate(outputs, Y_TEST)
        assert row["loss"] == pytest.approx(float(cross_entropy.per_sample(outputs, Y_TEST).mean()), rel=1e-9)
        assert math.isnan(row["time"])
    assert found.lr == 0.01
    assert list(found.table.index)[-1] == "kernel, squared loss"


def test_sgd_is_sgd_whoever_takes_its_steps() -> None:
    one = asked(lr=0.05, momentum=0.9)
    other = asked(optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9))
    for name in ("network", "linearisation"):
        a, b = (each.table.loc[name].to_dict() for each in (one, other))
        for quantity in ("error", "loss", "train_error", "train_loss"):
            assert a[quantity] == pytest.approx(b[quantity], rel=1e-9)


def test_an_optimiser_that_evaluates_several_times_a_step() -> None:
    found = asked(optimizer=lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=3), batch_size=None)
    assert found.table.loc["network"].to_dict()["status"] == "finished"
    assert "nothing depends on the seed" in str(found)


def test_mistakes_with_optimisers_are_named() -> None:
    mine = network()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"optimizer": adamw, "lr": 0.1}, "`optimizer`: got one and lr = 0.1"),
        ({"optimizer": adamw, "momentum": 0.9}, "`optimizer`: got one and momentum = 0.9"),
        ({"optimizer": adamw(mine.parameters())}, "`optimizer`: got .*AdamW, expected a function"),
        ({"optimizer": lambda p: None}, "`optimizer`: gave NoneType, expected a function"),
        (
            {"optimizer": lambda p: adamw(mine.parameters())},
            "`optimizer`: took parameters that it was not given",
        ),
        (
            {"optimizer": adamw, "module": models.mlp(4, 8, 1, 3, law=control.MUP)},
            "`optimizer`: got one for a network whose law of width",
        ),
    ]
    for change, message in wrong:
        with pytest.raises(UserError, match=message):
            asked(**change)


def test_the_loss_is_that_of_the_targets() -> None:
    """Cross-entropy for classes, the logistic loss for -1 and +1, the squared loss for numbers."""
    signs = X[:, 0].sign(), TEST[:, 0].sign()
    numbers = X[:, 0], TEST[:, 0]
    one = models.mlp(4, 8, 1, 1)
    for module, (y, y_test), loss in (
        (network(), (Y, Y_TEST), cross_entropy),
        (one, signs, cross_entropy),
        (one, numbers, squared),
    ):
        found = asked(module, y, y_test, epochs=1)
        start = found.table.loc["start"].to_dict()["loss"]
        with torch.no_grad():
            expected = loss.per_sample(module(TEST), y_test).mean()
        assert start == pytest.approx(float(expected), rel=1e-9)


def test_seeds_are_runs_of_their_own() -> None:
    """Values are means over seeds, whether the module is one or made for each; intervals are said to cover them."""
    for module, varies in ((network(), "2: batches"), (network, "2: starts, batches")):
        both = asked(module, seeds=2, seed=5, lr=0.05)
        each = [asked(module, seed=seed, lr=0.05) for seed in (5, 6)]
        for name in ("start", "network", "linearisation", "kernel, same time"):
            mean = sum(one.table.loc[name].to_dict()["loss"] for one in each) / 2
            assert both.table.loc[name].to_dict()["loss"] == pytest.approx(mean, rel=1e-9)
        assert both.seeds == 2 and f"new seeds ({varies})" in str(both)
        assert "(30) alone: one seed" in str(each[0])


def test_neither_the_module_nor_the_random_numbers_of_the_caller_change() -> None:
    def drawn(_seed: int) -> nn.Module:
        return nn.Linear(4, 3, dtype=F64)

    module = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    random = torch.get_rng_state()
    first = asked(drawn, seeds=2, optimizer=adamw)
    asked(module, optimizer=adamw, epochs=1)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    torch.rand(3)
    again = asked(drawn, seeds=2, optimizer=adamw)
    assert first.table.drop(columns="seconds").equals(again.table.drop(columns="seconds"))
