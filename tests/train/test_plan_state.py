"""What probes read off the states of a run whose linearisation is renewed: the function it trains, at each moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from regimes import control, measure, models, train
from regimes.core.loss import squared
from regimes.core.state import State
from tests.train.plain import task
from tests.train.test_plan import SOME

X, Y = task(9, 5)
OTHER = task(4, 5, seed=1)[0]
ENGINES: dict[str, Callable[..., Any]] = {
    "flow": lambda *a, **k: train.flow(*a, max_steps=5, **k),
    "descent": lambda *a, **k: train.descent(*a, lr=0.2, steps=5, **k),
    "runge-kutta": lambda *a, **k: train.runge_kutta(*a, dt=0.2, steps=5, **k),
}
ALPHAS = [0.2, 4.0]


def members(activation: str = "relu") -> list[nn.Module]:
    made = [models.mlp(5, 8, 2, activation=activation, seed=s) for s in range(2)]
    return [control.scale(net, a) for net, a in zip(made, ALPHAS, strict=True)]


def linear(module: nn.Module, anchor: State, state: State, x: torch.Tensor) -> torch.Tensor:
    """alpha (f(a) + J(a)(w - a) - f(w0)), by a linearised copy."""
    network, alpha, origin = control.unscaled(module)
    assert origin is not None
    copied = control.linearize(network)
    own = dict(copied.named_parameters())
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(anchor.parameters[f"network.{name}"])
        copied.relinearize()
        for name, p in own.items():
            p.copy_(state.parameters[f"network.{name}"])
        return alpha * (copied(x) - origin(x))


@pytest.mark.parametrize("engine", SOME)
def test_a_state_is_the_function_that_is_trained(engine: str) -> None:
    """Kept until the end of the run, each has the anchor it had; a copy of it too; outputs and loss are its own."""
    run = ENGINES[engine](members("softplus"), X, Y, loss=squared, anchor=lambda step: step in (2, 4))
    states = list(run)
    for k, module in enumerate(members("softplus")):
        mine = [s for s in states if s.member == k]
        assert len(mine) == 6
        for state in mine:
            anchor = mine[max(step for step in (0, 2, 4) if step <= state.step)]
            for x in (X, OTHER):
                wanted = linear(module, anchor, state, x)
                torch.testing.assert_close(state(x), wanted, rtol=1e-10, atol=1e-11)
                torch.testing.assert_close(state.materialize()(x).detach(), wanted, rtol=1e-10, atol=1e-11)
            assert state.outputs is not None
            torch.testing.assert_close(state.outputs, state(X), rtol=1e-11, atol=1e-12)
            assert state.loss == pytest.approx(squared.per_sample(state(X), Y).mean().item(), rel=1e-10)
            assert not state.initial()(X).any()


def values(states: Any, every: int = 1, **more: Any) -> dict[tuple[int, int], dict[str, Any]]:
    """What the probes say of each member at each step."""
    probes = [
        measure.Error(X, Y, "train"),
        measure.KernelDrift(OTHER),
        measure.Movement(),
        measure.Gap(OTHER),
        *more.get("also", []),
    ]
    rows = measure.observe(states, probes, lambda step: step + every)
    return {(row.member, row.step): dict(row.values) for row in rows}


@pytest.mark.parametrize("engine", SOME)
def test_lazy_training_moves_no_kernel(engine: str) -> None:
    run = ENGINES[engine](members(), X, Y, anchor=lambda step: False)
    seen = values(run, 3, also=[measure.Pattern(OTHER)])
    assert len(seen) == 4
    for (_, step), row in seen.items():
        assert row["dK"] == 0 and row["gap"] < 1e-12 and row["pattern"] == 1
        assert (row["dW"] > 0) == (step > 0)


def test_an_anchor_that_always_moves_reads_as_plain_training() -> None:
    also = [measure.Pattern(OTHER)]
    plain = values(ENGINES["descent"](members(), X, Y), 3, also=also)
    seen = values(ENGINES["descent"](members(), X, Y, anchor=lambda step: True), 3, also=also)
    assert plain.keys() == seen.keys()
    for key, row in plain.items():
        assert seen[key] == pytest.approx(row, rel=1e-8, abs=1e-10)
    assert plain[0, 5]["dK"] > 0.01 and plain[0, 5]["gap"] > 0.01


def test_the_pattern_is_that_at_the_anchor() -> None:
    """Whether or not the function was called before."""
    states = list(ENGINES["descent"](members(), X, Y, anchor=lambda step: step == 3))
    rows = list(measure.observe(states, [measure.Pattern(OTHER)], lambda step: step + 1))
    for row in rows:
        module = members()[row.member]
        moved = next(s for s in states if (s.member, s.step) == (row.member, 3 if row.step >= 3 else 0))
        wanted = measure.pattern(module, OTHER, origin=moved.origin, parameters=moved.parameters)
        assert row.values["pattern"] == wanted
    assert len(rows) == 12 and rows[-1].values["pattern"] != 1


@pytest.mark.parametrize("engine", [pytest.param("flow", marks=pytest.mark.slow), *SOME[1:]])
def test_the_kernel_is_that_at_the_anchor(engine: str) -> None:
    """It stays between two moves of the anchor, and is measured from the start, wherever the first look is."""
    states = list(ENGINES[engine](members("softplus"), X, Y, anchor=lambda step: step in (2, 4)))
    seen = values(states)
    late = {
        (row.member, row.step): row.values["dK"]
        for row in measure.observe(states, [measure.KernelDrift(OTHER)], lambda step: max(step + 1, 5))
    }
    for k, module in enumerate(members("softplus")):
        mine = [s for s in states if s.member == k]
        kernels = [
            measure.ntk(module, OTHER, reduce="trace", parameters=mine[step].parameters) for step in (0, 2, 4)
        ]
        for step in range(6):
            block = (step >= 2) + (step >= 4)
            drift = measure.drift(kernels[block], kernels[0])
            assert seen[k, step]["dK"] == pytest.approx(drift, rel=1e-8, abs=1e-12)
            if step >= 5:
                assert late[k, step] == pytest.approx(drift, rel=1e-8)
