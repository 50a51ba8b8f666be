"""The bits of a member on a processor whose products round by alignment: company, order, storage and threads."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from regimes import control, models, train
from regimes.core.state import State
from tests.train.alignment import RoundsByAlignment, misaligned
from tests.train.plain import AWKWARD, task

pytestmark = pytest.mark.usefixtures("one_thread")
ALPHAS = [0.02, 1.0, 300.0, 5.0]


def same(a: State, b: State) -> bool:
    """Bit for bit."""
    numbers = (a.step, a.time, a.status, a.loss) == (b.step, b.time, b.status, b.loss)
    return numbers and all(torch.equal(a.parameters[n], b.parameters[n]) for n in a.parameters)


def make(kind: str, width: int, seed: int) -> nn.Module:
    if kind == "tied":
        return AWKWARD[kind](seed)
    if kind == "cnn":
        return models.cnn(1, width, kernel=3, seed=seed)
    sigma, _, bias = kind.partition("+")
    return models.mlp(5, width, 2, activation=sigma, bias=bool(bias), seed=seed)


def course(
    engine: str, kind: str, width: int, x: Tensor, y: Tensor, order: Sequence[int], steps: int = 4
) -> dict[int, list[State]]:
    """The states of each member, by its seed."""
    members = [control.scale(make(kind, width, seed), ALPHAS[seed]) for seed in order]
    if engine == "flow":
        states = list(train.flow(members, x, y, max_steps=steps))
    else:
        states = list(train.descent(members, x, y, lr=0.1, momentum=0.9, batch_size=len(x) // 2, steps=steps))
    return {seed: [s for s in states if s.member == row] for row, seed in enumerate(order)}


CASES = [
    *(("softplus", width, n) for width in (7, 33) for n in (37, 48)),
    ("softplus+bias", 7, 37),
    ("softplus+bias", 33, 37),
    ("tanh", 7, 37),
    ("relu+bias", 33, 37),
    ("cnn", 3, 9),
    ("tied", 0, 37),
]


def data(kind: str, n: int) -> tuple[Tensor, Tensor]:
    x, y = task(n, 196 if kind == "cnn" else 5)
    return (x.view(n, 1, 14, 14) if kind == "cnn" else x), y


@pytest.mark.parametrize("engine", ["flow", "descent"])
@pytest.mark.parametrize(("kind", "width", "n"), CASES)
def test_a_member_keeps_its_bits_where_products_round_by_alignment(
    kind: str, width: int, n: int, engine: str
) -> None:
    """Alone, in company of two sizes, in another order, from inputs that lie elsewhere."""
    x, y = data(kind, n)
    with RoundsByAlignment():
        together = course(engine, kind, width, x, y, [0, 1, 2, 3])
        for order, inputs in (([2, 0, 1], x), ([1], x), ([3, 2, 1, 0], misaligned(x, 3))):
            for seed, states in course(engine, kind, width, inputs, y, order).items():
                assert len(states) == len(together[seed]) > 2
                assert all(map(same, states, together[seed]))


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("kind", ["softplus", "tanh"])
def test_a_member_keeps_its_bits_on_several_threads(kind: str, count: int) -> None:
    """Large enough that a pass over the members is split among the threads, at odd places."""
    torch.set_num_threads(count)
    x, y = task(500, 5)
    together = course("flow", kind, 33, x, y, [0, 1, 2, 3], steps=3)
    for order in ([2, 0, 1], [1]):
        for seed, states in course("flow", kind, 33, x, y, order, steps=3).items():
            assert all(map(same, states, together[seed]))


def test_the_stand_in_sees_a_product_that_lies_elsewhere() -> None:
    a, b = torch.randn(9, 5, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    with RoundsByAlignment():
        there, here = misaligned(a, 1) @ b, misaligned(a, 0) @ b
    assert not torch.equal(there, here)
    torch.testing.assert_close(there, here, rtol=1e-11, atol=1e-11)
