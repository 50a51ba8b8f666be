"""A saved run goes on only where members, data and settings are those it was saved with."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regimes import control, models, train
from regimes.core.error import UserError
from regimes.core.loss import Loss, SoftHinge, cross_entropy
from tests.train.plain import task

Make = Callable[..., train.Flow | train.Descent]


def members(alpha: float = 2.0, seed: int = 0, activation: str = "relu", **more: Any) -> list[nn.Module]:
    return [
        control.scale(models.mlp(5, 8, 1, activation=activation, seed=seed + s, **more), a)
        for s, a in enumerate((1.0, alpha))
    ]


def flow(**named: Any) -> train.Flow:
    x, y = task(12, 5)
    given: dict[str, Any] = {"modules": members(), "inputs": x, "targets": y, "max_steps": 9} | named
    return train.flow(given.pop("modules"), given.pop("inputs"), given.pop("targets"), **given)


def descent(**named: Any) -> train.Descent:
    x, y = task(12, 5)
    given: dict[str, Any] = {"modules": members(), "inputs": x, "targets": y, "lr": 0.1, "steps": 9} | named
    given = {"momentum": 0.5, "batch_size": 5} | given
    return train.descent(given.pop("modules"), given.pop("inputs"), given.pop("targets"), **given)


def saved_after(engine: train.Flow | train.Descent, states: int) -> dict[str, Any]:
    """What torch.save and torch.load make of the state after so many states."""
    for _ in itertools.islice(engine, states):
        pass
    file = io.BytesIO()
    torch.save(engine.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def old(saved: dict[str, Any]) -> dict[str, Any]:
    """The same as a version wrote it that saved no settings."""
    return {name: value for name, value in saved.items() if name not in ("settings", "function")}


def other_data() -> Tensor:
    x = task(12, 5)[0].clone()
    x[3, 2] += 1e-9
    return x


OF_ALL: list[tuple[str, dict[str, Any]]] = [
    (r"`loss`: got SoftHinge\(beta=5\.0\), expected SoftHinge\(beta=20\.0\)", {"loss": SoftHinge(5.0)}),
    (r"`loss`: got CrossEntropy\(\), expected SoftHinge", {"loss": cross_entropy}),
    (r"`alpha` of member 1: got 3\.0, expected 2\.0", {"modules": members(alpha=3.0)}),
    (r"`modules`: member 0 differs from the saved one", {"modules": members(activation="tanh")}),
    (r"`modules`: member 0 differs from the saved one", {"modules": members(seed=7)}),
    (r"`rates`: '0\.weight': got 1\.[56]\d*, expected 1\.0", {"modules": members(law=control.MUP)}),
    (r"`modules`: '.*0\.bias': got \[8\], expected nothing", {"modules": members(bias=True)}),
    (r"`inputs`: got \(12, 5\) of checksum \w+, expected \(12, 5\) of", {"inputs": other_data()}),
    (r"`targets`: got \(12,\) of checksum \w+, expected \(12,\) of", {"targets": -task(12, 5)[1]}),
]
OF_FLOW: list[tuple[str, dict[str, Any]]] = [
    (r"`tau` of member 0: got 1\.0, expected 0\.0", {"tau": 1.0}),
    (r"`tau` of member 1: got 0\.1, expected 0\.0", {"tau": [0.0, 0.1]}),
    (r"`tolerance`: got .*gradient=1e-05.*expected .*0\.0001", {"tolerance": train.Tolerance(gradient=1e-5)}),
]
OF_DESCENT: list[tuple[str, dict[str, Any]]] = [
    (r"`momentum`: got 0\.9, expected 0\.5", {"momentum": 0.9}),
    (r"`batch_size`: got 12, expected 5", {"batch_size": None}),
    (r"`seed`: got 1, expected 0", {"seed": 1}),
    (r"`margin`: got True, expected False", {"margin": True}),
    (r"`lr`: got 0\.2, expected 0\.1", {"lr": 0.2}),
    (r"`lr`: its first 3 rates sum to 0\.6.*, expected 0\.3", {"lr": lambda _: 0.2}),
    (r"`dtype`: got torch\.float32, expected torch\.float64", {"dtype": torch.float32}),
]
CASES = [
    *((flow, *case) for case in OF_ALL + OF_FLOW),
    *((descent, *case) for case in OF_ALL + OF_DESCENT),
]


@pytest.mark.parametrize(("make", "message", "change"), CASES)
@pytest.mark.parametrize("states", [0, 6])
def test_another_setting_is_refused(make: Make, message: str, change: dict[str, Any], states: int) -> None:
    """Nothing of the engine has changed after the refusal: it runs as if nothing had been loaded."""
    if states == 0 and "first 3 rates" in message:
        return
    saved, engine = saved_after(make(), states), make(**change)
    with pytest.raises(UserError, match=message):
        engine.load_state_dict(saved)
    assert [s.step for s in engine] == [s.step for s in make(**change)]


@pytest.mark.parametrize(
    ("make", "message", "change"),
    [
        (flow, r"`tau` of member 0: got 1\.0, expected 0\.0", {"tau": 1.0}),
        (descent, r"`momentum`: got 0\.0, but the saved run has a velocity", {"momentum": 0.0}),
        (descent, r"`lr`: its first 3 rates sum to 0\.6.*, expected 0\.3", {"lr": 0.2}),
        (descent, r"`seed`, `batch_size`: got 1 and 5", {"seed": 1}),
        (descent, r"`seed`, `batch_size`: got 0 and 12", {"batch_size": None}),
        (descent, r"`dtype`: got torch\.float32, expected torch\.float64", {"dtype": torch.float32}),
    ],
)
def test_a_state_without_settings_loads_where_nothing_contradicts(
    make: Make, message: str, change: dict[str, Any]
) -> None:
    saved = old(saved_after(make(), 6))
    with pytest.raises(UserError, match=message):
        make(**change).load_state_dict(saved)
    again = make()
    again.load_state_dict(saved)
    assert [s.loss for s in again] == [s.loss for s in make()][6:]


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (flow, {"max_steps": 12, "max_seconds": 1e6}),
        (descent, {"steps": 12, "max_seconds": 1e6}),
        (descent, {"steps": None, "epochs": 4}),
        (descent, {"lr": lambda step: 0.1 if step < 3 else 0.05}),
    ],
)
def test_a_run_may_go_on_for_longer(make: Make, change: dict[str, Any]) -> None:
    saved, whole = saved_after(make(), 6), list(make(**change))
    again = make(**change)
    again.load_state_dict(saved)
    assert [(s.step, s.loss) for s in again] == [(s.step, s.loss) for s in whole][6:]


def test_what_is_no_state_is_refused() -> None:
    for junk in (None, {}, {"front": {}}, torch.zeros(2)):
        with pytest.raises(UserError, match="`saved`: got"):
            flow().load_state_dict(junk)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="the state of another engine"):
        flow().load_state_dict(saved_after(descent(), 2))


class Noisy(nn.Module):
    """A layer that draws on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = models.mlp(5, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + torch.rand_like(x[:, :1])


@pytest.mark.parametrize("last", [Noisy, partial(nn.Dropout, 0.5)])
def test_to_save_changes_nothing(last: Callable[[], nn.Module]) -> None:
    """What a module draws while the state is saved, it draws again."""
    part = last()
    net = part if isinstance(part, Noisy) else nn.Sequential(part, models.mlp(5, 4, 1)).double()
    engine = descent(modules=net, momentum=0.0)
    torch.manual_seed(3)
    saved = engine.state_dict()
    assert saved["function"] is None
    assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(3)))


