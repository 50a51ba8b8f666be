"""A policy in a plain loop does what the definition says: those layers move, and nothing else does in any way."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regimes import control, measure, models
from regimes.core.batch import feed
from regimes.core.error import UserError
from tests.control.networks import NETWORKS
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
    plain,
    train,
)
from tests.measure.awkward import CASES, build, samples

MOVES = (
    CUT,
    control.UniformCut(interval=2),
    control.Fixed(bottom=1, top=1),
    control.RandomLayers(2),
    control.CyclicBlocks(),
)
# What cannot be ordered, or has another reason not to be trained as it is.
LEFT_OUT = {"bare parameters", "flipped", "row by row"}


@pytest.mark.parametrize("moves", MOVES, ids=repr)
@pytest.mark.parametrize("kind", ["momentum", "adamw"])
@pytest.mark.parametrize("name", MODULES)
def test_a_loop_is_the_definition(name: str, kind: str, moves: control.Moves) -> None:
    compare(MODULES[name], X, moves, kind, pieces=2)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in LEFT_OUT])
def test_awkward_modules_are_trained_by_the_definition(name: str) -> None:
    make, x, _ = NETWORKS[name]
    compare(lambda: make().double(), x, control.RandomLayers(1), "momentum", steps=4)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_all_awkward_modules_are_trained_by_the_definition(name: str) -> None:
    module, x = build(name), samples(name, 4)
    try:
        control.layer_plan(module, CUT, example=x)
    except UserError:
        return  # tests/control/test_layers_order.py says which
    kind = "sgd" if "sparse" in name else "momentum"  # momentum takes no sparse gradients
    compare(lambda: build(name), x, control.UniformCut(), kind, steps=4)


def test_several_groups_and_several_optimisers() -> None:
    module = models.mlp(3, 5, 3, seed=1)
    own = dict(module.named_parameters())
    others = [copy.deepcopy(module) for _ in range(2)]
    data = list(batches(X, 8))

    def groups(net: nn.Module) -> list[dict[str, Any]]:
        named = list(net.parameters())
        return [{"params": named[:2], "lr": 0.02}, {"params": named[2:], "lr": 0.1, "momentum": 0.5}]

    optimizer = torch.optim.SGD(groups(module), lr=1.0)
    policy = control.LayerwiseSparse(module, optimizer, CUT, example=X)
    train(module, optimizer, data)
    pair = [torch.optim.SGD(list(others[0].parameters())[:2], lr=0.02)]
    pair.append(torch.optim.SGD(list(others[0].parameters())[2:], lr=0.1, momentum=0.5))
    second = control.LayerwiseSparse(others[0], pair, CUT, example=X)
    for (x,) in data:
        for each in pair:
            each.zero_grad()
        loss_of(others[0](x)).backward()
        for each in pair:
            each.step()
    assert second.step == policy.step == 8
    assert_same(module, others[0], 0.0)
    assert len(own) == 4


def test_a_closure_runs_the_module_in_the_step() -> None:
    """As Lightning does it."""
    one, other = (models.mlp(3, 5, 3, seed=1) for _ in range(2))
    optimizer = optimiser("adamw", one)
    policy = control.LayerwiseSparse(one, optimizer, CUT, example=X)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = loss_of(one(X))
        loss.backward()
        return loss.detach()

    for _ in range(6):
        optimizer.step(closure)
    plain(other, policy.plan, [[X]] * 6, RULES["adamw"], SETTINGS["adamw"][1])
    assert_same(one, other)


def test_clipping_sees_what_moves_alone() -> None:
    module, twin = (models.mlp(3, 5, 3, seed=1) for _ in range(2))
    optimizer = optimiser("sgd", module)
    policy = control.LayerwiseSparse(module, optimizer, CUT, example=X)
    for step in range(6):
        optimizer.zero_grad()
        loss_of(module(X)).backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), 0.01)
        own = {name: p for name, p in twin.named_parameters() if name in policy.plan(step)}
        grads = torch.autograd.grad(loss_of(twin(X)), list(own.values()))
        expected = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
        torch.testing.assert_close(norm, expected)
        optimizer.step()
        with torch.no_grad():
            for p, g in zip(own.values(), grads, strict=True):
                p -= 0.1 * g * min(1.0, 0.01 / (float(expected) + 1e-6))
    assert_same(module, twin)


def test_a_scaler_that_skips_a_step_keeps_the_layers() -> None:
    module = models.mlp(3, 5, 3, seed=1).float()
    twin = copy.deepcopy(module)
    x = X.float()
    optimizer, scaler = optimiser("adamw", module), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    policy = control.LayerwiseSparse(module, optimizer, CUT, example=x)
    for attempt in range(9):
        optimizer.zero_grad()
        loss = loss_of(module(x)) * (float("inf") if attempt in (2, 3, 7) else 1.0)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    assert policy.step == 6
    plain(twin, policy.plan, [[x]] * 6, RULES["adamw"], SETTINGS["adamw"][1])
    assert_same(module, twin, 1e-5)


def test_mixed_precision() -> None:
    """Below the cut nothing is kept in it either."""
    module = models.mlp(3, 5, 3, seed=1).float()
    twin = copy.deepcopy(module)
    optimizer, other = optimiser("sgd", module), optimiser("sgd", twin)
    policy = control.LayerwiseSparse(module, optimizer, CUT, example=X.float())
    for step in range(6):
        for net, each in ((module, optimizer), (twin, other)):
            each.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(net(X.float()))
            loss.backward()
            for name, p in net.named_parameters():
                if name not in policy.plan(step):
                    p.grad = None
            each.step()
    assert_same(module, twin, 0.0)


def test_random_numbers_of_the_loop_are_its_own() -> None:
    """Dropout, and whatever else draws, is as in training without a policy."""
    states = []
    for sparse in (False, True):
        torch.manual_seed(3)
        module = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1)).double()
        optimizer = optimiser("sgd", module)
        if sparse:
            control.LayerwiseSparse(module, optimizer, control.RandomLayers(1), example=X)
        train(module, optimizer, [[X]] * 5)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_a_policy_ends() -> None:
    module = models.mlp(3, 5, 2, seed=1)
    optimizer = optimiser("sgd", module)
    policy = control.LayerwiseSparse(module, optimizer, control.Fixed(top=1), example=X)
    with pytest.raises(UserError, match="`module`: has a policy already"):
        control.LayerwiseSparse(module, optimizer, CUT, example=X)
    for watched in (module, nn.Sequential(module)):
        with pytest.raises(UserError, match="`module`: has a policy already"):
            control.layer_plan(watched, CUT, example=X)
    train(module, optimizer, [[X]])
    policy.remove()
    assert all(p.requires_grad for p in module.parameters()) and not module._forward_pre_hooks
    before = [p.detach().clone() for p in module.parameters()]
    train(module, optimizer, [[X]])
    assert not any(torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True))
    assert policy.step == 1
    control.LayerwiseSparse(module, optimizer, CUT, example=X)


def test_all_is_free_for_a_measurement() -> None:
    """The kernel of the whole network between two steps, and in the middle of one, without a trace."""
    one, other = (models.mlp(3, 5, 2, seed=1) for _ in range(2))
    for module in (one, other):
        optimizer = optimiser("adamw", module)
        policy = control.LayerwiseSparse(module, optimizer, CUT, example=X)
        for (x,) in batches(X, 6):
            optimizer.zero_grad()
            loss_of(module(x)).backward()
            if module is one:
                with policy.free():
                    kernel = measure.ntk(module, X[:3])
                torch.testing.assert_close(kernel, measure.ntk(models_like(module), X[:3]))
            optimizer.step()
    assert_same(one, other, 0.0)


def models_like(module: nn.Module) -> nn.Module:
    """The same network, which no policy has seen."""
    found = models.mlp(3, 5, 2)
    found.load_state_dict(module.state_dict())
    return found


def test_a_copy_of_the_module_is_free() -> None:
    """An average of the weights, a module that is saved whole."""
    module = models.mlp(3, 5, 2, seed=1)
    optimizer = optimiser("sgd", module)
    policy = control.LayerwiseSparse(module, optimizer, control.Fixed(top=1), example=X)
    train(module, optimizer, [[X]])
    other = copy.deepcopy(module)
    for p in other.parameters():
        p.requires_grad_(True)
    loss_of(other(X)).backward()
    assert all(p.grad is not None and p.requires_grad for p in other.parameters())
    assert policy.step == 1 and [p.requires_grad for p in module.parameters()] == [False, False, True]
    control.LayerwiseSparse(other, optimiser("sgd", other), CUT, example=X)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False).requires_grad_(True)
    loss_of(loaded(X)).backward()
    assert all(p.grad is not None for p in loaded.parameters())


def test_evaluation_between_steps_changes_nothing() -> None:
    one, other = (models.mlp(3, 5, 2, seed=1) for _ in range(2))
    for module in (one, other):
        optimizer = optimiser("adamw", module)
        control.LayerwiseSparse(module, optimizer, CUT, example=X)
        for (x,) in batches(X, 6):
            train(module, optimizer, [[x]])
            if module is one:
                with torch.no_grad():
                    module(x)
                with torch.inference_mode():
                    module(x)
                feed(module, x)
    assert_same(one, other, 0.0)


def moved(module: nn.Module, step: Callable[[], None]) -> set[str]:
    before: dict[str, Tensor] = {name: p.detach().clone() for name, p in module.named_parameters()}
    step()
    return {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}


def test_parts_of_a_module_are_trained_after_begin() -> None:
    module = models.mlp(3, 5, 2, seed=1)
    optimizer = optimiser("sgd", module)
    policy = control.LayerwiseSparse(module, optimizer, control.CyclicBlocks(), example=X)

    def parts() -> None:
        policy.begin()
        optimizer.zero_grad()
        x = X
        for layer in module.children():
            x = layer(x)
        loss_of(x).backward()
        optimizer.step()

    for step in range(4):
        names = policy.plan(step)
        assert moved(module, parts) == names
