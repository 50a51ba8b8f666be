"""Activation stability: which units count, and when they are on the same side."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from regimes import control, measure, models
from regimes.core.activation import ScaledReLU
from regimes.core.error import UserError
from regimes.core.state import State
from tests.measure.awkward import D, build

F64 = torch.float64


def inputs(n: int = 6) -> Tensor:
    return torch.randn(n, D, dtype=F64)


def start_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


def moved(origin: dict[str, Tensor], size: float) -> dict[str, Tensor]:
    return {name: p + size * torch.randn_like(p) for name, p in origin.items()}


def signs(module: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """z > 0 for each call of a ReLU module, by hooks on a copy."""
    module = copy.deepcopy(module)
    found: list[Tensor] = []
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(parameters[name])
        for part in module.modules():
            if isinstance(part, nn.ReLU | ScaledReLU):
                part.register_forward_pre_hook(lambda _, args: found.append(args[0] > 0))
        module(x)
    return found


def plain_shares(
    module: nn.Module, origin: dict[str, Tensor], now: dict[str, Tensor], x: Tensor
) -> list[float]:
    pairs = zip(signs(module, origin, x), signs(module, now, x), strict=True)
    return [float((then == later).double().mean()) for then, later in pairs]


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: models.mlp(D, 8, 3, activation="relu"),
    "wide to narrow": lambda: nn.Sequential(
        nn.Linear(D, 50), nn.ReLU(), nn.Linear(50, 3), nn.ReLU(inplace=True), nn.Linear(3, 1)
    ).double(),
    "images": lambda: build("images"),
    "resnet": lambda: nn.Sequential(nn.Unflatten(1, (1, 2, 2)), models.resnet(1, 2, width_factor=1 / 16)),
    "vgg": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)),
        nn.Upsample(scale_factor=5),
        models.vgg(1, 2, size=10, width_factor=1 / 32),
    ),
}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_is_the_mean_of_the_shares_of_the_layers(name: str) -> None:
    module, x = NETWORKS[name](), inputs()
    origin = start_of(module)
    now = moved(origin, 0.1)
    shares = plain_shares(module, origin, now, x)
    assert min(shares) < 1
    assert measure.pattern(module, x, origin=origin, parameters=now) == pytest.approx(
        sum(shares) / len(shares)
    )
    by_layer = measure.pattern(module, x, origin=origin, parameters=now, by_layer=True)
    assert list(by_layer.values()) == pytest.approx(shares)
    owners = dict(module.named_modules())
    assert all(isinstance(owners[label], nn.ReLU | ScaledReLU) for label in by_layer)


def test_many_samples_are_taken_in_chunks() -> None:
    module, x = NETWORKS["mlp"](), inputs(300)
    origin = start_of(module)
    now = moved(origin, 1.0)
    shares = plain_shares(module, origin, now, x)
    assert measure.pattern(module, x, origin=origin, parameters=now) == pytest.approx(
        sum(shares) / len(shares)
    )


def test_is_one_at_the_start_and_falls_with_the_distance() -> None:
    module, x = NETWORKS["wide to narrow"](), inputs(50)
    origin = start_of(module)
    assert measure.pattern(module, x, origin=origin) == 1
    torch.manual_seed(1)
    step = moved({name: torch.zeros_like(p) for name, p in origin.items()}, 1.0)
    path = [
        measure.pattern(module, x, origin=origin, parameters={n: origin[n] + s * step[n] for n in step})
        for s in (1e-6, 0.03, 0.3)
    ]
    assert path[0] > 0.99 and path[0] > path[1] > path[2] > 0


class Spelled(nn.Module):
    """A unit in the words of its author, between two layers."""

    def __init__(self, unit: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.unit, self.out = nn.Linear(D, 30, dtype=F64), unit, nn.Linear(30, 1, dtype=F64)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.unit(self.a(x)))


UNITS: dict[str, Callable[[Tensor], Tensor]] = {
    "function": functional.relu,
    "torch": torch.relu,
    "method": lambda z: z.relu(),
    "in place": lambda z: z.relu_(),
    "leaky": lambda z: functional.leaky_relu(z, 0.1),
    "leaky in place": lambda z: functional.leaky_relu_(z, 0.1),
    "prelu": lambda z: functional.prelu(z, torch.full((1,), 0.2, dtype=F64)),
    "rrelu": lambda z: functional.rrelu(z, training=False),
    "relu6": functional.relu6,
    "clamp": lambda z: z.clamp(min=0),
    "clamp in place": lambda z: z.clamp_(min=0.0),
    "clamp_min": lambda z: torch.clamp_min(z, 0),
    "threshold": lambda z: functional.threshold(z, 0, 0),
}


@pytest.mark.parametrize("name", list(UNITS))
def test_finds_a_unit_however_it_is_spelled(name: str) -> None:
    module, x = Spelled(UNITS[name]), inputs()
    origin = start_of(module)
    now = moved(origin, 0.5)

    def up(p: dict[str, Tensor]) -> Tensor:
        return x @ p["a.weight"].T + p["a.bias"] > 0

    wanted = float((up(origin) == up(now)).double().mean())
    assert 0 < wanted < 1
    assert measure.pattern(module, x, origin=origin, parameters=now) == pytest.approx(wanted)


@pytest.mark.parametrize(
    "unit",
    [
        torch.tanh,
        functional.gelu,
        functional.softplus,
        lambda z: z.clamp(min=1e-6),
        lambda z: z.clamp(0, 1),
        lambda z: z.clamp(max=0),
        functional.hardtanh,
        lambda z: functional.threshold(z, 1.0, 0.0),
        lambda z: z + z.long().clamp(min=0),
    ],
)
def test_what_has_no_kink_at_zero_does_not_count(unit: Callable[[Tensor], Tensor]) -> None:
    module = Spelled(unit)
    with pytest.raises(UserError, match="`module`: calls no activation with a kink at 0"):
        measure.pattern(module, inputs(), origin=start_of(module))


class Reused(nn.Module):
    """One ReLU for everything, and one call in the forward of the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.relu = nn.Linear(D, D, dtype=F64), nn.Linear(D, D, dtype=F64), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.relu(self.b(self.relu(self.a(x)))) - 0.1)


