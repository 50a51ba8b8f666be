"""Gradient flow by the classical Runge-Kutta method: the method, its order, its members, going on after a stop."""

from __future__ import annotations

import copy
import io
import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from regimes import control, measure, models, train
from regimes.core.error import UserError
from regimes.core.loss import LOSSES, Loss, soft_hinge, squared
from regimes.core.state import State
from tests.train.plain import AWKWARD, task

ALPHAS = [0.3, 1.0, 20.0]


def plain_path(
    module: control.Scaled, x: Tensor, y: Tensor, loss: Loss, dt: float, steps: int
) -> list[Tensor]:
    """w at each step, by autograd on the module and the rule written out."""
    rates = control.rates(module.network)
    own = {n: p for n, p in module.network.named_parameters() if p.requires_grad}

    def k(w: Sequence[Tensor]) -> list[Tensor]:
        leaves = [each.clone().requires_grad_() for each in w]
        full = {f"network.{n}": leaf for n, leaf in zip(own, leaves, strict=True)}
        # a copy, for functional_call leaves a module with two names damaged (pytorch issue 164759)
        out = torch.func.functional_call(copy.deepcopy(module), full, (x,)).reshape(len(x), -1)
        value = module.loss(loss.per_sample(out, y).mean())
        found = torch.autograd.grad(value, leaves, materialize_grads=True)
        return [-rates[n] * g for n, g in zip(own, found, strict=True)]

    def ahead(w: Sequence[Tensor], by: float, along: Sequence[Tensor]) -> list[Tensor]:
        return [a + by * b for a, b in zip(w, along, strict=True)]

    w = [p.detach().clone() for p in own.values()]
    path = [w]
    for _ in range(steps):
        k1 = k(w)
        k2 = k(ahead(w, dt / 2, k1))
        k3 = k(ahead(w, dt / 2, k2))
        k4 = k(ahead(w, dt, k3))
        w = [a + dt / 6 * (p + 2 * q + 2 * r + s) for a, p, q, r, s in zip(w, k1, k2, k3, k4, strict=True)]
        path.append(w)
    return [torch.cat([p.reshape(-1) for p in each]) for each in path]


def joined(state: State) -> Tensor:
    return torch.cat([p.reshape(-1) for p in state.parameters.values()])


def same(a: State, b: State) -> bool:
    """Bit for bit."""
    assert a.outputs is not None and b.outputs is not None
    numbers = (a.step, a.time, a.status, a.loss) == (b.step, b.time, b.status, b.loss)
    trees = all(torch.equal(a.parameters[n], b.parameters[n]) for n in a.parameters)
    return numbers and trees and torch.equal(a.outputs, b.outputs)


@pytest.mark.parametrize("loss", ["squared", "soft-hinge"])
@pytest.mark.parametrize("law", ["ntk", "mup"])
def test_is_the_method_written_out(law: str, loss: str) -> None:
    x, y = task(12, 5)

    def members() -> list[control.Scaled]:
        made = [models.mlp(5, 8, 2, law=control.law(law), seed=s) for s in range(3)]
        return [control.scale(net, a) for net, a in zip(made, ALPHAS, strict=True)]

    states = list(train.runge_kutta(members(), x, y, dt=0.2, steps=6, loss=LOSSES[loss]))
    for k, module in enumerate(members()):
        mine = [s for s in states if s.member == k]
        path = plain_path(module, x, y, LOSSES[loss], 0.2, 6)
        assert [(s.step, s.time) for s in mine] == [(i, i * 0.2) for i in range(7)]
        assert [s.status for s in mine] == ["running"] * 6 + ["finished"]
        for state, w in zip(mine, path, strict=True):
            torch.testing.assert_close(joined(state), w, rtol=1e-11, atol=1e-12)
            assert state.outputs is not None
            torch.testing.assert_close(state.outputs, state(x), rtol=1e-12, atol=1e-12)
            assert state.loss == pytest.approx(LOSSES[loss].per_sample(state(x), y).mean().item(), rel=1e-12)


@pytest.mark.parametrize("name", AWKWARD)
def test_is_the_method_on_any_module(name: str) -> None:
    x, y = task(9, 5)
    *_, end = train.runge_kutta(control.scale(AWKWARD[name](0), 2.0), x, y, dt=0.1, steps=3)
    path = plain_path(control.scale(AWKWARD[name](0), 2.0), x, y, soft_hinge, 0.1, 3)
    torch.testing.assert_close(joined(end), path[-1], rtol=1e-11, atol=1e-12)


