"""The linearisation gap."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from regimes import control, measure, models
from regimes.core.error import UserError
from regimes.core.state import State
from tests import reference
from tests.measure.awkward import D, build
from tests.properties import assert_close


def inputs() -> Tensor:
    return torch.randn(6, D, dtype=torch.float64)


def start_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


def move(module: nn.Module, size: float) -> None:
    torch.manual_seed(2)
    with torch.no_grad():
        for p in module.parameters():
            if p.requires_grad:
                p.add_(size * torch.randn_like(p))


NAMES = ["mlp", "scaled", "tied", "two paths", "attention", "bare parameters", "images"]


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_definition(name: str) -> None:
    module, x = build(name), inputs()
    origin = start_of(module)
    move(module, 0.1)
    expected = reference.linear_gap(module, x, origin)
    assert measure.gap(module, x, origin=origin) == pytest.approx(expected)
    linear = measure.linearized(module, x, origin=origin)
    outputs = module(x).detach().view_as(linear)
    assert float((outputs - linear).norm() / outputs.norm()) == pytest.approx(expected)


def test_is_zero_for_a_linear_module_and_at_the_start() -> None:
    module, x = nn.Linear(D, 2).double(), inputs()
    origin = start_of(module)
    move(module, 1.0)
    assert measure.gap(module, x, origin=origin) < 1e-14
    for start in (models.mlp(D, 5, 2), control.scale(models.mlp(D, 5, 2), 1e6)):
        assert measure.gap(start, x, origin=start_of(start)) == 0


def test_falls_with_the_distance() -> None:
    module, x = control.scale(models.mlp(D, 5, 2), 1e5), inputs()
    origin = start_of(module)
    gaps = []
    for size in (1e-3, 1e-4):
        with torch.no_grad():
            for name, p in module.named_parameters():
                if name in origin:
                    p.copy_(origin[name])
        move(module, size)
        gaps.append(measure.gap(module, x, origin=origin))
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.05)


def test_does_not_see_alpha_when_centred() -> None:
    network, x = models.mlp(D, 5, 2), inputs()
    small, large = control.scale(network, 1.0), control.scale(network, 1e7)
    origin = start_of(small)
    move(network, 0.01)
    assert measure.gap(large, x, origin=origin) == pytest.approx(measure.gap(small, x, origin=origin))
    linear = measure.linearized(small, x, origin=origin)
    assert_close(measure.linearized(large, x, origin=origin), 1e7 * linear, 1e-10)


def test_probe_reads_the_state() -> None:
    module, x = build("scaled"), inputs()
    origin = start_of(module)
    moved = {name: p * 1.1 for name, p in origin.items()}
    state = State(module, moved, origin)
    expected = measure.gap(module, x, origin=origin, parameters=moved)
    assert measure.Gap(x).look(state) == {"gap": expected}
    broken = State(module, {name: p * math.nan for name, p in moved.items()}, origin, status="diverged")
    assert math.isnan(float(measure.Gap(x).look(broken)["gap"]))


def test_names_the_mistake() -> None:
    module = build("mlp")
    with pytest.raises(UserError, match="at least one sample"):
        measure.gap(module, inputs()[:0], origin=start_of(module))
    with pytest.raises(UserError, match=r"`origin`: .* is missing"):
        measure.gap(module, inputs(), origin={})
    with pytest.raises(UserError, match=r"`x`: \[0, 0\] is nan"):
        measure.gap(module, inputs() * math.nan, origin=start_of(module))
    origin = start_of(module)
    name = next(iter(origin))
    for measured in (measure.gap, measure.pattern):
        with pytest.raises(UserError, match=rf"`origin`: '{name}' has shape \(1,\), expected"):
            measured(module, inputs(), origin=origin | {name: torch.zeros(1, dtype=torch.float64)})
        with pytest.raises(
            UserError, match=rf"`origin`: '{name}' is of torch\.float32, expected torch\.float64"
        ):
            measured(module, inputs(), origin=origin | {name: origin[name].float()})


class Both(nn.Module):
    """Two inputs and a mapping for an output."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = models.mlp(D, 5, 2)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"logits": self.inner(left + right)}


def test_several_inputs_and_a_mapping_of_outputs() -> None:
    module, x = Both(), inputs()
    origin = start_of(module)
    move(module, 0.1)
    plain = {name.removeprefix("inner."): p for name, p in origin.items()}
    expected = measure.gap(module.inner, 2 * x, origin=plain)
    for pair in ((x, x), {"right": x, "left": x}):
        found = measure.gap(module, pair, origin=origin, output=lambda out: out["logits"])
        assert found == pytest.approx(expected, rel=1e-12)
