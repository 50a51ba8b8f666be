"""f(a, x) and J(a, x) v: which route is taken, and where each would be wrong."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacfwd, jacrev, vmap
from torch.nn import functional

from regimes import models
from regimes.control import Linearized, linearize
from regimes.control.tangent import Route, by_both_modes, by_reverse_mode
from regimes.core.error import UserError
from regimes.core.forward import by_forward_mode
from tests.control.networks import F64, NoForward, X
from tests.measure.awkward import D


class Layers(nn.Module):
    """Two layers with something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Linear(D, 6), nn.Linear(6, 2), between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))


class Unmoved(Layers):
    """A first layer that counts as a constant."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.between(self.a(x))
        return self.b(h)


class Once(torch.autograd.Function):
    """x^3 without forward mode, whose second derivative torch loses without a word."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad * 3 * ctx.saved_tensors[0] ** 2


def halves(z: Tensor) -> Tensor:
    return functional.glu(z.repeat(1, 2))


ROUTES: list[tuple[str, Callable[[], nn.Module], Route]] = [
    ("tanh", lambda: Layers(torch.tanh), by_forward_mode),
    ("without gradients", lambda: Unmoved(torch.tanh), by_forward_mode),
    ("tangent without derivative", lambda: Layers(halves), by_both_modes),
    ("no second derivative", lambda: Layers(functional.hardsigmoid), by_both_modes),
    ("no forward mode", lambda: Layers(NoForward.apply), by_reverse_mode),  # pyright: ignore[reportArgumentType]
]


def jacobian(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """f and its rows, one backward pass after another."""
    out = network(x)
    leaves = list(network.parameters())
    rows = [
        torch.autograd.grad(one, leaves, retain_graph=True, materialize_grads=True) for one in out.reshape(-1)
    ]
    return out.detach(), torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])


def case(make: Callable[[], nn.Module]) -> tuple[nn.Module, Linearized, Tensor]:
    """A network, its linearisation elsewhere, and w - a as a vector."""
    network = make().to(F64)
    linear = linearize(network)
    for p in linear.parameters():
        p.data += 0.3 * torch.randn_like(p)
    pairs = zip(linear.parameters(), network.parameters(), strict=True)
    return network, linear, torch.cat([(p - q).detach().reshape(-1) for p, q in pairs])


@pytest.mark.parametrize(("name", "make", "route"), ROUTES)
def test_every_route_is_the_jacobian_and_its_transpose(
    name: str, make: Callable[[], nn.Module], route: Route
) -> None:
    network, linear, moved = case(make)
    start, rows = jacobian(network, X)
    out = linear(X)
    assert linear._route is route
    torch.testing.assert_close(out.detach(), start + (rows @ moved).view_as(start))
    u = torch.randn_like(out)
    found = torch.autograd.grad(out, list(linear.parameters()), u, materialize_grads=True)
    torch.testing.assert_close(torch.cat([g.reshape(-1) for g in found]), u.reshape(-1) @ rows)


def test_a_second_derivative_that_is_lost_is_found() -> None:
    with pytest.raises(UserError, match="`module`: has an operation whose derivatives do not go together"):
        linearize(Layers(Once.apply).double())(X)  # pyright: ignore[reportArgumentType]


def test_an_operation_that_has_nothing_is_named() -> None:
    with pytest.raises(UserError, match="`module`: has an operation with neither forward mode nor a second"):
        linearize(
            Layers(
                lambda z: torch.cdist(z, z.flip(0), compute_mode="donot_use_mm_for_euclid_dist")[
                    :, :1
                ].expand(-1, 6)
            ).double()
        )(X)


def test_an_operation_that_only_other_inputs_meet_changes_the_route() -> None:
    network, linear, _ = case(lambda: Layers(lambda z: NoForward.apply(z) if len(z) == 2 else z.tanh()))  # pyright: ignore[reportArgumentType, reportReturnType]
    linear(X)
    assert linear._route is by_forward_mode
    linear.relinearize()
    with torch.no_grad():
        for p, q in zip(network.parameters(), linear.parameters(), strict=True):
            p.copy_(q)
    torch.testing.assert_close(linear(X[:2]), network(X[:2]))
    assert linear._route is by_reverse_mode


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda z: functional.dropout(z, 0.5),
    "noise": lambda z: z + torch.randn_like(z),
    "gumbel": functional.gumbel_softmax,
}


@pytest.mark.parametrize("name", DRAWS)
def test_random_numbers_in_the_forward_are_refused(name: str) -> None:
    linear = linearize(Layers(DRAWS[name]).double())
    with pytest.raises(UserError, match="`module`: draws random numbers in its forward"):
        linear(X)


class Keeps(Layers):
    """A buffer that changes at every call, and may count in the output."""

    def __init__(self, share: float) -> None:
        super().__init__(torch.tanh)
        self.share = share
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        self.mean = 0.9 * self.mean + 0.1 * out.detach().mean(0)
        return out - self.share * self.mean


def test_what_changes_at_every_call_is_refused() -> None:
    with pytest.raises(UserError, match="`module`: 'mean' changes at every call"):
        linearize(Keeps(1.0).double())(X)
    assert linearize(Keeps(0.0).double())(X).shape == (5, 2)
    spectral = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(D, 2))).double()
    with pytest.raises(UserError, match=r"`module`: '0\.parametrizations\.weight\.0\._[uv]' changes"):
        linearize(spectral)(X)
    assert linearize(spectral.eval())(X).shape == (5, 2)
    with pytest.raises(UserError, match=r"`module`: '0\.weight' changes at every call"):
        linearize(nn.Sequential(nn.Embedding(7, 4, max_norm=0.1)))(torch.arange(5))