def test_half_the_step_is_a_sixteenth_of_the_error() -> None:
    """... of the linear flow, which is known in closed form, and of a smooth network."""
    x, y = task(8, 3)
    network = models.mlp(3, 6, 1)
    linear = control.linearize(network)
    start = linear(x).detach()
    exact = train.kernel(measure.ntk(linear, x), y, start=start).at(2.0).outputs

    def end(module: nn.Module, steps: int) -> Tensor:
        *_, last = train.runge_kutta(module, x, y, dt=2.0 / steps, steps=steps, loss=squared)
        assert last.outputs is not None
        return last.outputs

    for module, truth in ((linear, exact), (network, end(network, 96))):
        coarse, fine = (float((end(module, steps) - truth).abs().max()) for steps in (12, 24))
        assert 11 < coarse / fine < 22 and fine < 1e-3


@pytest.mark.parametrize("kind", ["mlp", "tied"])
def test_a_member_does_not_depend_on_its_company(kind: str) -> None:
    """Alone, in company, beside one that diverges at once: the same states bit for bit."""
    torch.set_num_threads(1)
    x, y = task(13, 5)

    def run(order: Sequence[int]) -> dict[int, list[State]]:
        made = [models.mlp(5, 7, 2, seed=s) if kind == "mlp" else AWKWARD[kind](s) for s in order]
        for net, s in zip(made, order, strict=True):
            if s == 3:
                next(net.parameters()).data[0] = math.nan
        modules = [control.scale(net, [*ALPHAS, 1.0][s]) for net, s in zip(made, order, strict=True)]
        states = list(train.runge_kutta(modules, x, y, dt=0.3, steps=4))
        return {s: [state for state in states if state.member == row] for row, s in enumerate(order)}

    together = run([0, 3, 1, 2])
    assert [(s.step, s.status) for s in together[3]] == [(0, "diverged")]
    for seed in range(3):
        alone = run([seed])[seed]
        assert len(alone) == 5 and all(map(same, alone, together[seed]))


def test_a_step_too_large_diverges() -> None:
    """The last state of the member is the last that is finite; the other goes on."""
    x, y = task(10, 4)
    modules: list[nn.Module] = [models.mlp(4, 8, 1, activation="relu", seed=s) for s in range(2)]
    for p in modules[0].parameters():
        p.data *= 1e60
    states = list(train.runge_kutta(modules, x, y, dt=0.1, steps=30, loss=squared))
    wild, calm = ([s for s in states if s.member == k] for k in range(2))
    assert wild[-1].status == "diverged" and wild[-1].step < 30
    assert all(bool(joined(s).isfinite().all()) for s in wild)
    assert calm[-1].status == "finished" and len(calm) == 31


def test_goes_on_exactly_and_for_longer() -> None:
    """k states, save, load, the rest, wherever the break falls."""
    x, y = task(11, 5)

    def engine(steps: int) -> train.RungeKutta:
        modules = [control.scale(models.mlp(5, 8, 2, seed=s), a) for s, a in enumerate(ALPHAS)]
        return train.runge_kutta(modules, x, y, dt=0.3, steps=steps)

    whole = list(engine(5))
    for k, steps in ((0, 5), (4, 5), (9, 5), (18, 5), (5, 3), (9, 3)):
        first, second = engine(steps), engine(5)
        head = list(itertools.islice(first, k))
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        second.load_state_dict(torch.load(file, weights_only=True))
        states = [*head, *second]
        assert [s.member for s in states] == [s.member for s in whole]
        assert all(map(same, states, whole))
    with pytest.raises(UserError, match=r"`dt`: got 0\.1, expected 0\.3, as in the saved run"):
        train.runge_kutta(
            [control.scale(models.mlp(5, 8, 2, seed=s), a) for s, a in enumerate(ALPHAS)],
            x,
            y,
            dt=0.1,
            steps=5,
        ).load_state_dict(engine(5).state_dict())


def test_limits_and_mistakes() -> None:
    x, y = task(10, 4)
    net = models.mlp(4, 8, 1)
    assert [(s.step, s.status) for s in train.runge_kutta(net, x, y, dt=1.0, steps=0)] == [(0, "finished")]
    late = list(train.runge_kutta(net, x, y, dt=1e-3, steps=10**9, max_seconds=0.02))
    assert late[-1].status == "stopped" and late[-1].update is None
    for match, change in (
        ("`dt`: got 0", {"dt": 0.0}),
        ("`dt`: got inf", {"dt": math.inf}),
        ("`steps`: got -1", {"steps": -1}),
    ):
        with pytest.raises(UserError, match=match):
            train.runge_kutta(net, x, y, **{"dt": 0.1, "steps": 2} | change)  # pyright: ignore[reportArgumentType]
