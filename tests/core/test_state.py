"""A state refers to the network; it copies nothing until it is asked to."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from regimes import control, models
from regimes.core.state import State
from regimes.core.tree import trainable
from tests.train.plain import AWKWARD


def test_a_state_holds_references() -> None:
    module = models.mlp(3, 8, 2)
    state = State.of(module)
    for name, p in module.named_parameters():
        assert state.parameters[name].data_ptr() == p.data_ptr() == state.origin[name].data_ptr()
    assert state.module is module and (state.step, state.time, state.status) == (0, 0.0, "running")
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.step = 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", AWKWARD)
def test_calling_a_state_is_calling_the_network(name: str) -> None:
    """With its own parameters, not with those the module has by now; and the module is left as it was."""
    module = AWKWARD[name](0)
    x = torch.randn(4, 5, dtype=torch.float64)
    wanted = module(x)
    state = State(module, {n: p.detach().clone() for n, p in trainable(module).items()}, {})
    identities = {n: id(p) for n, p in module.named_parameters(remove_duplicate=False)}
    for p in trainable(module).values():
        p.data += 1.0
    torch.testing.assert_close(state(x), wanted)
    torch.testing.assert_close(state(x), wanted)
    assert identities == {n: id(p) for n, p in module.named_parameters(remove_duplicate=False)}


def test_the_initial_state_is_at_the_origin() -> None:
    module = control.scale(models.mlp(3, 8, 1), 2.0)
    origin = {n: p.detach().clone() for n, p in trainable(module).items()}
    for p in trainable(module).values():
        p.data += 1.0
    state = State.of(module, origin, step=4)
    x = torch.randn(4, 3, dtype=torch.float64)
    assert bool((state(x) != 0).any()) and state.step == 4
    start = state.initial()
    assert bool((start(x) == 0).all()) and (start.step, start.time, start.update) == (0, 0.0, None)


def test_materialize_is_a_network_of_its_own() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
    state = State(module, {n: p.detach() * 2 for n, p in trainable(module).items()}, {})
    copy = state.materialize()
    x = torch.randn(4, 3)
    torch.testing.assert_close(copy(x), state(x))
    assert type(copy) is nn.Sequential and all(p.requires_grad for p in copy.parameters())
    own = {p.data_ptr() for p in module.parameters()} | {p.data_ptr() for p in state.parameters.values()}
    assert own.isdisjoint({p.data_ptr() for p in copy.parameters()})