def test_inputs_may_be_overwritten() -> None:
    network = nn.Sequential(nn.ReLU(inplace=True), Layers(lambda z: z.mul_(2).relu_())).double()
    torch.testing.assert_close(linearize(network)(X.clone()), network(X.clone()))


def test_the_first_call_leaves_the_random_numbers_alone() -> None:
    linear, state = linearize(models.mlp(D, 5, 2)), torch.get_rng_state()
    linear(X)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "make", [lambda: Layers(torch.tanh), lambda: models.mlp(D, 5, 2)], ids=["tanh", "mlp"]
)
def test_the_transforms_of_torch(make: Callable[[], nn.Module]) -> None:
    """Mapped over inputs and parameters, differentiated forward, backward and twice."""
    network, linear, _ = case(make)
    w = {name: p.detach() for name, p in linear.named_parameters()}
    a = {name: p.detach() for name, p in network.named_parameters()}

    def at(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(linear, parameters, (X,))

    out = linear(X).detach()
    torch.testing.assert_close(vmap(linear)(X), out)
    stacked = {name: torch.stack([p, a[name]]) for name, p in w.items()}
    torch.testing.assert_close(vmap(at)(stacked), torch.stack([out, network(X).detach()]))
    expected = jacrev(lambda p: functional_call(network, p, (X,)))(a)
    for transform in (jacrev, jacfwd):
        found = transform(at)(w)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value)
    curved = hessian(lambda p: at(p).sum())(w)
    assert not any(value.any() for row in curved.values() for value in row.values())
    by_inputs = jacrev(linear)(X)
    torch.testing.assert_close(jacfwd(linear)(X), by_inputs)
    step = 1e-6 * torch.randn_like(X)
    torch.testing.assert_close(
        torch.einsum("iajb,jb->ia", by_inputs, step),
        (linear(X + step) - linear(X - step)).detach() / 2,
        rtol=1e-5,
        atol=1e-12,
    )


def test_inside_another_forward_mode() -> None:
    network, linear, _ = case(lambda: models.mlp(D, 5, 2))
    tangents = {name: torch.randn_like(p) for name, p in linear.named_parameters()}
    start = {name: p.detach() for name, p in network.named_parameters()}
    expected = torch.func.jvp(lambda p: functional_call(network, p, (X,)), (start,), (tangents,))[1]
    with torch.autograd.forward_ad.dual_level():
        duals = {
            name: torch.autograd.forward_ad.make_dual(p.detach(), tangents[name])
            for name, p in linear.named_parameters()
        }
        found = torch.autograd.forward_ad.unpack_dual(functional_call(linear, duals, (X,)))
        torch.testing.assert_close(found.tangent, expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_what_is_compiled_runs_as_written(backend: str) -> None:
    """Compiled code knows no forward mode, and says nothing: inside the network, and around the linearisation."""

    def compiled(module: nn.Module) -> Any:
        return torch.compile(module, backend=backend)

    def gradients(module: nn.Module, out: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(out.sum(), list(module.parameters())))

    torch._dynamo.reset()
    network, linear, _ = case(lambda: Layers(torch.tanh))
    out = linear(X)
    inside = linearize(nn.Sequential(compiled(network)))
    part = copy.deepcopy(network)
    part.a = compiled(part.a)  # pyright: ignore[reportArgumentType]
    for other in (inside, linearize(part)):
        for p, q in zip(other.parameters(), linear.parameters(), strict=True):
            p.data.copy_(q)
        torch.testing.assert_close(other(X), out)
        torch.testing.assert_close(gradients(other, other(X)), gradients(linear, linear(X)))
    torch.testing.assert_close(compiled(linear)(X), out)
    torch.testing.assert_close(gradients(linear, compiled(linear)(X)), gradients(linear, linear(X)))


class Named(nn.Module):
    """Submodules under the names that a wrapper would take."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.module = nn.Linear(D, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.module(self.network(x).tanh())


def test_names_of_the_network_lead_into_it() -> None:
    network, linear, _ = case(Named)
    assert linear.get_parameter("network.weight").shape == network.get_parameter("network.weight").shape
    w = {name: p.detach() + 0.1 for name, p in linear.named_parameters()}
    found = functional_call(linear, w, (X,))
    for name, p in linear.named_parameters():
        p.data.copy_(w[name])
    torch.testing.assert_close(found, linear(X))
    with pytest.raises(UserError, match="`module`: has an attribute 'nonlinear'"):
        linearize(nn.ModuleDict({"nonlinear": nn.Linear(D, 1)}))


class Remembers(Layers):
    """A network that keeps what it computed last."""

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.a(x)
        return self.b(self.between(self.last))


def test_a_network_that_keeps_a_result_is_copied_without_its_graph() -> None:
    network = Remembers(torch.tanh).double()
    expected = network(X)
    torch.testing.assert_close(linearize(network)(X), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        old = nn.utils.weight_norm(nn.Linear(D, 2)).double()
    torch.testing.assert_close(linearize(nn.Sequential(old))(X), old(X))
    network.last = [network.last]  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"`module`: cannot be copied \(Only Tensors created explicitly"):
        linearize(network)
