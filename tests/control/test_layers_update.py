"""What the optimiser does to layers that move now and then: the size of their steps, and what it keeps of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from regimes import control, models
from tests.control.sparse import (
    CUT,
    MODULES,
    RULES,
    SETTINGS,
    X,
    assert_same,
    batches,
    compare,
    loss_of,
    optimiser,
    train,
)


@pytest.mark.parametrize("cap", [2.0, float("inf")])
@pytest.mark.parametrize("kind", ["momentum", "adamw"])
def test_rare_steps_are_multiplied_and_not_their_gradients(kind: str, cap: float) -> None:
    compare(MODULES["mlp"], X, CUT, kind, largest_factor=cap)


def test_the_mean_step_is_that_of_full_training_with_one_over_p() -> None:
    """Over the draws of one step of SGD."""
    start = models.mlp(3, 4, 1, seed=1)
    total = {name: torch.zeros_like(p) for name, p in start.named_parameters()}
    moves = control.Cut(p=0.25, top=1)
    for seed in range(40):
        module = copy.deepcopy(start)
        optimizer = optimiser("sgd", module)
        policy = control.LayerwiseSparse(
            module, optimizer, moves, example=X, seed=seed, largest_factor=float("inf")
        )
        share = 0.25 * 40 / sum(len(moves.moving(policy.plan.layers, each, 0)) == 2 for each in range(40))
        train(module, optimizer, [[X]])
        for name, p in module.named_parameters():
            total[name] += (
                (p.detach() - dict(start.named_parameters())[name])
                * (share if name.startswith("0") else 1)
                / 40
            )
    full = copy.deepcopy(start)
    train(full, optimiser("sgd", full), [[X]])
    for name, p in full.named_parameters():
        torch.testing.assert_close(total[name], p.detach() - dict(start.named_parameters())[name])


@pytest.mark.parametrize("more", [{"foreach": True}, {"foreach": False}, {"fused": True}], ids=str)
def test_what_does_not_move_keeps_its_weights_its_state_and_has_no_gradient(more: dict[str, bool]) -> None:
    module = models.mlp(3, 5, 3, seed=1)
    optimizer = optimiser("adamw", module, **more)
    policy = control.LayerwiseSparse(module, optimizer, control.RandomLayers(2), example=X)
    counts = {name: 0 for name, _ in module.named_parameters()}
    for _ in range(12):
        moving = policy.plan(policy.step)
        own = dict(module.named_parameters())
        before = {name: p.detach().clone() for name, p in own.items()}
        states = {name: copy.deepcopy(optimizer.state.get(p, {})) for name, p in own.items()}
        optimizer.zero_grad(set_to_none=False)  # zeros are no gradients either
        loss_of(module(X)).backward()
        optimizer.step()
        for name, p in own.items():
            counts[name] += name in moving
            if name in moving:
                assert not torch.equal(p, before[name])
            else:
                assert p.grad is None and torch.equal(p, before[name])
                assert str(optimizer.state.get(p, {})) == str(states[name])
            assert float(optimizer.state[p]["step"] if p in optimizer.state else 0) == counts[name]


def test_state_is_dropped_and_steps_grow_again() -> None:
    """With momentum: v begins at the gradient, and the steps are 1/3, 2/3, 1 times themselves."""
    module = models.mlp(3, 5, 2, seed=1)
    twin = copy.deepcopy(module)
    optimizer = optimiser("momentum", module)
    moves = control.CyclicBlocks(interval=4)
    policy = control.LayerwiseSparse(module, optimizer, moves, example=X, state="drop", warmup=3)
    settings = SETTINGS["momentum"][1]
    own = dict(twin.named_parameters())
    states: dict[str, dict[str, Any]] = {}
    for step in range(14):
        if step % 4 == 0:
            states = {name: {} for name in own}
        train(module, optimizer, [[X]])
        assert {id(p) for p in optimizer.state} == {
            id(p)
            for name, p in module.named_parameters()
            if name in policy.plan(step) & policy.plan(step + 1)
        }
        grads = torch.autograd.grad(loss_of(twin(X)), list(own.values()))
        with torch.no_grad():
            for (name, p), g in zip(own.items(), grads, strict=True):
                if name in policy.plan(step):
                    before = p.clone()
                    RULES["momentum"](p, g, states[name], **settings)
                    p.copy_(before + min(1.0, (step % 4 + 1) / 3) * (p - before))
    assert_same(module, twin)


def test_offloaded_state_is_the_same_training() -> None:
    one, other = (models.mlp(3, 5, 2, seed=1) for _ in range(2))
    choices: tuple[dict[str, Any], ...] = ({}, {"state": "offload"})
    for module, more in zip((one, other), choices, strict=True):
        optimizer = optimiser("adamw", module)
        control.LayerwiseSparse(module, optimizer, CUT, example=X, **more)
        train(module, optimizer, list(batches(X, 9)))
    assert_same(one, other, 0.0)
