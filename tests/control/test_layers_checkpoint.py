"""A checkpoint of ``torch.distributed.checkpoint`` goes on with the same bits, with layers that have not moved yet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from regimes import control, models
from tests.control.sparse import X, assert_same, batches, loss_of

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own: of a process alone, of old names
STEPS = 11
BATCHES = [x for (x,) in batches(X, STEPS, 1)]
OPTIMIZERS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "adamw": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    # The first step of a momentum is the gradient itself, without dampening: zeros in its place go another way.
    "momentum": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
}


def fresh(kind: str) -> tuple[nn.Module, Optimizer]:
    module = models.mlp(3, 5, 3, seed=1)
    make, settings = OPTIMIZERS[kind]
    return module, make(module.parameters(), **settings)


def policy_of(module: nn.Module, optimizer: Optimizer, state: Any) -> control.LayerwiseSparse:
    moves = control.CyclicBlocks(interval=3)
    return control.LayerwiseSparse(module, optimizer, moves, example=X, seed=4, state=state)


def go_on(module: nn.Module, optimizer: Optimizer, first: int, last: int) -> None:
    for x in BATCHES[first:last]:
        optimizer.zero_grad()
        loss_of(module(x)).backward()
        optimizer.step()


@pytest.mark.parametrize("state", ["keep", "drop"])
@pytest.mark.parametrize("kind", list(OPTIMIZERS))
@pytest.mark.parametrize("step", [1, 3, 4, 9, 10])
def test_goes_on_with_the_same_bits(kind: str, state: str, step: int, tmp_path: Path) -> None:
    whole, optimizer = fresh(kind)
    policy = policy_of(whole, optimizer, state)
    go_on(whole, optimizer, 0, step)
    weights, optimiser = get_state_dict(whole, optimizer)
    save({"module": weights, "optimizer": optimiser}, checkpoint_id=tmp_path / "checkpoint")
    (tmp_path / "policy.json").write_text(json.dumps(policy.state_dict()))
    go_on(whole, optimizer, step, STEPS)

    module, optimizer = fresh(kind)
    weights, optimiser = get_state_dict(module, optimizer)
    parts = {"module": weights, "optimizer": optimiser}
    planner = DefaultLoadPlanner(allow_partial_load=True)  # of layers that have not moved nothing was saved
    load(parts, checkpoint_id=tmp_path / "checkpoint", planner=planner)
    set_state_dict(module, optimizer, model_state_dict=weights, optim_state_dict=parts["optimizer"])
    again = policy_of(module, optimizer, state)
    again.load_state_dict(json.loads((tmp_path / "policy.json").read_text()))
    go_on(module, optimizer, step, STEPS)
    assert_same(module, whole, 0.0)
    assert again.state_dict() == policy.state_dict()
