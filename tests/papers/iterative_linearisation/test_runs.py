"""The runs of iterative linearisation: each against a plain loop in float64, what they look at against definitions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regimes import control, measure
from regimes.core.loss import LOSSES
from regimes.papers.iterative_linearisation.runs import (
    CnnBlocks,
    DampingRun,
    IdentityRun,
    MlpBlocks,
    ParityBlocks,
)
from regimes.papers.iterative_linearisation.runs.blocks import Blocks
from regimes.study import Run
from regimes.train.descent import order

COMMON: dict[str, Any] = {
    "n": 30, "n_test": 20, "steps": 12, "dtype": "float64", "n_probe": 6, "n_top": 30, "width": 6
}  # fmt: skip
RUNS: dict[str, Blocks] = {
    "mlp": MlpBlocks(lr=0.1, momentum=0.5, **COMMON),
    "cnn": CnnBlocks(size=None, lr=0.05, loss="cross-entropy", **{**COMMON, "batch_size": 12}),
    "parity": ParityBlocks(inputs=8, lr=0.1, momentum=0.9, **COMMON),
}


def rows_of(*runs: Run) -> list[list[dict[str, Any]]]:
    """The rows of each member of one program."""
    found = dict(type(runs[0]).perform(runs, None, lambda text: None))
    return [found[run] for run in runs]


def changed(run: Blocks, **given: Any) -> Blocks:
    return run.model_copy(update=given)


class Loop:
    """A run by hand: f(a, x) + J(a, x)(w - a) with J written out, an optimiser of torch, a renewed by the plan.

    Attributes:
        network, linear: outputs of both on the test points at the end.
        loss: of the linear model on the training points at the end.
    """

    def __init__(self, run: Blocks) -> None:
        data = run.points(None)
        net = run.network(tuple(data.train.x.shape[1:]))
        anchor = {name: p.detach().clone() for name, p in net.named_parameters()}
        w = {name: value.clone().requires_grad_() for name, value in anchor.items()}
        optimiser = torch.optim.SGD(list(w.values()), lr=run.lr, momentum=run.momentum)
        loss = LOSSES[run.loss]

        def linear(x: Tensor) -> Tensor:
            def outputs(parameters: dict[str, Tensor]) -> Tensor:
                return torch.func.functional_call(net, parameters, (x,))

            rows = torch.func.jacrev(outputs)(anchor)
            along = [rows[name].flatten(2) @ (w[name] - a).flatten() for name, a in anchor.items()]
            return outputs(anchor).detach() + torch.stack(along).sum(0)

        batch = min(run.batch_size or run.n, run.n)
        epoch = -(-run.n // batch)
        for step in range(run.steps):
            renewed = step <= run.once if run.once is not None else step % run.period == 0
            if renewed:
                anchor = {name: value.detach().clone() for name, value in w.items()}
            picked = order(0, step // epoch, run.n)[step % epoch * batch :][:batch]
            index = torch.arange(run.n) if batch == run.n else picked
            optimiser.zero_grad()
            loss.per_sample(linear(data.train.x[index]), data.train.y[index]).mean().backward()
            optimiser.step()
        with torch.no_grad():
            self.linear, trained = linear(data.test.x), linear(data.train.x)
            parameters = {name: value.detach() for name, value in w.items()}
            self.network = torch.func.functional_call(net, parameters, (data.test.x,))
            self.loss = float(loss.per_sample(trained, data.train.y).mean())
        self.y, self.w = data.test.y, parameters

    def accuracy(self, outputs: Tensor) -> float:
        return 1 - measure.error_rate(outputs, self.y)


@pytest.mark.parametrize("blocks", [{"period": 1}, {"period": 4}, {"period": 99}, {"once": 3}], ids=str)
@pytest.mark.parametrize("kind", RUNS)
def test_blocks_are_those_of_a_plain_loop(kind: str, blocks: dict[str, Any]) -> None:
    run = changed(RUNS[kind], **blocks)
    ((*_, end),), loop = rows_of(run), Loop(run)
    assert (end["step"], end["status"]) == (run.steps, "finished")
    assert end["network_accuracy"] == loop.accuracy(loop.network)
    if run.plan is None:
        assert end["linear_accuracy"] == end["network_accuracy"]
        return
    assert end["linear_accuracy"] == loop.accuracy(loop.linear)
    assert end["linear_loss"] == pytest.approx(loop.loss, rel=1e-9)


@pytest.mark.parametrize("kind", ["mlp", "parity"])
def test_members_are_what_they_are_alone(kind: str) -> None:
    runs = [changed(RUNS[kind], period=4, seed=seed) for seed in (0, 3)]
    assert runs[0].batch == runs[1].batch != changed(RUNS[kind], period=6).batch
    together, alone = rows_of(*runs), [rows_of(run)[0] for run in runs]
    for one, other in zip(together, alone, strict=True):
        for row, single in zip(one, other, strict=True):
            assert {k: v for k, v in row.items() if k != "seconds"} == pytest.approx(
                {k: v for k, v in single.items() if k != "seconds"}, nan_ok=True
            )


def test_a_block_is_looked_at_at_both_ends() -> None:
    """At an anchor network and linear model are the same; one step before it they are not."""
    run = changed(RUNS["mlp"], period=4)
    (rows,) = rows_of(run)
    apart = {row["step"]: abs(row["network_loss"] - row["linear_loss"]) for row in rows}
    assert {0, 3, 4, 7, 8, 11, 12} <= apart.keys()
    assert max(apart[step] for step in (0, 4, 8)) < 1e-12 < min(apart[step] for step in (3, 7, 12))
    assert [row["step"] for row in rows if "bound" in row] == [0, 4, 8]
    assert [row["step"] for row in rows if "kernel_moved" in row] == [4, 8, 12]


def test_the_kernel_moves_from_anchor_to_anchor() -> None:
    """Against kernels of networks that a plain loop ends at."""
    run = changed(RUNS["mlp"], period=4)
    (rows,) = rows_of(run)
    data = run.points(None)
    kernels = []
    for step in (0, 4, 8, 12):
        net = run.network(tuple(data.train.x.shape[1:]))
        for name, value in (Loop(changed(run, steps=step)).w if step else {}).items():
            net.get_parameter(name).data.copy_(value)
        kernels.append(measure.ntk(net, data.probe.x[: run.n_probe], reduce="trace"))
    moved = {row["step"]: row["kernel_moved"] for row in rows if "kernel_moved" in row}
    for place, step in enumerate((4, 8, 12)):
        expected = (kernels[place + 1] - kernels[place]).norm() / kernels[place].norm()
        assert moved[step] == pytest.approx(float(expected), rel=1e-9)


def test_the_bound_is_that_of_the_linear_block() -> None:
    """2 (1 + mu) over the largest eigenvalue of K / n, for the squared loss on all points."""
    run = changed(RUNS["mlp"], period=4)
    (rows,) = rows_of(run)
    x = run.points(None).train.x
    kernel = measure.ntk(run.network(tuple(x.shape[1:])), x)
    top = float(torch.linalg.eigvalsh(kernel.permute(0, 2, 1, 3).reshape(10 * len(x), -1))[-1]) / len(x)
    assert rows[0]["bound"] == pytest.approx(2 * 1.5 / top, rel=1e-3)


def test_the_points_of_a_parity() -> None:
    run = ParityBlocks(inputs=7, order=3, n=40, n_test=30, seed=2)
    data = run.points(None)
    for part in (data.train, data.test):
        assert set(part.x.unique().tolist()) == {-1.0, 1.0}
        assert torch.equal(part.y, part.x[:, 0] * part.x[:, 1] * part.x[:, 2])
    assert len(data.train) == 40 and len(data.test) == 30
    assert not torch.equal(run.model_copy(update={"seed": 3}).points(None).train.x, data.train.x)


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam", "adamw", "linear"])
def test_the_identities_hold(kind: str) -> None:
    ((row,),) = rows_of(IdentityRun(kind=kind, steps=12, seed=1))  # pyright: ignore[reportArgumentType]
    assert row["apart"] <= 1e-10


def test_an_identity_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """An anchor that stays where it was leads elsewhere."""
    monkeypatch.setattr(control.Linearized, "relinearize", lambda self: None)
    ((row,),) = rows_of(IdentityRun(kind="adam", steps=12, seed=1))
    assert row["apart"] > 1e-6


def test_a_block_beside_a_dense_gauss_newton_step() -> None:
    run = DampingRun(n=9, width=6, lr=0.1, steps=20, seed=1)
    (rows,) = rows_of(run)
    data = run.points(None)
    net = run.network(tuple(data.train.x.shape[1:]))
    names = dict(net.named_parameters())
    x, y = data.train.x, data.train.y

    def outputs(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(net, parameters, (x,)).flatten()

    each = torch.func.jacrev(outputs)({name: p.detach() for name, p in names.items()})
    j = torch.cat([each[name].flatten(1) for name in names], 1)
    residual = net(x).detach().flatten() - nn.functional.one_hot(y, 10).flatten()
    way = torch.zeros(j.shape[1], dtype=torch.float64)
    found = {row["step"]: row for row in rows}
    for step in range(1, run.steps + 1):
        way = way - run.lr * j.T @ (residual + j @ way) / len(x)
        if step not in found:
            continue
        damped = j.T @ j + len(x) / (run.lr * step) * torch.eye(j.shape[1], dtype=torch.float64)
        newton = -torch.linalg.solve(damped, j.T @ residual)
        cosine = float(way @ newton / way.norm() / newton.norm())
        assert found[step]["newton_cosine"] == pytest.approx(cosine, rel=1e-7)
        assert found[step]["newton_length"] == pytest.approx(float(way.norm() / newton.norm()), rel=1e-7)
        assert found[step]["closed_apart"] < 1e-10
    values = torch.linalg.eigvalsh(j @ j.T / len(x)).flip(0)
    assert rows[-1]["eigenvalues"] == pytest.approx(values.clamp(min=0).tolist(), abs=1e-10)


def test_runs_leave_their_networks_alone() -> None:
    """A run twice, with another between, gives the same rows."""
    run = changed(RUNS["mlp"], period=4)
    first = copy.deepcopy(rows_of(run))
    rows_of(changed(run, period=1, seed=5))
    for one, other in zip(first[0], rows_of(run)[0], strict=True):
        assert {k: v for k, v in one.items() if k != "seconds"} == {
            k: v for k, v in other.items() if k != "seconds"
        }
