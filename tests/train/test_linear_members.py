"""Linearised members as one stack, against the linearised modules one by one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regimes import control, models, train
from regimes.core.error import UserError
from regimes.core.layer import ToImage
from regimes.core.loss import soft_hinge
from regimes.train import engine as engines
from regimes.train.program import Program
from tests.train.alignment import RoundsByAlignment
from tests.train.plain import AWKWARD, task

ALPHAS = [0.3, 1.0, 20.0]


def images(seed: int) -> nn.Module:
    """Of rows of pixels."""
    return nn.Sequential(ToImage(1, 14, 14), models.cnn(1, 3, kernel=3, seed=seed))


KINDS: dict[str, Callable[[int], nn.Module]] = {
    "softplus": lambda seed: models.mlp(5, 7, 2, seed=seed),
    "relu": lambda seed: models.mlp(5, 7, 2, activation="relu", bias=True, seed=seed),
    "tanh": lambda seed: models.mlp(5, 7, 1, activation="tanh", outputs=1, bias=True, seed=seed),
    "student": lambda seed: models.two_layer(5, 6, seed=seed),
    "cnn": lambda seed: models.cnn(1, 3, kernel=3, bias=True, seed=seed),
    "images": images,
    **AWKWARD,
}


def inputs(kind: str, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    x, y = task(n, 196 if kind in ("cnn", "images") else 5, seed)
    return (x.view(n, 1, 14, 14) if kind == "cnn" else x), y


def moved(program: Program, by: float) -> Tensor:
    """The rows of the start, moved."""
    rows = program.start()
    generator = torch.Generator().manual_seed(1)
    total = program.layout.total
    rows[:, :total] += by * torch.randn(len(rows), total, generator=generator, dtype=rows.dtype)
    return rows


def place(program: Program, row: Tensor, parameters: Mapping[str, Tensor]) -> None:
    """Give parameters the values of a row."""
    for name, value in program.layout.split(row[: program.layout.total]).items():
        parameters[name].data.copy_(value)


@pytest.mark.parametrize("own", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("kind", KINDS)
def test_is_the_linearised_modules_one_by_one(kind: str, own: bool) -> None:
    """F, loss and gradient, by all parameters and by some, around anchors that have moved for some members."""
    x, y = inputs(kind, 6)
    xs = torch.stack([x, 2 * x, x.flip(0)]) if own else x
    modules = [control.scale(KINDS[kind](s), a) for s, a in enumerate(ALPHAS)]
    program = Program(modules, soft_hinge, torch.float64, own=own)
    offsets, everyone = program.offsets(xs), torch.arange(3)
    program.linearize(program.start())
    linear = program.linear
    assert linear is not None
    linear.move(torch.tensor([0, 2]), moved(program, 0.1)[[0, 2]])
    w = moved(program, 0.3)
    count = len(program.layout.names)
    for moving in (None, tuple(place == count - 1 for place in range(count))):
        outputs, losses, gradient = program.gradient(w, everyone, xs, y, offsets, moving)
        torch.testing.assert_close(program.outputs(w, everyone, xs, offsets), outputs, rtol=1e-12, atol=1e-11)
        for k, module in enumerate(modules):
            alone = control.linearize(module.network)
            own_w = dict(alone.named_parameters())
            place(program, linear.anchors[k], own_w)
            alone.relinearize()
            place(program, w[k], own_w)
            mine = xs[k] if own else x
            assert module.origin is not None
            out = (ALPHAS[k] * (alone(mine) - module.origin(mine))).reshape(6, 1)
            value = soft_hinge.per_sample(out, y).mean()
            names = [n for n, on in zip(program.layout.names, moving or (True,) * count, strict=True) if on]
            leaves = [own_w[name] for name in names]
            found = torch.autograd.grad(value / ALPHAS[k] ** 2, leaves, materialize_grads=True)
            torch.testing.assert_close(outputs[k], out.detach(), rtol=1e-11, atol=1e-11)
            torch.testing.assert_close(losses[k], value.detach(), rtol=1e-11, atol=1e-12)
            slots = program.layout.split(gradient[k, : program.layout.total])
            for name, slot in slots.items():
                wanted = dict(zip(names, found, strict=True)).get(name, torch.zeros_like(slot))
                torch.testing.assert_close(slot, wanted, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("kind", ["softplus", "relu", "tanh", "student", "cnn", "tied"])
def test_a_member_keeps_its_bits_where_products_round_by_alignment(kind: str) -> None:
    torch.set_num_threads(1)
    x, y = inputs(kind, 7)
    found = []
    with RoundsByAlignment():
        for order in ([0, 1, 2], [1]):
            modules = [control.scale(KINDS[kind](s), ALPHAS[s]) for s in order]
            program = Program(modules, soft_hinge, torch.float64)
            program.linearize(program.start())
            rows = program.start() * 1.25
            results = program.gradient(rows, torch.arange(len(order)), x, y, program.offsets(x))
            found.append([each[order.index(1)] for each in results])
    assert all(map(torch.equal, *found))


def test_what_was_handed_out_keeps_its_anchor() -> None:
    x, _ = task(6, 5)
    program = Program([control.scale(KINDS["relu"](0), 2.0)], soft_hinge, torch.float64)
    program.linearize(program.start())
    assert program.linear is not None
    first = program.linear.modules[0]
    before = first(x).detach()
    program.linear.move(torch.arange(1), moved(program, 0.5))
    second = program.linear.modules[0]
    assert second is not first and program.linear.starts == [first]
    assert torch.equal(first(x), before) and not torch.equal(second(x), before)
    assert torch.equal(program.linear.anchors, moved(program, 0.5))


def test_what_cannot_be_linearised_is_refused() -> None:
    for network, match in (
        (control.linearize(models.mlp(5, 4, 1)), "`module`: is linearised already"),
        (nn.Sequential(nn.Dropout(), nn.Linear(5, 1)).double(), "is random in train mode"),
    ):
        program = Program([network], soft_hinge, torch.float64)
        with pytest.raises(UserError, match=match):
            program.linearize(program.start())


RUNS: dict[str, Callable[..., Any]] = {
    "descent": lambda *a, **k: train.descent(*a, lr=0.1, momentum=0.9, steps=20, **k),
    "flow": lambda *a, **k: train.flow(*a, max_steps=20, **k),
    "runge-kutta": lambda *a, **k: train.runge_kutta(*a, dt=0.1, steps=10, **k),
}


@pytest.mark.parametrize(
    ("engine", "own"),
    [
        ("descent", False),
        ("flow", True),
        *(pytest.param(e, o, marks=pytest.mark.slow) for e in RUNS for o in (False, True)),
    ],
)
def test_what_is_kept_in_a_block_changes_nothing(
    engine: str, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stacks and modules one by one, over anchors, and resumed; with and without the memory for it."""
    for kind in ("relu", "cnn", next(iter(AWKWARD))):
        x, y = inputs(kind, 6)
        modules = [control.scale(KINDS[kind](s), a) for s, a in enumerate(ALPHAS)]
        paths = []
        for memory in (0, 1 << 30):
            monkeypatch.setattr(engines, "_MEMORY", memory)
            given = ([x, 2 * x, x.flip(0)] if own else x, y)
            run = RUNS[engine](modules, *given, anchor=control.Every(9))
            path = list(itertools.islice(run, 40))
            assert bool(run.program.linear._tapes) == bool(memory)
            fresh = RUNS[engine](modules, *given, anchor=control.Every(9))
            fresh.load_state_dict(run.state_dict())
            paths.append([*path, *fresh])
        for mine, theirs in zip(*paths, strict=True):
            assert (mine.member, mine.step, mine.status) == (theirs.member, theirs.step, theirs.status)
            for name, value in mine.parameters.items():
                torch.testing.assert_close(value, theirs.parameters[name], rtol=1e-9, atol=1e-11)


def test_inputs_that_are_written_to_are_not_those_that_were_kept() -> None:
    x, y = inputs("relu", 6)
    program = Program([KINDS["relu"](0)], soft_hinge, torch.float64)
    program.linearize(program.start())
    linear, everyone, rows = program.linear, torch.arange(1), moved(program, 0.1)
    assert linear is not None
    linear.hold(x, own=False, memory=1 << 30)
    first = program.gradient(rows, everyone, x, y, None)
    x += 1
    then = program.gradient(rows, everyone, x, y, None)
    expected = program.gradient(rows, everyone, x.clone(), y, None)
    assert linear._tapes and not torch.equal(first[0], then[0])
    for mine, theirs in zip(then, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
