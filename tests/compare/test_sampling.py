"""Trials at equal time: as many steps as the costs allow, by the plain loop, whatever else the machine does."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from regimes import compare, control, measure
from regimes.core.error import UserError
from regimes.train.descent import order

X = torch.randn(90, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = (X[:, 0] + X[:, 1] ** 2 > 0.5).long()
TRAIN, TEST = (X[:50], Y[:50]), (X[50:], Y[50:])


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    hidden = [each for n in (4, 8) for each in (nn.Linear(n, 8), nn.Tanh())]
    return nn.Sequential(*hidden, nn.Linear(8, 2)).double()


def sgd(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.3)


@functools.cache
def costs() -> measure.LayerCosts:
    """With multiplications for seconds."""
    with FlopCounterMode(display=False) as counter:
        return measure.layer_costs(
            net(),
            [(X[:16], Y[:16])],
            functional.cross_entropy,
            rounds=1,
            clock=lambda: float(counter.get_total_flops()),
        )


def asked(module: Any = None, **change: Any) -> compare.Payoff:
    good = {"optimizer": sgd, "batch_size": 16, "epochs": 2, "seeds": 2, "rates": [1.0], "costs": costs()}
    return compare.would_sampling_pay(module or net(), *TRAIN, *TEST, **(good | change))


def errors(module: nn.Module, moves: control.Moves, steps: int, seed: int) -> Tensor:
    """Which of the held-out samples a plain loop gets wrong."""
    module = copy.deepcopy(module)
    plan = control.layer_plan(module, moves, example=X[:2], seed=seed)
    optimizer = sgd([*module.parameters()])
    batches = [index for epoch in range(steps) for index in order(seed, epoch, 50).split(16)]
    for step, index in enumerate(batches[:steps]):
        moving = plan(step)
        loss = functional.cross_entropy(module(X[index]), Y[index])
        loss.backward()
        for name, p in module.named_parameters():
            p.grad = p.grad if name in moving else None
        optimizer.step()
        optimizer.zero_grad()
    return module(TEST[0]).argmax(1) != TEST[1]


def test_each_choice_is_a_plain_loop_of_as_many_steps_as_its_time_allows() -> None:
    found = asked(seed=4)
    moves = {
        "all layers": control.Fixed(top=3),
        "planned cut": costs().plan((1 + costs().predict(control.Fixed(top=1)).ratio) / 2),
        "uniform cut": control.UniformCut(),
        "one by one": control.CyclicBlocks(order="random"),
        "top half": control.Fixed(top=2),
        "top": control.Fixed(top=1),
    }
    assert found.table.index.tolist() == [*moves]
    table = found.table.to_dict("index")
    for name, each in moves.items():
        row = table[name]
        assert row["ratio"] == costs().predict(each).ratio
        assert row["steps"] == round(8 / row["ratio"])  # two epochs of four batches
        wrong = [errors(net(), each, row["steps"], seed).double().mean() for seed in (5, 6)]
        assert row["error"] == pytest.approx(float(sum(wrong)) / 2)
    sampled = [name for name, row in table.items() if row["sampled"]]
    assert sampled == ["planned cut", "uniform cut", "one by one"]


def test_memory_is_that_of_the_largest_step() -> None:
    table = asked().table.to_dict("index")
    sizes = costs().parameters

    def memory(*moving: int) -> float:
        kept = costs().predict(control.Fixed(names=[costs().layers[place] for place in moving])).kept_most
        return kept + 8 * sum(sizes[place] for place in moving)

    full = memory(0, 1, 2)
    assert table["planned cut"]["memory"] == table["uniform cut"]["memory"] == 1
    assert table["one by one"]["memory"] == pytest.approx(max(memory(place) for place in range(3)) / full)
    assert table["top half"]["memory"] == pytest.approx(memory(1, 2) / full)


def test_it_changes_nothing_and_answers_the_same_again() -> None:
    module = net()
    before, state = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    first, again = asked(module), asked(module)
    assert first.table.equals(again.table) and (first.time, first.memory) == (again.time, again.memory)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert all(p.requires_grad and p.grad is None for p in module.parameters())


def test_starts_may_differ_from_seed_to_seed() -> None:
    found = asked(net, policies={"mine": control.Fixed(top=2)})
    row = found.table.to_dict("index")["mine"]
    wrong = [errors(net(seed), control.Fixed(top=2), row["steps"], seed).double().mean() for seed in (1, 2)]
    assert row["error"] == pytest.approx(float(sum(wrong)) / 2)
    assert found.time == found.memory == "no"  # nothing is sampled


def test_the_rate_is_that_of_the_best_first_run() -> None:
    """A rate at which nothing moves, and one that diverges, are not taken."""
    table = asked(rates=[1e-9, 1.0, 1e9]).table
    assert set(table["factor"]) == {1.0}


def test_costs_are_measured_where_none_are_given() -> None:
    found = asked(costs=None, policies={"mine": control.UniformCut()})
    assert found.costs.layers == costs().layers and found.costs.parameters == costs().parameters
    assert found.costs.squared_norms != costs().squared_norms  # of more batches


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seeds": 1}, "`seeds`: got 1"),
        ({"epochs": 0}, "`epochs`: got 0"),
        ({"batch_size": 0}, "`batch_size`: got 0"),
        ({"rates": []}, "`rates`: got []"),
        ({"rates": [-1.0]}, "`rates`: got [-1.0]"),
        ({"margin": -0.1}, "`margin`: got -0.1"),
        ({"saving": 1.0}, "`saving`: got 1"),
        ({"level": 0.0}, "`level`: got 0"),
        ({"policies": {}}, "`policies`: got []"),
        ({"policies": {"all layers": control.UniformCut()}}, "`policies`: got ['all layers']"),
        ({"policies": {"mine": control.Fixed(names=["nope"])}}, "`names`: got 'nope'"),
        ({"module": nn.Linear(4, 2).double(), "costs": None}, "`module`: has one layer"),
        ({"costs": "other"}, "`costs`: are those of layers"),
    ],
)
def test_what_cannot_be_tried_is_refused(change: dict[str, Any], words: str) -> None:
    if change.get("costs") == "other":
        other = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).double()
        batch = (X[:4], Y[:4])
        change = {"costs": measure.layer_costs(other, [batch], functional.cross_entropy, rounds=1)}
    with pytest.raises(UserError) as caught:
        asked(**change)
    assert words in str(caught.value)