def test_layers_are_calls() -> None:
    module, x = Reused(), inputs()
    origin = start_of(module)
    now = moved(origin, 0.5)
    by_layer = measure.pattern(module, x, origin=origin, parameters=now, by_layer=True)
    assert list(by_layer) == ["relu[0]", "relu[1]", ""]
    assert [by_layer["relu[0]"], by_layer["relu[1]"]] == pytest.approx(plain_shares(module, origin, now, x))
    inner = measure.pattern(nn.Sequential(module), x, origin=start_of(nn.Sequential(module)), by_layer=True)
    assert list(inner) == ["0.relu[0]", "0.relu[1]", "0"]


def test_what_a_scaled_network_subtracts_does_not_count() -> None:
    network, x = NETWORKS["mlp"](), inputs()
    origin = start_of(network)
    now = moved(origin, 0.5)
    scaled = control.scale(network, 100.0)
    before, after = ({f"network.{name}": p for name, p in tree.items()} for tree in (origin, now))
    plain = measure.pattern(network, x, origin=origin, parameters=now, by_layer=True)
    found = measure.pattern(scaled, x, origin=before, parameters=after, by_layer=True)
    assert found == {f"network.{name}": share for name, share in plain.items()}
    assert set(found.values()) != {1.0}


def test_a_transformer_in_eval_mode_calls_its_units() -> None:
    """In inference torch would run one fused kernel for the whole layer."""
    layer = nn.TransformerEncoderLayer(D, 2, 16, batch_first=True, dtype=F64).eval()
    module, x = nn.Sequential(nn.Unflatten(1, (1, D)), layer, nn.Flatten()), inputs()
    before = torch.backends.mha.get_fastpath_enabled()
    origin = start_of(module)
    by_layer = measure.pattern(module, x, origin=origin, parameters=moved(origin, 0.3), by_layer=True)
    assert list(by_layer) == ["1"] and 0 < by_layer["1"] < 1
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_several_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(D, 3, dtype=F64)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.a(left + right).relu()

    module = Two()
    origin = start_of(module)
    now = moved(origin, 0.5)
    x = (inputs(), inputs())
    found = measure.pattern(module, x, origin=origin, parameters=now)
    assert found == measure.pattern(module, {"left": x[0], "right": x[1]}, origin=origin, parameters=now)


def test_leaves_the_module_as_it_was() -> None:
    module, x = NETWORKS["mlp"](), inputs()
    origin = start_of(module)
    measure.pattern(module, x, origin=origin, parameters=moved(origin, 0.5))
    with pytest.raises(UserError, match=r"`x`: got torch.float64 .3, 5."):
        measure.pattern(module, torch.randn(3, D + 1, dtype=F64), origin=origin)
    assert all(torch.equal(p, origin[name]) for name, p in module.named_parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_of_a_diverged_network_is_nan() -> None:
    module, x = NETWORKS["mlp"](), inputs()
    origin = start_of(module)
    broken = {name: p * math.nan for name, p in origin.items()}
    assert math.isnan(measure.pattern(module, x, origin=origin, parameters=broken))


def test_probe_reads_the_state() -> None:
    module, x = NETWORKS["mlp"](), inputs()
    origin = start_of(module)
    now = moved(origin, 0.5)
    expected = measure.pattern(module, x, origin=origin, parameters=now)
    assert measure.Pattern(x).look(State(module, now, origin)) == {"pattern": expected}


def test_names_the_mistake() -> None:
    module = NETWORKS["mlp"]()
    origin = start_of(module)
    with pytest.raises(UserError, match="at least one sample"):
        measure.pattern(module, inputs()[:0], origin=origin)
    with pytest.raises(UserError, match=r"`origin`: .* is missing"):
        measure.pattern(module, inputs(), origin={})
    coupled = nn.Sequential(nn.Linear(D, 3, dtype=F64), nn.BatchNorm1d(3, dtype=F64), nn.ReLU())
    with pytest.raises(UserError, match="couples the samples"):
        measure.pattern(coupled, inputs(), origin=start_of(coupled))


def test_other_units_at_the_two_ends_are_an_error() -> None:
    module = Spelled(lambda z: z.relu() if z.sum() > 0 else z.relu().relu())
    with torch.no_grad():
        module.a.bias.fill_(100.0)
    origin = start_of(module)
    with pytest.raises(UserError, match="calls other activations at `parameters` than at `origin`"):
        measure.pattern(module, inputs(), origin=origin, parameters={n: -p for n, p in origin.items()})
