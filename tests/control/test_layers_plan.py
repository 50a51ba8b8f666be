"""One plan for a loop of one's own and for the engines: the same steps, the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from regimes import control, models, train
from regimes.core.loss import squared
from tests.control.sparse import X

Y = torch.randn(len(X), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
MOVES = (
    control.Cut(p=0.4),
    control.UniformCut(interval=2),
    control.RandomLayers(1),
    control.CyclicBlocks(order="random"),
    control.Fixed(bottom=1, top=1),
)


def network() -> nn.Module:
    return models.mlp(3, 6, 3, seed=1, activation="tanh")


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("moves", MOVES, ids=repr)
def test_an_engine_with_the_plan_is_a_loop_with_the_policy(moves: control.Moves, momentum: float) -> None:
    """An engine keeps the velocity of what rests, as a policy does that is told to."""
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=momentum)
    policy = control.LayerwiseSparse(module, optimizer, moves, example=X, seed=5, state="keep")
    for _ in range(12):
        optimizer.zero_grad()
        squared.per_sample(module(X), Y).mean().backward()
        optimizer.step()
    other = network()
    plan = control.layer_plan(other, moves, example=X, seed=5)
    assert plan == policy.plan
    settings: dict[str, Any] = {"lr": 0.1, "momentum": momentum, "steps": 12, "loss": squared}
    *_, end = train.descent(other, X, Y, layers=plan, **settings)
    for name, value in module.named_parameters():
        torch.testing.assert_close(end.parameters[name], value.detach(), rtol=1e-12, atol=1e-12)


def test_other_engines_take_it_too() -> None:
    """The layers that do not move are where they were."""
    net = network()
    plan = control.layer_plan(net, control.Fixed(bottom=1), example=X)
    *_, end = train.flow(net, X, Y.sign(), layers=plan, max_steps=5)
    for name, p in net.named_parameters():
        assert torch.equal(end.parameters[name], p.detach()) == (name not in plan(0))


def test_members_share_a_plan() -> None:
    nets = [models.mlp(3, 6, 2, seed=seed) for seed in range(3)]
    plan = control.layer_plan(nets[0], control.Cut(p=0.5), example=X)
    together = {s.member: s for s in train.descent(nets, X, Y, layers=plan, lr=0.1, steps=6, loss=squared)}
    for member, net in enumerate(nets):
        *_, alone = train.descent(net, X, Y, layers=plan, lr=0.1, steps=6, loss=squared)
        for name, value in alone.parameters.items():
            assert torch.equal(together[member].parameters[name], value)


def test_a_plan_names_layers_and_parameters() -> None:
    plan = control.layer_plan(network(), control.Fixed(bottom=1, top=1), example=X)
    assert plan.layers == ("0", "2", "4", "6") and plan.names(3) == ("0", "6") and plan.places(3) == {0, 3}
    assert plan(3) == {"0.weight", "6.weight"} and plan.probabilities == (1.0, 0.0, 0.0, 1.0)
