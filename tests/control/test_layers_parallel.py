"""Two processes of DistributedDataParallel train as one on both batches, and agree on what moves."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from regimes import control, models
from regimes.core.error import UserError
from tests.control.sparse import SETTINGS, X

MOVES = (control.Cut(p=0.4), control.RandomLayers(1, interval=2), control.CyclicBlocks(order="random"))
STEPS = 8
CASES = [(kind, moves) for kind in ("momentum", "adamw") for moves in MOVES]


def train(
    kind: str, moves: control.Moves, rows: slice, parallel: str = ""
) -> tuple[dict[str, Tensor], list[Any]]:
    """Mean squares over some of the samples: the weights at the end, and what moved at each step.

    The policy is made of the module ("before" or without DistributedDataParallel), or of that ("after").
    """
    module = models.mlp(3, 5, 3, seed=1)
    called: Any = module
    if parallel == "after":
        called = DistributedDataParallel(module, find_unused_parameters=True)
    make, settings = SETTINGS[kind]
    optimizer = make(module.parameters(), **settings)  # pyright: ignore[reportCallIssue]
    policy = control.LayerwiseSparse(called, optimizer, moves, example=X, seed=3)
    if parallel == "before":
        called = DistributedDataParallel(module, find_unused_parameters=True, gradient_as_bucket_view=True)
    moved = []
    for step in range(STEPS):
        optimizer.zero_grad()
        for place, half in enumerate(X[rows].chunk(2)):
            wait = (
                isinstance(called, DistributedDataParallel) and place == 0
            )  # gradients are exchanged with the last
            with called.no_sync() if wait else nullcontext():
                ((called(half + 0.1 * step) - 0.3).square().mean() / 2).backward()
        moved.append(policy.moving)
        assert all(p.grad is None for name, p in module.named_parameters() if name not in policy.plan(step))
        optimizer.step()
    return module.state_dict(), moved


def worker(rank: int, folder: str, parallel: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(rank)  # ranks need not agree on it
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        results = [train(kind, moves, slice(6 * rank, 6 * rank + 6), parallel) for kind, moves in CASES]
        torch.save(results, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["before", "after"])
def test_two_processes_train_as_one(tmp_path: Path, parallel: str) -> None:
    spawn(worker, (str(tmp_path), parallel), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for (kind, moves), *results in zip(CASES, *ranks, strict=True):
        weights, moved = train(kind, moves, slice(0, 12))
        for theirs, said in results:
            assert said == moved
            for name, value in weights.items():
                torch.testing.assert_close(theirs[name], value, rtol=1e-12, atol=1e-12)


def test_waiting_for_gradients_that_do_not_come_is_refused(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        module = models.mlp(3, 5, 2)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        parallel = DistributedDataParallel(module)
        with pytest.raises(
            UserError, match="`module`: DistributedDataParallel waits for gradients that do not come"
        ):
            control.LayerwiseSparse(parallel, optimizer, control.Cut(p=0.1), example=X)
        parallel = DistributedDataParallel(module, find_unused_parameters=True)
        policy = control.LayerwiseSparse(parallel, optimizer, control.Cut(p=0.1), example=X)
        assert policy.plan.layers == ("0", "2", "4")
    finally:
        dist.destroy_process_group()


def test_sharded_parameters_are_named(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        module = models.mlp(3, 5, 2)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        fully_shard(module[2], mesh=init_device_mesh("cpu", (1,)))
        for make in (
            lambda: control.LayerwiseSparse(module, optimizer, control.Cut(p=0.1), example=X),
            lambda: control.layer_plan(module, control.Cut(p=0.1), example=X),
        ):
            with pytest.raises(
                UserError, match=r"`module`: the parameters of '2' are sharded .* Distributed"
            ):
                make()
    finally:
        dist.destroy_process_group()
