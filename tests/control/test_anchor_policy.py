"""Iterative linearisation in a loop of one's own: plain training, linear models, what lies between, and going on."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from regimes import control, measure, models, train
from regimes.core.derivative import jvp
from regimes.core.error import UserError
from regimes.core.loss import squared
from regimes.core.tree import sub, trainable

F64 = torch.float64
OPTIMISERS: Mapping[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.05),
    "momentum": partial(torch.optim.SGD, lr=0.02, momentum=0.9, weight_decay=0.01),
    "nesterov": partial(torch.optim.SGD, lr=0.02, momentum=0.8, nesterov=True),
    "adam": partial(torch.optim.Adam, lr=0.005),
    "adamw": partial(torch.optim.AdamW, lr=0.005, weight_decay=0.1),
}
ADAPTIVE = control.Adaptive(trust=0.9, gap=0.2, drift=0.3, every=2, most=9)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 2, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)),
    ).double()


NETWORKS: Mapping[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "mlp": (mlp, drawn(12, 5)),
    "cnn": (cnn, drawn(12, 1, 10, 10)),
}
Y = torch.arange(12) % 3


class Loop:
    """A loop of one's own on mini-batches of 4, that can be saved after any step."""

    def __init__(self, network: str, optimiser: str, rule: Any, **more: Any) -> None:
        make, self.x = NETWORKS[network]
        self.module = control.linearize(make())
        self.optimizer = OPTIMISERS[optimiser](self.module.parameters())
        self.policy = control.IterativeLinearisation(self.module, self.optimizer, rule, **more)

    def advance(self, upto: int) -> Loop:
        while self.policy.steps < upto:
            part = slice(self.policy.steps % 3 * 4, self.policy.steps % 3 * 4 + 4)
            self.optimizer.zero_grad()
            cross_entropy(self.module(self.x[part]), Y[part]).backward()
            self.optimizer.step()
            self.policy.step()
        return self

    def save(self) -> io.BytesIO:
        file = io.BytesIO()
        parts = self.module.nonlinear.state_dict(), self.optimizer.state_dict(), self.policy.state_dict()
        torch.save(parts, file)
        file.seek(0)
        return file

    def load(self, file: io.BytesIO) -> Loop:
        network, optimizer, policy = torch.load(file, weights_only=True)
        self.module.nonlinear.load_state_dict(network)
        self.optimizer.load_state_dict(optimizer)
        self.policy.load_state_dict(policy)
        return self

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.module.parameters()])


def looked(network: str = "mlp") -> dict[str, Any]:
    return {"inputs": NETWORKS[network][1], "targets": Y, "loss": cross_entropy}


def plain(network: str, optimiser: str, steps: int, anchors: Any = None, reset: bool = False) -> Tensor:
    """The same by hand: gradients of f, or of f(a) + J(a)(w - a) with its J^T by jvp and autograd."""
    make, x = NETWORKS[network]
    module, anchored = make(), make()
    optimizer = OPTIMISERS[optimiser](module.parameters())
    for step in range(steps):
        if step and (anchors is None or step in anchors):
            anchored.load_state_dict(module.state_dict())
            if reset:
                optimizer = OPTIMISERS[optimiser](module.parameters())
        part = slice(step % 3 * 4, step % 3 * 4 + 4)
        optimizer.zero_grad()
        if anchors is None:
            cross_entropy(module(x[part]), Y[part]).backward()
        else:
            at, w = ({n: p.detach() for n, p in trainable(m).items()} for m in (anchored, module))
            value, along = jvp(anchored, at, x[part], sub(w, at))
            out = (value + along).requires_grad_()
            (u,) = torch.autograd.grad(cross_entropy(out, Y[part]), out)
            found = torch.autograd.grad(anchored(x[part]), list(anchored.parameters()), u)
            for p, g in zip(module.parameters(), found, strict=True):
                p.grad = g
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_step_is_plain_training(network: str, optimiser: str) -> None:
    """To 1e-10 over 100 steps, with max-pooling too."""
    loop = Loop(network, optimiser, control.Every(1)).advance(100)
    assert float((loop.weights() - plain(network, optimiser, 100)).abs().max()) < 1e-10
    assert loop.policy.updates == 100


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("optimiser", ["momentum", "adamw"])
def test_blocks_are_those_of_the_formula(optimiser: str, reset: bool) -> None:
    """At given moments, with the state of the optimiser kept or started anew."""
    anchors = [3, 4, 11]
    loop = Loop("mlp", optimiser, control.AtSteps(anchors, reset=reset)).advance(15)
    torch.testing.assert_close(
        loop.weights(), plain("mlp", optimiser, 15, anchors, reset), rtol=1e-9, atol=1e-11
    )
    assert [block.step for block in loop.policy.blocks] == [0, *anchors] and loop.policy.updates == 4


