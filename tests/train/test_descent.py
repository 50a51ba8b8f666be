"""Stochastic gradient descent: that of torch.optim.SGD, for many members, with an exact way back."""

from __future__ import annotations

import io
import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regimes import control, models, train
from regimes.core.error import UserError
from regimes.core.loss import cross_entropy, soft_hinge, squared
from regimes.core.state import State
from tests.train.plain import AWKWARD, task

ALPHAS = [0.3, 1.0, 20.0]


def batches(samples: int, size: int, seed: int, epoch: int) -> list[Tensor]:
    """The batches of one epoch, as documented: a permutation from the pair (seed, epoch)."""
    mixed = np.random.SeedSequence((seed, epoch)).generate_state(1)[0]
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(int(mixed)))
    return list(order.split(size))


def plain_descent(
    module: control.Scaled,
    x: Tensor,
    y: Tensor,
    lr: Callable[[int], float],
    momentum: float,
    order: Sequence[Tensor],
) -> tuple[list[float], list[Tensor]]:
    """Losses of the batches and the flat parameters before each step and at the end, by torch.optim.SGD."""
    rates = control.rates(module.network)
    groups = [
        {"params": [p], "rate": rates[n]} for n, p in module.network.named_parameters() if p.requires_grad
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=momentum)
    losses, path = [], []
    for step, index in enumerate(order):
        for group in optimizer.param_groups:
            group["lr"] = lr(step) * group["rate"]
        value = soft_hinge.per_sample(module(x[index]).reshape(len(index), 1), y[index]).mean()
        losses.append(value.item())
        path.append(flat(module))
        optimizer.zero_grad()
        module.loss(value).backward()
        optimizer.step()
    return losses, [*path, flat(module)]


def flat(module: control.Scaled) -> Tensor:
    return torch.cat([p.detach().reshape(-1).clone() for p in module.parameters() if p.requires_grad])


def joined(state: State) -> Tensor:
    return torch.cat([p.reshape(-1) for p in state.parameters.values()])


def of_member(states: Sequence[State], member: int) -> list[State]:
    return [s for s in states if s.member == member]


def same(a: State, b: State) -> bool:
    """Bit for bit."""
    trees = [(a.parameters, b.parameters), (a.update or {}, b.update or {})]
    tensors = all(len(s) == len(t) and all(torch.equal(s[n], t[n]) for n in s) for s, t in trees)
    seen = a.outputs is b.outputs is None or torch.equal(*map(torch.nan_to_num, (a.outputs, b.outputs)))  # pyright: ignore[reportArgumentType]
    loss = a.loss == b.loss or (math.isnan(a.loss) and math.isnan(b.loss))
    return tensors and seen and loss and (a.step, a.time, a.status) == (b.step, b.time, b.status)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("size", [None, 7])
