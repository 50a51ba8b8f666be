"""Blocks taken as a whole, in four ways, against ``train.descent`` with an anchor; and how the way is chosen."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from regimes import control, models, train
from regimes.core.error import UserError
from regimes.core.loss import Loss, cross_entropy, soft_hinge, squared
from regimes.core.state import State
from regimes.train.block import BlockWay

F64 = torch.float64
WAYS: tuple[BlockWay, ...] = get_args(BlockWay)
IN_FUNCTION_SPACE: tuple[BlockWay, ...] = ("function", "closed")


class Tied(nn.Module):
    """One weight in two places, and a frozen one."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.a, self.b = nn.Linear(4, 4, dtype=F64), nn.Linear(4, 2, dtype=F64)
        self.frozen = nn.Parameter(torch.rand(4, dtype=F64), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(functional.linear((self.a(x) * self.frozen).tanh(), self.a.weight).tanh())


def conv(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    parts = (
        nn.Unflatten(1, (1, 4, 4)),
        nn.Conv2d(1, 3, 3, stride=2),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(3, 3),
    )
    return nn.Sequential(*parts).double()


def flat(seed: int) -> nn.Module:
    """Outputs (n,)."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1), nn.Flatten(0)).double()


NETWORKS: dict[str, tuple[Any, int, int, int]] = {  # the network, its inputs, outputs, and samples
    "mlp": (lambda s: models.mlp(4, 6, 2, 3, seed=s), 4, 3, 7),
    "as many samples as outputs": (lambda s: models.mlp(4, 6, 2, 3, seed=s), 4, 3, 3),
    "mup": (lambda s: models.mlp(4, 6, 2, seed=s, law=control.MUP), 4, 1, 5),
    "conv": (conv, 16, 3, 6),
    "tied and frozen": (Tied, 4, 2, 6),
    "flat": (flat, 4, 1, 4),
    "more samples than parameters": (lambda s: models.mlp(1, 2, 1, seed=s), 1, 1, 12),
}


def task(inputs: int, outputs: int, samples: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(samples)
    x = torch.randn(samples, inputs, generator=generator, dtype=F64)
    return x, torch.arange(samples) % outputs if outputs > 1 else x[:, 0].sign()


def agree(blocks: list[State], steps: list[State], tolerance: float = 1e-9) -> None:
    """Each state of a run in blocks is one of the other run."""
    known = {(s.member, s.step): s for s in steps}
    for mine in blocks:
        theirs = known[mine.member, mine.step]
        assert (mine.status, mine.updates) == (theirs.status, theirs.updates)
        assert mine.time == pytest.approx(theirs.time) and mine.loss == pytest.approx(theirs.loss, rel=1e-8)
        assert mine.outputs is not None and theirs.outputs is not None
        torch.testing.assert_close(mine.outputs, theirs.outputs, rtol=tolerance, atol=tolerance)
        for name, value in mine.parameters.items():
            torch.testing.assert_close(value, theirs.parameters[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NETWORKS)
def test_goes_where_descent_with_an_anchor_goes(name: str) -> None:
    """Members of several scales, in each way; the last block is shorter."""
    compare(name, [(0.8, 4)], 6)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_goes_where_descent_with_an_anchor_goes_whatever_the_anchor(name: str) -> None:
    """With momentum and without; K = 1, one that divides the run, and one that does not and resets the momentum."""
    compare(name, itertools.product((0.0, 0.8), (1, 4, 7)), 16)


def compare(name: str, cases: Iterable[tuple[float, int]], steps: int) -> None:
    make, inputs, outputs, samples = NETWORKS[name]
    x, y = task(inputs, outputs, samples)
    for momentum, every in cases:
        modules = [control.scale(make(0), 2.0), control.scale(make(1), 0.5, center=False)]
        common: dict[str, Any] = {
            "lr": 0.02, "momentum": momentum, "anchor": control.Every(every, reset=every == 7), "steps": steps,
            "loss": squared,
        }  # fmt: skip
        expected = [*train.descent(modules, x, y, **common)]
        for by in WAYS:
            agree([*train.blocks(modules, x, y, by=by, **common)], expected)


@pytest.mark.parametrize("loss", [cross_entropy, soft_hinge], ids=["cross-entropy", "soft-hinge"])
def test_other_losses(loss: Loss) -> None:
    outputs = 3 if loss is cross_entropy else 1
    x, y = task(4, outputs, 6)
    modules = [models.mlp(4, 6, 2, outputs, seed=s) for s in (0, 1)]
    common: dict[str, Any] = {"lr": 0.1, "momentum": 0.5, "anchor": control.AtSteps([3, 9]), "steps": 12}
    expected = [*train.descent(modules, x, y, loss=loss, **common)]
    for by in ("module", "held", "function", None):
        agree([*train.blocks(modules, x, y, by=by, loss=loss, **common)], expected)
    with pytest.raises(UserError, match="`by`: got 'closed' for"):
        train.blocks(modules, x, y, by="closed", loss=loss, **common)


def test_members_with_sets_of_their_own() -> None:
    x, y = task(4, 1, 5)
    xs, ys = [x, x.flip(0) * 2], [y, -y]
    modules = [models.mlp(4, 6, 2, seed=s) for s in (0, 1)]
    common: dict[str, Any] = {"lr": 0.1, "momentum": 0.5, "anchor": control.Every(5), "steps": 10}
    expected = [*train.descent(modules, xs, ys, loss=squared, **common)]
    for by in WAYS:
        agree([*train.blocks(modules, xs, ys, by=by, **common)], expected)


@pytest.mark.parametrize("by", IN_FUNCTION_SPACE)
def test_a_block_of_a_thousand_steps(by: BlockWay) -> None:
    x, y = task(4, 1, 6)
    common: dict[str, Any] = {"lr": 0.3, "momentum": 0.9, "anchor": control.Every(1000), "steps": 1000}
    held, mine = ([*train.blocks(models.mlp(4, 8, 1), x, y, by=way, **common)] for way in ("held", by))
    agree(mine, held, 1e-8)


@pytest.mark.parametrize("by", WAYS)
def test_going_on_is_exact(by: BlockWay) -> None:
    """At each anchor, bit for bit, through a file."""
    x, y = task(4, 3, 6)

    def begin() -> train.BlockDescent:
        modules = [models.mlp(4, 6, 2, 3, seed=s) for s in (0, 1)]
        return train.blocks(modules, x, y, lr=0.1, momentum=0.9, anchor=control.Every(4), steps=10, by=by)

    whole = [*begin()]
    for taken in range(len(whole)):
        first = begin()
        head = list(itertools.islice(first, taken))
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        then = begin()
        then.load_state_dict(torch.load(file))
        tail = [*then]
        assert len(head) + len(tail) == len(whole)
        for mine, theirs in zip([*head, *tail], whole, strict=True):
            assert (mine.step, mine.member, mine.status, mine.loss) == (
                theirs.step, theirs.member, theirs.status, theirs.loss,
            )  # fmt: skip
            assert all(torch.equal(value, theirs.parameters[n]) for n, value in mine.parameters.items())


def test_another_rate_momentum_or_way_does_not_go_on() -> None:
    x, y = task(4, 1, 6)
    common: dict[str, Any] = {"anchor": control.Every(4), "steps": 10}
    run = train.blocks(models.mlp(4, 6, 1), x, y, lr=0.1, **common)
    next(iter(run))
    changes: list[dict[str, Any]] = [
        {"lr": 0.2},
        {"momentum": 0.5},
        {"by": "held"},
        {"anchor": control.Every(3)},
    ]
    for change in changes:
        given: dict[str, Any] = {"lr": 0.1} | common | change
        other = train.blocks(models.mlp(4, 6, 1), x, y, **given)
        with pytest.raises(UserError):
            other.load_state_dict(run.state_dict())


def test_the_way_is_that_of_the_least_work_that_fits_the_memory() -> None:
    """Few steps with the module, more with what is held, many in function space, very many in closed form."""
    x, y = task(40, 1, 200)
    net = models.mlp(40, 50, 2)
    common: dict[str, Any] = {"lr": 0.01, "anchor": control.Every(1), "steps": 1}
    run = train.blocks(net, x, y, **common)
    found = [run.way(10**k) for k in range(7)]
    assert found[0] == "module" and found[-1] == "closed"
    assert [run.way(10**k) for k in range(7)] == found
    assert train.blocks(net, x, y, loss=soft_hinge, **common).way(10**6) == "function"
    assert train.blocks(net, x, y, memory=8 * 4 * 200**2 - 1, **common).way(10**6) == "held"
    assert train.blocks(net, x, y, memory=1, **common).way(10**6) == "module"


def test_where_nothing_can_be_kept_or_there_is_no_kernel() -> None:
    """An operation without forward mode; rates of their own within a layer."""

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return 3 * g * ctx.saved_tensors[0] ** 2

    class Cubic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(4, 3, dtype=F64), nn.Linear(3, 1, dtype=F64)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(Cube.apply(self.a(x)))

    x, y = task(4, 1, 6)
    common: dict[str, Any] = {"lr": 0.05, "momentum": 0.5, "anchor": control.Every(4), "steps": 9}
    expected = [*train.descent(Cubic(), x, y, loss=squared, **common)]
    for by in (*WAYS, None):
        agree([*train.blocks(Cubic(), x, y, by=by, **common)], expected)


def test_a_rate_beyond_the_bound() -> None:
    """In closed form it is refused with both numbers, unless the block is one step; the others diverge."""
    x, y = task(4, 1, 6)
    common: dict[str, Any] = {"lr": 80.0, "steps": 4000}
    with pytest.raises(UserError, match=r"`lr`: got 80, above [\d.]+ = 2 \(1 \+ momentum\)"):
        list(train.blocks(models.mlp(4, 6, 1), x, y, anchor=control.Every(2000), by="closed", **common))
    last = [*train.blocks(models.mlp(4, 6, 1), x, y, anchor=control.Every(2000), by="function", **common)][-1]
    assert last.status == "diverged"


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"lr": 0.0}, "`lr`"),
        ({"momentum": 1.0}, "`momentum`"),
        ({"steps": -1}, "`steps`"),
        ({"memory": 0}, "`memory`"),
        ({"by": "magic"}, "`by`"),
        ({"anchor": control.Adaptive(gap=0.1)}, "`anchor`"),
    ],
)
def test_mistakes(change: dict[str, Any], names: str) -> None:
    x, y = task(4, 1, 6)
    with pytest.raises(UserError, match=names):
        train.blocks(
            models.mlp(4, 6, 1), x, y, **({"lr": 0.1, "anchor": control.Every(2), "steps": 4} | change)
        )
