"""The stacked program against plain autograd; what members may be; the dtype of a run."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regimes import control, models
from regimes.core.error import UserError
from regimes.core.layer import is_stackable
from regimes.core.loss import LOSSES, soft_hinge
from regimes.train.program import Program, choose_dtype, members_of
from tests.train.plain import AWKWARD, cnn_outputs, mlp_outputs, task

LAWS = list(control.LAWS)
SIGMAS = ["softplus", "relu", "tanh"]
ALPHAS = [0.03, 1.0, 20.0]


def check(
    networks: Sequence[nn.Module],
    outputs: Callable[[list[Tensor], Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    loss: str = "soft-hinge",
) -> None:
    """F, loss and gradient of all members at moved parameters, against ``outputs`` one at a time."""
    members = [control.scale(net, a) for net, a in zip(networks, ALPHAS, strict=True)]
    program = Program(members, LOSSES[loss], torch.float64)
    start = program.start()
    moved = start.clone()
    moved[:, : program.layout.total] += 0.1 * torch.randn(
        len(start), program.layout.total, dtype=torch.float64
    )
    everyone = torch.arange(len(members))
    got = program.gradient(moved, everyone, x, y, program.offsets(x))
    for i, (net, alpha) in enumerate(zip(networks, ALPHAS, strict=True)):
        leaves = list(program.layout.split(moved[i, : program.layout.total].clone()).values())
        leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        with torch.no_grad():
            f0 = outputs([p.detach() for p in net.parameters()], x)
        scaled = alpha * (outputs(leaves, x) - f0)
        value = LOSSES[loss].per_sample(scaled, y).mean()
        grads = torch.autograd.grad(value / alpha**2, leaves)
        gradient = torch.cat([g.reshape(-1) for g in grads])
        torch.testing.assert_close(got[0][i], scaled.detach(), rtol=1e-12, atol=1e-12 * max(1, alpha))
        torch.testing.assert_close(got[1][i], value.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            got[2][i, : program.layout.total], gradient, rtol=1e-12, atol=1e-12 * float(gradient.abs().max())
        )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("law", LAWS)
def test_stacked_mlp_is_plain_autograd(law: str, sigma: str, bias: bool) -> None:
    x, y = task(23, 5)
    for depth, width in ((1, 7), (2, 16), (3, 9)):
        networks = [
            models.mlp(5, width, depth, law=control.law(law), activation=sigma, bias=bias, seed=seed)
            for seed in range(len(ALPHAS))
        ]
        assert all(is_stackable(net) for net in networks)
        check(networks, lambda w, x: mlp_outputs(w, law, sigma, bias, x), x, y)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("law", LAWS)
def test_stacked_cnn_is_plain_autograd(law: str, sigma: str, bias: bool) -> None:
    x = torch.randn(4, 2, 14, 14, dtype=torch.float64)
    y = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    networks = [
        models.cnn(2, 3, kernel=3, law=control.law(law), activation=sigma, bias=bias, seed=seed)
        for seed in range(len(ALPHAS))
    ]
    check(networks, lambda w, x: cnn_outputs(w, law, sigma, bias, x), x, y)


def test_several_outputs_and_classes() -> None:
    x, _ = task(23, 5)
    y = torch.arange(23) % 4
    networks = [models.mlp(5, 8, 2, outputs=4, seed=seed) for seed in range(len(ALPHAS))]
    check(networks, lambda w, x: mlp_outputs(w, "ntk", "softplus", False, x), x, y, "cross-entropy")


@pytest.mark.parametrize("name", AWKWARD)
def test_any_module_is_plain_autograd(name: str) -> None:
    """Member by member where layers cannot be stacked, each with its frozen parameters and buffers."""
    x, y = task(23, 5)
    members = [control.scale(AWKWARD[name](seed), alpha) for seed, alpha in enumerate(ALPHAS)]
    program = Program(members, soft_hinge, torch.float64)
    w = program.start()
    w[:, : program.layout.total] += 0.1
    outputs, losses, gradient = program.gradient(w, torch.arange(3), x, y, program.offsets(x))
    for i, member in enumerate(members):
        trained = {name: p for name, p in member.network.named_parameters() if p.requires_grad}
        for p in trained.values():
            p.data += 0.1
        out = member(x).reshape(23, 1)
        value = soft_hinge.per_sample(out, y).mean()
        grads = torch.autograd.grad(member.loss(value), list(trained.values()), materialize_grads=True)
        torch.testing.assert_close(outputs[i], out.detach(), rtol=1e-12, atol=1e-11)
        torch.testing.assert_close(losses[i], value.detach(), rtol=1e-12, atol=1e-12)
        joined = torch.cat([g.reshape(-1) for g in grads])
        torch.testing.assert_close(gradient[i, : program.layout.total], joined, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["mlp", *AWKWARD])
def test_outputs_are_zero_at_the_start_to_the_bit(name: str) -> None:
    x, _ = task(37, 5)
    make = AWKWARD.get(name, lambda seed: models.mlp(5, 16, 2, seed=seed))
    members = [control.scale(make(seed), 1e6) for seed in range(3)]
    program = Program(members, soft_hinge, torch.float64)
    out = program.outputs(program.start(), torch.arange(3), x, program.offsets(x))
    assert bool((out == 0).all())


@pytest.mark.parametrize("name", ["mlp", *AWKWARD])
def test_many_samples_are_taken_some_at_a_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """... and give what they give together."""
    x, _ = task(37, 5)
    make = AWKWARD.get(name, lambda seed: models.mlp(5, 16, 2, seed=seed))
    members = [control.scale(make(seed), 2.0) for seed in range(2)]
    program = Program(members, soft_hinge, torch.float64)
    rows = program.start()
    rows[:, : program.layout.total] += 0.1
    whole = program.outputs(rows, torch.arange(2), x, program.offsets(x))
    sizes: list[int] = []
    forward = program._forward

    def noted(tree: Any, some: Tensor, part: Tensor, networks: Any = None) -> Tensor:
        sizes.append(len(part))
        return forward(tree, some, part, networks)

    monkeypatch.setattr("regimes.train.program._SAMPLES", 10)
    monkeypatch.setattr(program, "_forward", noted)
    parts = program.outputs(rows, torch.arange(2), x, program.offsets(x))
    assert set(sizes) == {10, 7}
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


def test_members_need_not_be_centred() -> None:
    x, _ = task(11, 5)
    networks = [models.mlp(5, 8, 1, seed=seed) for seed in range(3)]
    members = [control.scale(networks[0], 2.0), control.scale(networks[1], 2.0, center=False), networks[2]]
    program = Program(members, soft_hinge, torch.float64)
    out = program.outputs(program.start(), torch.arange(3), x, program.offsets(x))
    assert bool((out[0] == 0).all())
    torch.testing.assert_close(out[1], 2 * networks[1](x).detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out[2], networks[2](x).detach(), rtol=1e-12, atol=1e-12)


def test_a_network_in_training_mode_keeps_its_origin_in_eval_mode() -> None:
    """f(w0, x) is what control.scale froze, whatever the mode of the network that trains."""
    x, _ = task(16, 5)
    member = control.scale(AWKWARD["batch-norm"](0), 3.0).train()
    program = Program([member], soft_hinge, torch.float64)
    origin = member.origin
    assert origin is not None
    offsets = program.offsets(x)
    assert offsets is not None
    torch.testing.assert_close(offsets[0], origin(x).detach(), rtol=1e-12, atol=1e-12)


def test_the_modules_are_left_as_they_were() -> None:
    x, y = task(11, 5)
    for make in AWKWARD.values():
        module = control.scale(make(0), 2.0)
        before = {name: (id(p), p.detach().clone()) for name, p in module.named_parameters()}
        program = Program([module], soft_hinge, torch.float64)
        program.gradient(program.start() + 1, torch.arange(1), x, y, program.offsets(x))
        after = {name: (id(p), p) for name, p in module.named_parameters()}
        assert list(before) == list(after)
        assert all(before[n][0] == after[n][0] and torch.equal(before[n][1], after[n][1]) for n in before)


@pytest.mark.parametrize("name", ["softplus", "tanh", "tied"])
def test_gradients_exist_where_they_are_switched_off(name: str) -> None:
    x, y = task(11, 5)
    make = AWKWARD.get(name, lambda seed: models.mlp(5, 8, 1, activation=name, seed=seed))
    program = Program([control.scale(make(0), 2.0)], soft_hinge, torch.float64)
    given = (program.start() * 1.1, torch.arange(1), x, y, program.offsets(x))
    wanted = program.gradient(*given)
    with torch.no_grad():
        assert all(map(torch.equal, program.gradient(*given), wanted))


def test_a_parameter_that_is_used_nowhere_has_gradient_0() -> None:
    x, y = task(11, 5)
    program = Program([AWKWARD["custom"](0)], soft_hinge, torch.float64)
    moving = tuple(name == "unused" for name in program.layout.names)
    outputs, _, gradient = program.gradient(program.start(), torch.arange(1), x, y, None, moving)
    assert not gradient.any() and torch.equal(
        outputs, program.outputs(program.start(), torch.arange(1), x, None)
    )


def test_members_of_one_architecture_only() -> None:
    networks = [models.mlp(5, 8, 1), models.mlp(5, 9, 1)]
    with pytest.raises(UserError, match="`modules`: member 1 differs"):
        Program(networks, soft_hinge, torch.float64)
    with pytest.raises(UserError, match="`modules`: member 1 differs"):
        Program([models.mlp(5, 8, 1), models.mlp(5, 8, 1, law=control.MUP)], soft_hinge, torch.float64)
    with pytest.raises(UserError, match="`modules`: got an empty list"):
        members_of([])
    with pytest.raises(UserError, match="`modules`: nothing requires grad"):
        Program([models.mlp(5, 8, 1).requires_grad_(False)], soft_hinge, torch.float64)


def test_the_dtype_of_a_run() -> None:
    single = models.mlp(5, 8, 1, dtype=torch.float32)
    assert choose_dtype([single], None, None) == torch.float32
    assert choose_dtype([single], None, torch.float64) == torch.float64
    lazy = control.scale(models.mlp(5, 8, 1, dtype=torch.float32), 2e3)
    assert choose_dtype([single, lazy], None, None) == torch.float64
    assert choose_dtype([single], torch.float64, None) == torch.float64
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_dtype([control.scale(single, 1e3)], torch.float32, None) == torch.float32
    with pytest.warns(UserWarning, match="alpha above 1000"):
        assert choose_dtype([lazy], torch.float32, None) == torch.float32


def test_a_run_in_another_dtype_leaves_the_module_alone() -> None:
    module = models.mlp(5, 8, 1, dtype=torch.float32)
    program = Program([module], soft_hinge, torch.float64)
    assert next(module.parameters()).dtype == torch.float32
    assert program.start().dtype == torch.float64
    mixed = Program([models.mlp(5, 8, 1), module], soft_hinge, torch.float64)
    assert all(p.dtype == torch.float64 for m in mixed.modules for p in m.parameters())


@pytest.mark.parametrize("law", LAWS)
def test_rates_follow_the_law(law: str) -> None:
    width, inputs = 64, 5
    program = Program([models.mlp(inputs, width, 2, law=control.law(law))], soft_hinge, torch.float64)
    wanted = {
        "ntk": (1.0, 1.0, 1.0),
        "standard": (1.0, 1.0, 1.0),
        "mean-field": (width, width, width),
        "mup": (width / inputs, 1.0, 1 / width),
    }[law]
    if program.rates is None:
        assert set(wanted) == {1.0}
        return
    by_layer = program.layout.split(program.rates[: program.layout.total]).values()
    for tensor, rate in zip(by_layer, wanted, strict=True):
        torch.testing.assert_close(tensor, torch.full_like(tensor, rate), rtol=1e-14, atol=0)
    assert math.isclose(float(program.rates[program.layout.total :].sum()), 0.0)