def test_a_block_of_the_whole_run_is_the_linear_model_and_ends_at_the_kernel_solution() -> None:
    x, y, other = drawn(6, 3), drawn(6, seed=1), drawn(4, 3, seed=2)
    network = models.mlp(3, 16, 1)
    linear = control.linearize(network)
    optimizer = torch.optim.SGD(linear.parameters(), lr=6.0, momentum=0.9)
    policy = control.IterativeLinearisation(
        linear, optimizer, control.Every(10**9), inputs=x, targets=y, loss=squared, stable="lower"
    )
    for _ in range(400):
        optimizer.zero_grad()
        squared.per_sample(linear(x), y).mean().backward()
        optimizer.step()
        policy.step()
    assert policy.updates == 1 and len(policy.blocks) == 1 and policy.blocks[0].lowered
    start, there = (network(points).detach() for points in (x, other))
    solved = train.kernel(measure.ntk(network, x, reduce="trace"), y, start=start).at(float("inf"))
    cross = measure.ntk(network, other, x, reduce="trace")
    torch.testing.assert_close(linear(x), solved.outputs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(linear(other), solved.predict(cross, there), rtol=1e-4, atol=1e-4)


GOING: Mapping[str, tuple[str, Any, dict[str, Any]]] = {
    "every": ("momentum", control.Every(4), {}),
    "moments": ("adamw", control.AtSteps([2, 5], reset=True), {}),
    "adaptive": ("adam", ADAPTIVE, looked()),
    "lowered": ("momentum", control.Every(3), {**looked(), "stable": "lower", "batch_size": 4}),
    "shortened": ("sgd", lambda step: step % 3 == 1, {**looked(), "stable": "shorten"}),
}


@pytest.mark.parametrize("kind", GOING)
def test_goes_on_exactly_at_every_step(kind: str) -> None:
    """Inside a block too: the anchor is among what is saved. A high rate, so that blocks are cut and rates lowered."""
    optimiser, rule, more = GOING[kind]
    steps = 6 if "stable" in more else 9

    def fresh() -> Loop:
        loop = Loop("mlp", optimiser, rule, **more)
        if "stable" in more:
            loop.optimizer.param_groups[0]["lr"] = 3.0
        return loop

    whole = fresh().advance(steps)
    for k in (1, 4) if "stable" in more else range(1, steps + 1):
        again = fresh().load(fresh().advance(k).save()).advance(steps)
        assert torch.equal(again.weights(), whole.weights())
        assert again.policy.blocks == whole.policy.blocks and again.policy.updates == whole.policy.updates
        assert str(again.policy.state_dict()) == str(whole.policy.state_dict())
    if "stable" in more:
        assert any(b.lowered or b.why == "stable" for b in whole.policy.blocks)
        assert whole.optimizer.param_groups[0]["lr"] == 3.0


def test_feature_updates_are_steps_over_the_period() -> None:
    """ceil(t / K); an anchor that is set after the last step counts with the next."""
    for period, steps, expected in ((1, 0, 0), (1, 5, 5), (3, 3, 1), (3, 4, 2), (3, 6, 2), (9, 5, 1)):
        assert Loop("mlp", "sgd", control.Every(period)).advance(steps).policy.updates == expected


def test_removed_it_leaves_the_anchor() -> None:
    loop = Loop("mlp", "sgd", control.Every(2), **looked(), stable="refuse").advance(2)
    loop.policy.remove()
    loop.optimizer.param_groups[0]["lr"] = 1e9
    loop.optimizer.step()  # nothing refuses


@pytest.mark.parametrize(
    ("rule", "more", "words"),
    [
        (control.Every(5), {}, r"`rule` is 'Every\(steps=4, reset=False\)', expected 'Every\(steps=5"),
        (control.Every(4, reset=True), {}, "`rule` is"),
        (lambda step: step % 4 == 0, {}, "`rule` is .* expected 'a function'"),
        (control.Every(4), {**looked(), "stable": "lower"}, "`stable` is None, expected 'lower'"),
    ],
)
def test_the_state_of_another_policy_is_refused(rule: Any, more: dict[str, Any], words: str) -> None:
    saved = Loop("mlp", "sgd", control.Every(4)).advance(5).policy.state_dict()
    other = Loop("mlp", "sgd", rule, **more)
    before = str(other.policy.state_dict())
    with pytest.raises(UserError, match=f"`state_dict`: is that of another policy: {words}"):
        other.policy.load_state_dict(saved)
    assert str(other.policy.state_dict()) == before
    with pytest.raises(UserError, match=r"`parameters` is"):
        Loop("cnn", "sgd", control.Every(4)).policy.load_state_dict(saved)
    with pytest.raises(UserError, match=r"'rule' is missing, expected the state_dict"):
        other.policy.load_state_dict({})


def test_a_function_may_differ_in_the_steps_to_come() -> None:
    saved = Loop("mlp", "sgd", lambda step: step % 4 == 0).advance(5).policy.state_dict()
    Loop("mlp", "sgd", lambda step: step in (4, 6)).policy.load_state_dict(saved)
    with pytest.raises(UserError, match=r"`rule`: got False for step 4, expected True, as in the saved run"):
        Loop("mlp", "sgd", lambda step: step == 6).policy.load_state_dict(saved)


def test_mistakes_are_refused() -> None:
    module = control.linearize(mlp())
    sgd = OPTIMISERS["sgd"](module.parameters())
    made = control.IterativeLinearisation
    with pytest.raises(UserError, match=r"`module`: got .*expected a .*Linearized"):
        made(mlp(), sgd, control.Every(2))  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"`optimizer`: does not hold '0.weight' of `module`"):
        made(module, OPTIMISERS["sgd"](mlp().parameters()), control.Every(2))
    with pytest.raises(UserError, match=r"`inputs`: got None, expected training samples.*an adaptive rule"):
        made(module, sgd, control.Adaptive(gap=0.1))
    with pytest.raises(UserError, match=r"`loss`: got None"):
        made(module, sgd, control.Every(2), inputs=NETWORKS["mlp"][1], targets=Y, stable="lower")
    with pytest.raises(UserError, match=r"`stable`: no bound is known for Adam"):
        made(module, OPTIMISERS["adam"](module.parameters()), control.Every(2), **looked(), stable="lower")
    with pytest.raises(UserError, match=r"`targets`: got 3 for 12 samples"):
        made(module, sgd, control.Adaptive(gap=0.1), **{**looked(), "targets": Y[:3]})
    with pytest.raises(UserError, match=r"`loss`: gave .* for two samples"):
        made(module, sgd, control.Adaptive(gap=0.1), **{**looked(), "loss": lambda out, y: out})
    policy = made(module, sgd, lambda step: None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"`rule`: gave None at step 1, expected True or False"):
        policy.step()
