"""Networks that cannot be looked into (scripted, traced), and those whose forward takes gradients of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regimes import control, measure
from regimes.core.error import UserError
from regimes.core.jacobian import jacobian
from tests.core.test_jacobian import inputs
from tests.doors import has_its_gap, holds_as_operator, holds_in_all_forms, holds_linearised
from tests.measure.awkward import D
from tests.measure.awkward_case import F64

# torch would have scripts exported.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


class Forces(nn.Module):
    """-dE/dx, E a network."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = layers(nn.Tanh(), 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return -torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]


class Residual(nn.Module):
    """E and dE/dx, wherever gradients are off."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = layers(nn.Tanh(), 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            energy = self.energy(x)
            return torch.cat([energy, torch.autograd.grad(energy.sum(), x, create_graph=True)[0]], 1)


def layers(activation: nn.Module, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(D, 3), activation, nn.Linear(3, outputs)).to(F64)


def scripted(module: nn.Module) -> nn.Module:
    found: Any = torch.jit.script(module)
    return found


def traced(module: nn.Module) -> nn.Module:
    found: Any = torch.jit.trace(module, inputs(), check_trace=False)
    return found


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "scripted": lambda: scripted(layers(nn.ReLU(), 2)),
    "traced": lambda: traced(layers(nn.ReLU(), 2)),
    "scripted in part": lambda: nn.Sequential(
        nn.Linear(D, D, dtype=F64), scripted(layers(nn.ReLU(), 3)), nn.Linear(3, 2, dtype=F64)
    ),
    "forces": Forces,
    "residual": Residual,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_measurement_is_that_of_autograd(name: str) -> None:
    module, x = NETWORKS[name](), inputs(3)
    holds_in_all_forms(module, x)
    holds_as_operator(module, x)
    holds_linearised(module, x)
    has_its_gap(module, x)


@pytest.mark.parametrize("name", NETWORKS)
def test_scaled_and_centred(name: str) -> None:
    module, x = NETWORKS[name](), inputs(3)
    scaled = control.scale(module, 3.0)
    assert not scaled(x).any()
    assert all(p.requires_grad for p in module.parameters())
    assert torch.allclose(measure.ntk(scaled, x), 9 * measure.ntk(module, x))
    has_its_gap(scaled, x)


def stable(module: nn.Module, x: Tensor, like: nn.Module, prefix: str = "") -> float:
    """The activation stability from a start to the parameters of another module, which have a prefix there."""
    now = {f"{prefix}{name}": p.detach() for name, p in like.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    then = {k: p + torch.randn(p.shape, generator=generator, dtype=F64) for k, p in now.items()}
    return measure.pattern(module, x, parameters=now, origin=then)


@pytest.mark.parametrize("close", [scripted, traced])
def test_kappa_and_pattern_of_a_closed_network(close: Callable[[nn.Module], nn.Module]) -> None:
    x, y = inputs(8), torch.zeros(8, 2, dtype=F64)
    for activation in (nn.Tanh(), nn.ReLU()):
        module = layers(activation, 2)
        found, expected = (measure.kappa(one, x, y, starts=2).value for one in (close(module), module))
        assert found == pytest.approx(expected, rel=1e-6)
    closed = close(module)
    for _ in range(3):  # a script is compiled anew at its second call
        assert stable(closed, x, module) == stable(module, x, module)


def test_kappa_and_pattern_of_forces() -> None:
    module, x = Forces(), inputs(4)
    assert measure.kappa(module, x, torch.zeros(4, D, dtype=F64), starts=2).value > 0
    module.energy = layers(nn.ReLU(), 1)
    assert stable(module, x, module.energy, "energy.") == stable(module.energy, x, module.energy)


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 3), nn.Dropout(0.5), nn.Linear(3, 2)).to(F64)


def with_batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).to(F64)


@pytest.mark.parametrize("build", [with_dropout, with_batch_norm])
@pytest.mark.parametrize("close", [scripted, traced])
def test_a_closed_layer_in_train_mode_is_refused(
    build: Callable[[], nn.Module], close: Callable[[nn.Module], nn.Module]
) -> None:
    module, x = close(build()), inputs(3)
    origin = dict(module.named_parameters())
    tries: list[Callable[[], object]] = [
        lambda: measure.ntk(module, x),
        lambda: measure.ntk_operator(module, x),
        lambda: measure.gap(module, x, origin=origin),
        lambda: measure.kappa(module, x, torch.zeros(3, 2, dtype=F64)),
        lambda: control.linearize(module),
    ]
    for one in tries:
        with pytest.raises(UserError, match=r"`module`: '1' \((Dropout|BatchNorm1d)\).* call \.eval\(\)"):
            one()


def test_chance_that_was_traced_is_refused() -> None:
    """A trace keeps the dropout it was made with, whatever .eval() says."""
    module, x = traced(with_dropout()).eval(), inputs(3)
    origin = dict(module.named_parameters())
    for one in (
        lambda: measure.ntk(module, x),
        lambda: measure.ntk_operator(module, x),
        lambda: measure.gap(module, x, origin=origin),
        lambda: measure.kappa(module, x, torch.zeros(3, 2, dtype=F64)),
        lambda: control.linearize(module)(x),
        lambda: jacobian(module, origin, x),
    ):
        with pytest.raises(UserError, match="draws random numbers"):
            one()


def test_a_parameter_kept_elsewhere_is_still_refused() -> None:
    module = Forces()
    kept = module.energy.get_parameter("0.weight")
    module.register_forward_hook(lambda _module, _x, out: torch.mul(out, kept.sum()))  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="keeps a parameter outside"):
        control.linearize(module)(inputs(3))
