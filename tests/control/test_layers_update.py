"""What the optimiser does to layers that move now and then: the size of their steps, and what it keeps of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regimes import control, models
from regimes.core.error import UserError
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


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adamw"])
@pytest.mark.parametrize("state", ["decay", "keep"])
@pytest.mark.parametrize("moves", [CUT, control.RandomLayers(1), control.CyclicBlocks(interval=3)], ids=repr)
def test_state_decays_as_if_gradients_had_been_0_or_is_kept(
    kind: str, state: str, moves: control.Moves
) -> None:
    compare(MODULES["skips"], X, moves, kind, steps=12, state=state)


def test_momentum_decays_where_nothing_is_said_and_all_else_is_kept() -> None:
    module = MODULES["mlp"]()
    for kind, expected in (("sgd", "keep"), ("momentum", "decay"), ("adamw", "keep")):
        policy = control.LayerwiseSparse(module, optimiser(kind, module), CUT, example=X)
        assert policy.state_dict()["state"] == expected
        policy.remove()


def test_a_velocity_is_as_it_was_until_its_layer_moves() -> None:
    module = MODULES["mlp"]()
    optimizer = optimiser("momentum", module)
    policy = control.LayerwiseSparse(module, optimizer, control.RandomLayers(1), example=X)
    for _ in range(12):
        own = dict(module.named_parameters())
        still = own.keys() - policy.plan(policy.step)
        before = {name: copy.deepcopy(optimizer.state.get(own[name], {})) for name in still}
        train(module, optimizer, [[X]])
        assert all(str(optimizer.state.get(own[name], {})) == str(before[name]) for name in still)


def quadratic(
    stiff: float, kind: str = "sgd", **more: Any
) -> tuple[nn.Module, control.LayerwiseSparse, list[float]]:
    """w, with the loss stiff w^2 / 2, that moves at a tenth of the steps below a layer that always does."""

    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.high = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.low(x), self.high(0 * self.low(x) + x)], 1)

    module = Line().double()
    nn.init.constant_(module.low.weight, 1.0)
    optimizer = optimiser(kind, module)
    policy = control.LayerwiseSparse(
        module, optimizer, control.Cut(p=0.1), example=X[:1, :1], largest_factor=float("inf"), **more
    )
    sizes = []
    for _ in range(400):
        optimizer.zero_grad()
        out = module(torch.ones(1, 1, dtype=torch.float64))
        (stiff * out[0, 0].square() / 2 + out[0, 1].square() / 2).backward()
        optimizer.step()
        sizes.append(abs(float(module.low.weight.detach())))
    return module, policy, sizes


@pytest.mark.parametrize("stiff", [0.1, 0.5, 3.0, 15.0])
def test_factors_go_by_the_curvature(stiff: float) -> None:
    """f* = 1 / (rate * curvature): 10 / stiff here. Beyond 2 f* a step makes the loss larger."""
    _, policy, sizes = quadratic(stiff, by_curvature=True)
    place = policy.plan.layers.index("low")
    factor, best = policy.state_dict()["factors"][place], 10 / stiff
    assert 1 <= factor <= min(10.0, max(1.0, 1.2 * best))
    assert factor == 10 or best < 10
    assert sizes[-1] < 0.1 and max(sizes) <= 1
    _, _, plain = quadratic(stiff)
    assert (max(plain) > 1e3) == (10 * stiff * 0.1 > 2)  # 1/p as it is


def test_bad_settings_of_rare_updates_are_refused() -> None:
    module = MODULES["mlp"]()
    for kind in (torch.optim.Adagrad, torch.optim.NAdam, torch.optim.RMSprop):
        name = kind.__name__
        with pytest.raises(
            UserError, match=f'`optimizer`: got {name} with `state` "decay", expected SGD, Adam, AdamW'
        ):
            control.LayerwiseSparse(module, kind(module.parameters(), lr=0.1), CUT, example=X, state="decay")
    with pytest.raises(UserError, match="`largest_factor`: got 1 with `by_curvature`"):
        control.LayerwiseSparse(module, optimiser("sgd", module), CUT, example=X, by_curvature=True)


def test_a_state_of_an_earlier_version_is_taken() -> None:
    """Whatever the policy that takes it has done: what was not saved then is that of a policy that begins."""
    module = MODULES["mlp"]()
    optimizer = optimiser("adam", module)
    policy = control.LayerwiseSparse(module, optimizer, CUT, example=X)
    saved = policy.state_dict()
    for name in ("by_curvature", "idle", "factors", "last", "known"):
        del saved[name]
    for _ in range(5):
        module(X).sum().backward()
        optimizer.step()
    held = {name for name, p in module.named_parameters() if p in optimizer.state}
    assert any(policy.state_dict()["idle"])
    policy.load_state_dict(saved)
    found = policy.state_dict()
    assert policy.step == 0 and not any(found["idle"])
    # Nothing of the optimiser is dropped where nobody says what it knew.
    assert held and set(found["known"]) == held


@pytest.mark.parametrize("name", ["step", "ages", "moves", "seed", "layers", "warmup", "state"])
def test_a_state_that_lacks_what_every_version_saved_is_refused(name: str) -> None:
    module = MODULES["mlp"]()
    policy = control.LayerwiseSparse(module, optimiser("sgd", module), CUT, example=X)
    saved = policy.state_dict()
    del saved[name]
    before = policy.state_dict()
    with pytest.raises(UserError, match=f"`state_dict`: '{name}' is missing, expected the state_dict"):
        policy.load_state_dict(saved)
    assert policy.state_dict() == before
