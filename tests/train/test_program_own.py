"""Members with training data of their own: each is trained as if it were alone with its data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regimes import control, data, models, train
from regimes.core.error import UserError
from regimes.core.loss import LOSSES, Loss, cross_entropy, squared
from regimes.core.state import State
from tests.train.alignment import RoundsByAlignment
from tests.train.plain import AWKWARD, task

pytestmark = pytest.mark.usefixtures("one_thread")
ALPHAS = [0.3, 1.0, 20.0, 2.0]


def make(kind: str, seed: int) -> nn.Module:
    if kind == "student":
        return models.two_layer(5, 6, seed=seed)
    if kind == "cnn":
        return models.cnn(1, 3, kernel=3, seed=seed)
    if kind in AWKWARD:
        return AWKWARD[kind](seed)
    return models.mlp(5, 7, 2, activation=kind, seed=seed)


def points(kind: str, n: int, seed: int) -> tuple[Tensor, Tensor]:
    x, y = task(n, 196 if kind == "cnn" else 5, seed)
    return (x.view(n, 1, 14, 14) if kind == "cnn" else x), y


ENGINES: dict[str, Callable[..., Any]] = {
    "flow": lambda *a, **k: train.flow(*a, max_steps=4, **k),
    "descent": lambda *a, lr=0.1, **k: train.descent(*a, lr=lr, momentum=0.5, batch_size=4, steps=5, **k),
    "whole": lambda *a, lr=0.1, **k: train.descent(*a, lr=lr, steps=5, **k),
    "runge-kutta": lambda *a, **k: train.runge_kutta(*a, dt=0.1, steps=3, **k),
}


def same(a: State, b: State) -> bool:
    """Bit for bit."""
    numbers = (a.step, a.time, a.status, a.loss) == (b.step, b.time, b.status, b.loss)
    trees = all(torch.equal(a.parameters[n], b.parameters[n]) for n in a.parameters)
    seen = a.outputs is b.outputs is None or torch.equal(a.outputs, b.outputs)  # pyright: ignore[reportArgumentType]
    return numbers and trees and seen


CASES = [("softplus", 5, engine) for engine in ENGINES]
CASES += [("softplus", 4, "flow"), ("student", 5, "whole"), ("student", 16, "descent")]
CASES += [("cnn", 5, "descent"), ("tied", 7, "descent")]
MORE = itertools.product(("softplus", "student", "relu", "cnn", "tied", "frozen"), (5, 4, 16), ENGINES)


@pytest.mark.parametrize(
    ("kind", "n", "engine"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)]
)
def test_is_training_alone(kind: str, n: int, engine: str) -> None:
    """In company, in another order, and alone with data that it shares with nobody: the same bits.

    As many members as samples, or as inputs; on a processor whose products round by alignment.
    """
    sets = [points(kind, n, seed) for seed in range(4)]

    def run(order: Sequence[int]) -> dict[int, list[State]]:
        members = [control.scale(make(kind, s), ALPHAS[s]) for s in order]
        states = list(ENGINES[engine](members, [sets[s][0] for s in order], [sets[s][1] for s in order]))
        return {s: [state for state in states if state.member == row] for row, s in enumerate(order)}

    with RoundsByAlignment():
        together = run([0, 1, 2, 3])
        for order in ([2, 0, 3], [1]):
            for seed, states in run(order).items():
                assert len(states) == len(together[seed]) > 1
                assert all(map(same, states, together[seed]))
        for seed in (0, 3):
            alone = list(ENGINES[engine](control.scale(make(kind, seed), ALPHAS[seed]), *sets[seed]))
            assert len(alone) == len(together[seed]) and all(map(same, alone, together[seed]))


@pytest.mark.parametrize("loss", ["squared", "soft-hinge", "cross-entropy"])
@pytest.mark.parametrize("engine", ENGINES)
def test_one_of_the_two_may_be_shared(engine: str, loss: str) -> None:
    """Inputs of all with targets of each, and the other way round."""
    x, y = task(6, 5)
    others = [x, x.flip(0), 2 * x]
    signs = [y, -y, y.flip(0)]
    members = [control.scale(make("tanh", s), ALPHAS[s]) for s in range(3)]
    for inputs, targets in ((x, signs), (others, y)):
        states = list(ENGINES[engine](members, inputs, targets, loss=LOSSES[loss]))
        for k in range(3):
            mine = (
                inputs if isinstance(inputs, Tensor) else inputs[k],
                targets if isinstance(targets, Tensor) else targets[k],
            )
            alone = list(ENGINES[engine](members[k], *mine, loss=LOSSES[loss]))
            assert all(map(same, alone, [s for s in states if s.member == k])) and len(alone) > 1


def test_classes_of_each() -> None:
    x, _ = task(9, 5)
    wanted = [x[:, k : k + 3].argmax(1) for k in range(3)]
    members = [models.mlp(5, 8, 1, outputs=3, seed=s) for s in range(3)]
    for loss in (cross_entropy, squared):
        settings: dict[str, Any] = {"lr": 0.1, "batch_size": 4, "steps": 6, "loss": loss}
        states = list(train.descent(members, [x, x, x], wanted, **settings))
        for k, module in enumerate(members):
            alone = list(train.descent(module, x, wanted[k], **settings))
            assert all(map(same, alone, [s for s in states if s.member == k]))


def test_margins_and_ends_are_those_of_each() -> None:
    """Members end at times of their own, and the rest go on with what is theirs."""
    sets = [points("softplus", 12, seed) for seed in range(3)]
    members = [control.scale(models.mlp(5, 32, 1, seed=s), a) for s, a in enumerate((0.5, 4.0, 1.0))]
    xs, ys = [x for x, _ in sets], [y for _, y in sets]
    run = train.descent(members, xs, ys, lr=0.2, batch_size=5, epochs=400, margin=True)
    for states in (list(run), list(train.flow(members, xs, ys))):
        ends = [s for s in states if s.status == "finished"]
        assert len(ends) == 3 and len({s.step for s in ends}) > 1
        for end in ends:
            assert end.outputs is not None
            assert bool((end.outputs[:, 0] * ys[end.member] >= 1).all())
            torch.testing.assert_close(end.outputs, end(xs[end.member]), rtol=1e-12, atol=1e-12)


def plain_student(x: Tensor, y: Tensor, net: nn.Module, lr: float, steps: int) -> Tensor:
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        (net(x)[:, 0] - y).square().mean().div(2).backward()
        optimizer.step()
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def test_students_of_teachers_of_their_own_with_steps_of_their_own() -> None:
    """Against torch.optim.SGD one after another: data, rate and scale of each member differ."""
    tasks = [data.teacher(7, units=2, train=13, test=3, seed=s).dataset.train for s in range(3)]
    rates = [0.05, 0.2, 0.1]

    def student(seed: int) -> nn.Module:
        return models.two_layer(7, 6, tau=0.5 + seed, symmetric=True, seed=seed)

    run = train.descent(
        [student(s) for s in range(3)],
        [t.x for t in tasks],
        [t.y for t in tasks],
        lr=rates,
        steps=40,
        loss=squared,
    )
    ends = [s for s in run if s.status == "finished"]
    for k, end in enumerate(ends):
        assert end.member == k and end.time == pytest.approx(40 * rates[k])
        wanted = plain_student(tasks[k].x, tasks[k].y, student(k), rates[k], 40)
        mine = torch.cat([p.reshape(-1) for p in end.parameters.values()])
        torch.testing.assert_close(mine, wanted, rtol=1e-11, atol=1e-12)


def test_schedules_of_each() -> None:
    """Rates that are numbers and functions, each as if it were alone; saved in the middle and gone on with."""
    x, y = task(9, 5)
    schedules = [0.1, lambda k: 0.2 / (1 + k), 0.0]

    def engine(lr: Sequence[Any] = schedules) -> train.Descent:
        members = [models.mlp(5, 8, 1, seed=s) for s in range(3)]
        return train.descent(members, x, y, lr=lr, momentum=0.9, batch_size=4, steps=6)

    whole = list(engine())
    for k, lr in enumerate(schedules):
        alone = list(
            train.descent(models.mlp(5, 8, 1, seed=k), x, y, lr=lr, momentum=0.9, batch_size=4, steps=6)
        )
        assert all(map(same, alone, [s for s in whole if s.member == k]))
    first, second = engine(), engine()
    head = [next(iter(first)) for _ in range(7)]
    second.load_state_dict(first.state_dict())
    assert all(map(same, [*head, *second], whole))
    with pytest.raises(UserError, match=r"`lr` of member 1: its first 3 rates sum to 0\.3.*, expected 0\.36"):
        engine([0.1, 0.1, 0.0]).load_state_dict(first.state_dict())
    numbers = engine([0.1, 0.2, 0.0]).state_dict()
    with pytest.raises(UserError, match=r"`lr` of member 1: got 0\.3, expected 0\.2"):
        engine([0.1, 0.3, 0.0]).load_state_dict(numbers)


def test_one_rate_for_all_is_that_rate_for_each() -> None:
    x, y = task(9, 5)
    members = [models.mlp(5, 8, 1, seed=s) for s in range(2)]
    shared, each = (train.descent(members, x, y, lr=lr, steps=4) for lr in (0.1, [0.1, 0.1]))
    each.load_state_dict(shared.state_dict())
    assert [s.loss for s in each] == [s.loss for s in shared]


def test_a_time_that_was_one_for_all_is_read() -> None:
    """As a version wrote it that knew no rates of each member."""
    x, y = task(9, 5)

    def engine() -> train.Descent:
        members = [models.mlp(5, 8, 1, seed=s) for s in range(2)]
        return train.descent(members, x, y, lr=0.1, steps=5)

    first, second = engine(), engine()
    for _ in range(4):
        next(iter(first))
    saved = first.state_dict()
    saved["front"]["time"] = float(saved["front"]["time"][0])
    second.load_state_dict(saved)
    assert [(s.step, s.time, s.loss) for s in second] == [(s.step, s.time, s.loss) for s in engine()][4:]


class OwnLoss(Loss):
    """|F - y|, by the interface alone."""

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[..., 0] - targets).abs()

    def fits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.per_sample(outputs, targets) < 0


def test_a_loss_of_ones_own() -> None:
    sets = [points("tanh", 5, seed) for seed in range(2)]
    members = [make("tanh", s) for s in range(2)]
    run = train.descent(members, [x for x, _ in sets], [y for _, y in sets], lr=0.1, steps=3, loss=OwnLoss())
    for k, end in enumerate(s for s in run if s.status == "finished"):
        assert end.loss == pytest.approx((end(sets[k][0])[:, 0] - sets[k][1]).abs().mean().item())


def test_mistakes_name_the_argument() -> None:
    x, y = task(8, 5)
    members = [models.mlp(5, 8, 1, seed=s) for s in range(2)]
    cases: list[tuple[str, dict[str, Any]]] = [
        ("`inputs`: got 3 tensors for 2 members", {"inputs": [x, x, x]}),
        ("`targets`: got 0 tensors for 2 members", {"targets": []}),
        (r"`inputs`: got torch.float64 \(7, 5\) for member 1", {"inputs": [x, x[1:]]}),
        ("`targets`: got torch.int64", {"targets": [y, y.long()]}),
        ("`inputs`, `targets`: got 8 and 7", {"targets": [y[1:], y[1:]]}),
        ("`inputs`: hold nan", {"inputs": [x, x / 0]}),
        ("`inputs`: the module does not take samples of shape .4,.", {"inputs": [x[:, 1:], x[:, 1:]]}),
        ("`targets`: got values from 0 to 1", {"targets": [y, (y + 1) / 2]}),
        ("`lr`: got 3 rates for 2 members", {"lr": [0.1, 0.1, 0.1]}),
        ("`lr`: got -1.0", {"lr": [0.1, -1.0]}),
    ]
    for match, change in cases:
        given: dict[str, Any] = {"inputs": x, "targets": y, "lr": 0.1, "steps": 2, **change}
        with pytest.raises(UserError, match=match):
            train.descent(members, **given)
