"""A run that is saved and goes on, at any step and in the middle of one, ends with the same bits."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

from regimes import control, models
from regimes.core.error import UserError
from tests.control.sparse import SETTINGS, X, assert_same, batches, loss_of

STEPS, PIECES = 7, 2
BATCHES = [x for pieces in batches(X, STEPS, PIECES) for x in pieces]


class Run:
    """A loop of one's own, which can be saved after any batch."""

    def __init__(self, kind: str, moves: control.Moves, **more: Any) -> None:
        self.module: nn.Module = models.mlp(3, 5, 3, seed=1)
        make, settings = SETTINGS[kind]
        self.optimizer = make(self.module.parameters(), **settings)  # pyright: ignore[reportCallIssue]
        self.policy = control.LayerwiseSparse(self.module, self.optimizer, moves, example=X, seed=4, **more)
        self.done = 0

    def advance(self, upto: int) -> Run:
        while self.done < upto:
            loss_of(self.module(BATCHES[self.done])).backward()
            self.done += 1
            if self.done % PIECES == 0:
                self.optimizer.step()
                self.optimizer.zero_grad()
        return self

    def save(self) -> io.BytesIO:
        grads = {name: p.grad for name, p in self.module.named_parameters()}
        parts = [
            self.module.state_dict(),
            self.optimizer.state_dict(),
            self.policy.state_dict(),
            grads,
            self.done,
        ]
        file = io.BytesIO()
        torch.save(parts, file)
        file.seek(0)
        return file

    def load(self, file: io.BytesIO) -> Run:
        module, optimizer, policy, grads, self.done = torch.load(file, weights_only=True)
        self.module.load_state_dict(module)
        self.optimizer.load_state_dict(optimizer)
        self.policy.load_state_dict(policy)
        for name, p in self.module.named_parameters():
            p.grad = grads[name]
        return self


@pytest.mark.parametrize(
    ("kind", "moves", "more"),
    [
        ("sgd", control.Cut(p=0.4), {}),
        ("adamw", control.Cut(p=0.4, interval=3), {"largest_factor": float("inf")}),
        ("momentum", control.RandomLayers(2, always=("0",), interval=2), {"largest_factor": 1.5}),
        ("adam", control.CyclicBlocks(order="random", interval=3), {"state": "drop", "warmup": 4}),
        ("adamw", control.UniformCut(), {"state": "offload"}),
        ("adamw", control.UniformCut(), {"state": "decay"}),
        ("momentum", control.RandomLayers(1), {"largest_factor": float("inf"), "by_curvature": True}),
        ("momentum", control.Fixed(bottom=1, top=1), {}),
    ],
    ids=str,
)
def test_a_run_that_goes_on_ends_with_the_same_bits(
    kind: str, moves: control.Moves, more: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    whole = Run(kind, moves, **more).advance(len(BATCHES))
    for k in range(len(BATCHES) + 1):
        file = Run(kind, moves, **more).advance(k).save()
        torch.manual_seed(k)  # of no consequence
        again = Run(kind, moves, **more).load(file)
        assert again.policy.step == k // PIECES
        again.advance(len(BATCHES))
        assert_same(again.module, whole.module, 0.0)
        assert str(again.optimizer.state_dict()) == str(whole.optimizer.state_dict())
        assert str(again.policy.state_dict()) == str(whole.policy.state_dict())


def test_saving_in_the_middle_changes_nothing() -> None:
    one, other = (Run("adamw", control.Cut(p=0.4)) for _ in range(2))
    for k in range(len(BATCHES) + 1):
        one.advance(k).save()
        one.policy.load_state_dict(copy.deepcopy(one.policy.state_dict()))
    other.advance(len(BATCHES))
    assert_same(one.module, other.module, 0.0)


@pytest.mark.parametrize(
    ("moves", "more", "words"),
    [
        (
            control.Cut(p=0.3),
            {},
            r"is that of another policy: `moves` is 'Cut\(p=0.4, top=1, interval=1\)', expected",
        ),
        (control.Cut(p=0.4, interval=2), {}, "`moves` is"),
        (control.UniformCut(), {}, "`moves` is"),
        (control.Cut(p=0.4), {"seed": 1}, "`seed` is 0, expected 1"),
        (control.Cut(p=0.4), {"state": "drop"}, "`state` is 'keep', expected 'drop'"),
        (control.Cut(p=0.4), {"largest_factor": 2.0}, r"`largest_factor` is 1.0, expected 2.0"),
        (control.Cut(p=0.4), {"layers": ["[02]"]}, None),
    ],
)
def test_the_state_of_another_policy_is_refused(
    moves: control.Moves, more: dict[str, Any], words: str | None
) -> None:
    module = models.mlp(3, 5, 2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    policy = control.LayerwiseSparse(module, optimizer, control.Cut(p=0.4), example=X)
    saved = policy.state_dict()
    policy.remove()
    other = control.LayerwiseSparse(module, optimizer, moves, example=X, **more)
    before = other.state_dict()
    if words is None:  # the same layers by another pattern
        other.load_state_dict(saved)
        return
    with pytest.raises(UserError, match=f"`state_dict`: .*{words}"):
        other.load_state_dict(saved)
    assert other.state_dict() == before


def test_what_is_no_state_of_a_policy_is_refused() -> None:
    module = models.mlp(3, 5, 2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    policy = control.LayerwiseSparse(module, optimizer, control.Cut(p=0.4), example=X)
    with pytest.raises(UserError, match="`state_dict`: 'moves' is missing, expected the state_dict"):
        policy.load_state_dict(optimizer.state_dict())
    deeper = models.mlp(3, 5, 3)
    other = control.LayerwiseSparse(
        deeper, torch.optim.SGD(deeper.parameters(), lr=0.1), control.Cut(p=0.4), example=X
    )
    with pytest.raises(UserError, match="`state_dict`: is that of another policy: `layers`"):
        other.load_state_dict(policy.state_dict())
