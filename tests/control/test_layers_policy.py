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
from tests.control.sparse import MODULES, RULES, SETTINGS, X, assert_same, batches, loss_of, plain, train
from tests.measure.awkward import CASES, build, samples

CUT = control.Cut(p=0.4, top=1)
MOVES = (
    CUT,
    control.UniformCut(interval=2),
    control.Fixed(bottom=1, top=1),
    control.RandomLayers(2),
    control.CyclicBlocks(),
)
# What cannot be ordered, or has another reason not to be trained as it is.
LEFT_OUT = {"bare parameters", "flipped", "row by row"}


def optimiser(name: str, module: nn.Module, **more: Any) -> torch.optim.Optimizer:
    kind, settings = SETTINGS[name]
    return kind(module.parameters(), **settings, **more)  # pyright: ignore[reportCallIssue]


def compare(
    make: Callable[[], nn.Module],
    x: Any,
    moves: control.Moves,
    kind: str,
    steps: int = 7,
    pieces: int = 1,
    **more: Any,
) -> None:
    """The policy in a loop against the plain definition."""
    module, other = make(), make()
    other.load_state_dict(module.state_dict())
    data = list(batches(x, steps, pieces))
    optimizer = optimiser(kind, module)
    policy = control.LayerwiseSparse(module, optimizer, moves, example=x, seed=2, **more)
    train(module, optimizer, data)
    assert policy.step == steps
    factors = dict(zip(policy.plan.layers, policy.plan.probabilities, strict=True))
    cap = more.get("largest_factor", 1.0)
    names = dict(zip(policy.plan.layers, policy.plan.parameters, strict=True))
    scale = {
        each: min(1 / factors[layer], cap) if factors[layer] else 1.0
        for layer in names
        for each in names[layer]
    }
    plain(other, policy.plan, data, RULES[kind], SETTINGS[kind][1], scale.__getitem__)
    assert_same(module, other)


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