def test_a_loss_of_ones_own_goes_by_its_name() -> None:
    class Mine(Loss):
        def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return (outputs[..., 0] - targets).abs()

        def fits(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return self.per_sample(outputs, targets) < 0

    saved = saved_after(flow(loss=Mine()), 2)
    flow(loss=Mine()).load_state_dict(saved)
    with pytest.raises(UserError, match=r"`loss`: got SoftHinge.*expected .*Mine"):
        flow().load_state_dict(saved)


@pytest.mark.parametrize("make", [flow, descent])
def test_a_start_that_is_zero_but_for_rounding_is_the_same_on_another_processor(make: Make) -> None:
    """Units in mirrored pairs cancel: what is left of f(w0, x) is rounding, and differs between processors."""

    def built(**more: Any) -> list[nn.Module]:
        return [models.mlp(5, 8, 1, symmetric=True, seed=s, **more) for s in range(2)]

    saved = saved_after(make(modules=built()), 3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        there = torch.randn(saved["function"].shape, generator=generator, dtype=saved["function"].dtype)
        eps = torch.finfo(there.dtype).eps
        make(modules=built()).load_state_dict({**saved, "function": eps * there})
        with pytest.raises(UserError, match="`modules`: member 0 differs from the saved one"):
            make(modules=built()).load_state_dict({**saved, "function": eps**0.5 * there})