@pytest.mark.parametrize("law", ["ntk", "mup"])
def test_is_sgd_of_torch(law: str, size: int | None, momentum: float) -> None:
    """Losses, parameters and batches, with a schedule and a last batch that is smaller."""
    x, y = task(24, 5)

    def members() -> list[control.Scaled]:
        return [
            control.scale(models.mlp(5, 8, 2, law=control.law(law), bias=True, seed=s), a)
            for s, a in enumerate(ALPHAS)
        ]

    def lr(step: int) -> float:
        return 0.1 / (1 + step)

    run = train.descent(members(), x, y, lr=lr, momentum=momentum, batch_size=size, epochs=3, seed=5)
    states = list(run)
    order = [b for e in range(3) for b in (batches(24, size, 5, e) if size else [torch.arange(24)])]
    for k, module in enumerate(members()):
        mine = of_member(states, k)
        losses, path = plain_descent(module, x, y, lr, momentum, order)
        assert [s.step for s in mine] == list(range(len(order) + 1))
        assert [s.loss for s in mine[:-1]] == pytest.approx(losses, rel=1e-11)
        assert mine[-1].time == pytest.approx(sum(map(lr, range(len(order)))))
        for state, w in zip(mine, path, strict=True):
            torch.testing.assert_close(joined(state), w, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", AWKWARD)
def test_is_sgd_of_torch_on_any_module(name: str) -> None:
    x, y = task(24, 5)
    members = [control.scale(AWKWARD[name](s), a) for s, a in enumerate(ALPHAS)]
    states = list(train.descent(members, x, y, lr=0.1, momentum=0.5, batch_size=10, steps=5))
    order = [b for e in range(2) for b in batches(24, 10, 0, e)][:5]
    for k, alpha in enumerate(ALPHAS):
        _, path = plain_descent(control.scale(AWKWARD[name](k), alpha), x, y, lambda _: 0.1, 0.5, order)
        for state, w in zip(of_member(states, k), path, strict=True):
            torch.testing.assert_close(joined(state), w, rtol=1e-11, atol=1e-12)


def test_a_state_is_given_before_its_step() -> None:
    """w + update is the next w, to the bit; the last state has no update, and the loss of the whole set."""
    x, y = task(24, 5)
    module = control.scale(models.mlp(5, 8, 2), 2.0)
    states = list(train.descent(module, x, y, lr=0.3, momentum=0.9, batch_size=5, steps=13))
    *before, last = states
    for now, following in itertools.pairwise(states):
        assert now.update is not None and now.outputs is None
        assert all(
            torch.equal(now.parameters[n] + now.update[n], following.parameters[n]) for n in now.update
        )
    assert last.update is None and last.status == "finished" and last.step == 13
    assert all(s.status == "running" for s in before)
    assert last.outputs is not None
    torch.testing.assert_close(last.outputs, last(x), rtol=1e-12, atol=1e-12)
    assert last.loss == pytest.approx(soft_hinge.per_sample(last(x), y).mean().item(), rel=1e-12)


def test_a_full_batch_shows_its_outputs() -> None:
    x, y = task(24, 5)
    for size in (None, 24, 100):
        states = list(train.descent(models.mlp(5, 8, 1), x, y, lr=0.1, batch_size=size, epochs=3))
        for state in states:
            assert state.outputs is not None
            torch.testing.assert_close(state.outputs, state(x), rtol=1e-12, atol=1e-12)


def test_every_sample_once_an_epoch_in_another_order() -> None:
    epochs = [torch.cat(batches(24, 7, 0, e)) for e in range(3)]
    assert all(torch.equal(e.sort().values, torch.arange(24)) for e in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    x, y = task(24, 5)
    losses = [
        [s.loss for s in train.descent(models.mlp(5, 8, 1), x, y, lr=0.1, batch_size=7, epochs=2, seed=seed)]
        for seed in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_the_margin_is_that_of_the_whole_set_at_the_end_of_an_epoch() -> None:
    """Members end when all margins are met and not before; one that never meets them is stopped."""
    x, y = task(30, 5)
    members = [control.scale(models.mlp(5, 32, 1, seed=s), a) for s, a in enumerate((0.5, 4.0))]
    long = {"lr": 0.2, "batch_size": 10, "loss": soft_hinge, "epochs": 400}
    states = list(train.descent(members, x, y, margin=True, **long))
    for k in range(2):
        *before, last = of_member(states, k)
        assert last.status == "finished" and last.step % 3 == 0 and 0 < last.step < 1200
        assert bool((last(x)[:, 0] * y >= 1).all())
        ends = [s for s in before if s.step % 3 == 0]
        assert not any(bool((s(x)[:, 0] * y >= 1).all()) for s in ends)
    assert of_member(states, 0)[-1].step != of_member(states, 1)[-1].step
    short = list(train.descent(members, x, y, lr=0.2, batch_size=10, epochs=1, margin=True))
    assert [s.status for s in short if s.step == 3] == ["stopped", "stopped"]
    plain = list(train.descent(members, x, y, **long))
    assert [s.step for s in plain if s.status == "finished"] == [1200, 1200]


def test_a_batch_that_fits_is_not_the_end() -> None:
    """One sample of the two fits from the start; the run goes on for the other."""
    x = torch.eye(2, dtype=torch.float64)
    net = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    net.weight.data = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    y = torch.ones(2, dtype=torch.float64)
    states = list(train.descent(net, x, y, lr=0.5, batch_size=1, epochs=50, margin=True))
    assert states[-1].status == "finished" and states[-1].step >= 4
    net.weight.data = torch.tensor([[2.0, 2.0]], dtype=torch.float64)
    assert [(s.step, s.status) for s in train.descent(net, x, y, lr=0.5, epochs=5, margin=True)] == [
        (0, "finished")
    ]


def test_a_member_that_diverges_leaves_the_others_alone() -> None:
    x, y = task(20, 5)

    def members(order: Sequence[int]) -> Sequence[nn.Module]:
        made = [models.mlp(5, 16, 2, law=control.STANDARD, seed=s, activation="relu") for s in order]
        for net, s in zip(made, order, strict=True):
            if s == 1:
                next(net.parameters()).data *= 1e30
            if s == 2:
                next(net.parameters()).data[0, 0] = math.nan
        return made

    settings: dict[str, Any] = {"lr": 0.01, "batch_size": 8, "epochs": 6, "loss": squared}
    states = list(train.descent(members([0, 1, 2, 3]), x, y, **settings))
    diverged = of_member(states, 1)
    assert diverged[-1].status == "diverged" and 0 < diverged[-1].step < 18
    assert all(bool(torch.isfinite(joined(s)).all()) for s in diverged)
    assert [(s.step, s.status) for s in of_member(states, 2)] == [(0, "diverged")]
    for k in (0, 3):
        alone = list(train.descent(members([k]), x, y, **settings))
        assert alone[-1].status == "finished"
        assert all(map(same, alone, of_member(states, k))) and len(alone) == 19


COMPANY = [("mlp", w, n, d) for w in (7, 16, 33, 64) for n in (37, 100) for d in (1, 2, 3)]
COMPANY += [("cnn", w, n, 4) for w in (3, 8) for n in (5, 16)]


@pytest.mark.parametrize(("kind", "width", "n", "depth"), COMPANY)
def test_a_member_does_not_depend_on_its_company(kind: str, width: int, n: int, depth: int) -> None:
    """Alone, in company, in another order: the same states bit for bit."""
    torch.set_num_threads(1)
    x, y = task(n, 5 if kind == "mlp" else 196)
    x = x if kind == "mlp" else x.view(n, 1, 14, 14)

    def run(order: Sequence[int]) -> dict[int, list[State]]:
        nets = [
            models.mlp(5, width, depth, seed=s) if kind == "mlp" else models.cnn(1, width, kernel=3, seed=s)
            for s in order
        ]
        members = [control.scale(net, ALPHAS[s]) for net, s in zip(nets, order, strict=True)]
        states = list(train.descent(members, x, y, lr=0.1, momentum=0.9, batch_size=n // 2, steps=4))
        return {s: of_member(states, row) for row, s in enumerate(order)}

    together, reversed_ = run([0, 1, 2]), run([2, 1, 0])
    for seed in range(3):
        alone = run([seed])[seed]
        for other in (together[seed], reversed_[seed]):
            assert len(alone) == len(other) and all(map(same, alone, other))


@pytest.mark.parametrize(("momentum", "margin"), [(0.0, True), (0.9, False)])
def test_goes_on_exactly(momentum: float, margin: bool) -> None:
    """k states, save, load, the rest: the same sequence as without the break, wherever it falls."""
    x, y = task(20, 5)

    def engine() -> train.Descent:
        members = [control.scale(models.mlp(5, 16, 2, seed=s), a) for s, a in enumerate(ALPHAS)]
        return train.descent(
            members,
            x,
            y,
            lr=lambda k: 0.1 / (1 + k),
            momentum=momentum,
            batch_size=6,
            epochs=5,
            margin=margin,
        )

    whole = list(engine())
    for k in [0, len(whole) - 1, *random.Random(0).sample(range(len(whole)), 8)]:
        first, second = engine(), engine()
        head = list(itertools.islice(first, k))
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        second.load_state_dict(torch.load(file, weights_only=True))
        states = [*head, *second]
        assert [s.member for s in states] == [s.member for s in whole]
        assert all(map(same, states, whole))


def test_goes_on_within_an_epoch() -> None:
    """Saved after some of the batches of an epoch: the batches that are left come in the order they had."""
    x, y = task(20, 5)

    def engine() -> train.Descent:
        members = [models.mlp(5, 8, 1, seed=s) for s in range(2)]
        return train.descent(members, x, y, lr=0.1, momentum=0.9, batch_size=6, epochs=3, seed=4)

    whole = list(engine())
    middle = next(k for k, state in enumerate(whole, 1) if state.step == 6)  # of 4 batches to an epoch
    first, second = engine(), engine()
    head = list(itertools.islice(first, middle))
    second.load_state_dict(first.state_dict())
    states = [*head, *second]
    assert [(s.member, s.step) for s in states] == [(s.member, s.step) for s in whole]
    assert all(map(same, states, whole))


def test_classes() -> None:
    """Cross-entropy over several outputs learns, and is that of torch."""
    x, _ = task(60, 5)
    y = x[:, :3].argmax(1)
    states = list(
        train.descent(
            models.mlp(5, 32, 1, outputs=3), x, y, lr=2.0, loss=cross_entropy, batch_size=20, epochs=40
        )
    )
    assert states[-1].loss < 0.5 < states[0].loss
    assert states[-1].loss == pytest.approx(nn.functional.cross_entropy(states[-1](x), y).item())


def test_time_out_is_a_stop() -> None:
    x, y = task(20, 5)
    states = list(train.descent(models.mlp(5, 8, 1), x, y, lr=0.1, steps=10**9, max_seconds=0.05))
    assert states[-1].status == "stopped" and states[-1].outputs is not None


def test_no_steps_is_one_state() -> None:
    x, y = task(20, 5)
    for steps, epochs in ((0, None), (None, 0)):
        states = list(train.descent(models.mlp(5, 8, 1), x, y, lr=0.1, steps=steps, epochs=epochs))
        assert [(s.step, s.status) for s in states] == [(0, "finished")]


def test_the_dtype_is_that_of_the_module() -> None:
    x, y = task(20, 5)
    single = models.mlp(5, 8, 1, dtype=torch.float32)
    state = next(iter(train.descent(single, x, y, lr=0.1, steps=1)))
    assert all(p.dtype == torch.float32 for p in state.parameters.values())
    state = next(iter(train.descent(control.scale(single, 1e4), x, y, lr=0.1, steps=1)))
    assert all(p.dtype == torch.float64 for p in state.parameters.values())


def test_mistakes_name_the_argument() -> None:
    x, y = task(20, 5)
    cases: list[tuple[str, dict[str, Any]]] = [
        ("`epochs`, `steps`: got None and None", {"steps": None}),
        ("`epochs`, `steps`: got 1 and 5", {"epochs": 1}),
        ("`steps`: got -1", {"steps": -1}),
        ("`steps`: got True", {"steps": True}),
        ("`batch_size`: got 0", {"batch_size": 0}),
        ("`seed`: got -1", {"seed": -1}),
        ("`momentum`: got 1.0", {"momentum": 1.0}),
        ("`momentum`: got nan", {"momentum": math.nan}),
        ("`lr`: got -0.1", {"lr": -0.1}),
        ("`lr`: got nan", {"lr": math.nan}),
        ("`lr`: got True", {"lr": True}),
        ("`targets`: got shape", {"targets": y[:, None]}),
        ("`targets`: got values from 0 to 1, expected -1 and .1 for SoftHinge", {"targets": (y + 1) / 2}),
    ]
    for match, change in cases:
        arguments = {"inputs": x, "targets": y, "lr": 0.1, "steps": 5, **change}
        with pytest.raises(UserError, match=match):
            train.descent(models.mlp(5, 8, 1), **arguments)
    with pytest.raises(UserError, match="`lr`: got inf"):
        list(train.descent(models.mlp(5, 8, 1), x, y, lr=lambda k: math.inf, steps=5))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_is_the_cpu() -> None:
    x, y = task(20, 5)
    ends = []
    for device in ("cpu", "cuda"):
        members = [control.scale(models.mlp(5, 16, 2, seed=s), 1.0).to(device) for s in range(3)]
        ends.append(list(train.descent(members, x, y, lr=0.1, momentum=0.9, batch_size=6, epochs=5))[-3:])
    for a, b in zip(*ends, strict=True):
        assert a.outputs is not None and b.outputs is not None and a.member == b.member
        torch.testing.assert_close(a.outputs, b.outputs.cpu(), rtol=1e-8, atol=1e-8)
