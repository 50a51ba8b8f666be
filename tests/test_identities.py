"""What the papers say of alpha, of homogeneous networks and of linearised ones, through the public functions alone.

Every pair of runs below takes the same steps up to a change of variables, so that they agree to rounding; limits are
tested by their order.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from regimes import control, measure, models, train
from regimes.core.loss import LOSSES, squared

F64 = torch.float64
D, N = 5, 12
Path = list[dict[str, Tensor]]

# q, and a network f with f(s w, x) = s^q f(w, x)
HOMOGENEOUS: dict[str, tuple[int, Callable[[bool], nn.Module]]] = {
    "two layers": (2, lambda symmetric: models.two_layer(D, 8, scaling="1", symmetric=symmetric)),
    "three layers": (3, lambda symmetric: models.mlp(D, 8, 2, activation="relu", symmetric=symmetric)),
    "five layers": (5, lambda symmetric: models.mlp(D, 8, 4, activation="relu", symmetric=symmetric)),
}


def points(count: int = N, seed: int = 0) -> Tensor:
    return torch.randn(count, D, generator=torch.Generator().manual_seed(seed), dtype=F64)


def targets() -> Tensor:
    return torch.randn(N, generator=torch.Generator().manual_seed(7), dtype=F64)


def times(network: nn.Module, s: float) -> nn.Module:
    """A copy with every parameter multiplied by s."""
    found = copy.deepcopy(network)
    with torch.no_grad():
        for p in found.parameters():
            p.mul_(s)
    return found


def named(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies under the names of the network itself."""
    return {name.removeprefix("network."): p.clone() for name, p in parameters.items()}


def moved(states: train.Descent) -> tuple[Path, list[Tensor]]:
    """w - w0 by name, and F on the training set, at every step."""
    every = list(states)
    path = [
        {name: p - q for (name, p), q in zip(named(s.parameters).items(), s.origin.values(), strict=True)}
        for s in every
    ]
    return path, [s.outputs for s in every if s.outputs is not None]


def assert_paths(found: Path, expected: Path, factor: float, rtol: float = 1e-7) -> None:
    """w - w0 is ``factor`` times what is expected, at every step; and it is not 0."""
    assert len(found) == len(expected) > 1
    scale = max(float(p.abs().max()) for p in expected[-1].values())
    assert scale > 0
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, p in one.items():
            torch.testing.assert_close(p / factor, other[name], rtol=rtol, atol=rtol * scale)


# The squared loss of F over alpha^2 is that of f - f0 against y / alpha.


@pytest.mark.parametrize("alpha", [0.03, 50.0])
@pytest.mark.parametrize("batch", [None, 5])
def test_the_scaled_squared_loss_trains_like_targets_over_alpha(alpha: float, batch: int | None) -> None:
    x, y, network = points(), targets(), models.mlp(D, 8, 2)
    settings = {"loss": squared, "lr": 0.3, "momentum": 0.5, "steps": 20, "batch_size": batch}
    scaled = train.descent(control.scale(network, alpha), x, y, **settings)  # pyright: ignore[reportArgumentType]
    plain = train.descent(control.scale(network, 1.0), x, y / alpha, **settings)  # pyright: ignore[reportArgumentType]
    (path, outputs), (expected, small) = moved(scaled), moved(plain)
    assert_paths(path, expected, 1.0)
    for one, other in zip(outputs, small, strict=True):
        torch.testing.assert_close(one, alpha * other)


@pytest.mark.parametrize("alpha", [0.03, 50.0])
def test_a_plain_loop_on_the_scaled_module_trains_like_targets_over_alpha(alpha: float) -> None:
    """The module and its own ``loss`` under an optimiser of torch, against the engine."""
    x, y, network = points(), targets(), models.mlp(D, 8, 2)
    plain = train.descent(
        control.scale(network, 1.0), x, y / alpha, loss=squared, lr=0.3, momentum=0.5, steps=10
    )
    *_, expected = plain
    module = control.scale(copy.deepcopy(network), alpha)
    optimiser = torch.optim.SGD(module.network.parameters(), lr=0.3, momentum=0.5)
    for _ in range(10):
        optimiser.zero_grad()
        module.loss(squared.per_sample(module(x), y).mean()).backward()
        optimiser.step()
    for name, p in module.network.named_parameters():
        torch.testing.assert_close(p.detach(), named(expected.parameters)[name])
    torch.testing.assert_close(module(x), alpha * expected(x))


def test_the_scaled_squared_loss_on_classes_is_that_of_one_hot_targets_over_alpha() -> None:
    """The form of the paper's own code: the error of f - f0 against onehot / alpha."""
    x, labels, alpha = points(), torch.arange(N) % 3, 20.0
    network = models.mlp(D, 8, 2, 3)
    path, _ = moved(train.descent(control.scale(network, alpha), x, labels, loss=squared, lr=0.3, steps=10))
    plain, start, expected = copy.deepcopy(network), network(x).detach(), []
    optimiser = torch.optim.SGD(plain.parameters(), lr=0.3)
    wanted = torch.nn.functional.one_hot(labels, 3).to(F64) / alpha
    origin = {name: p.detach() for name, p in network.named_parameters()}
    for _ in range(11):
        expected.append({name: p.detach() - origin[name] for name, p in plain.named_parameters()})
        optimiser.zero_grad()
        ((plain(x) - start - wanted).square().sum(1).mean() / 2).backward()
        optimiser.step()
    assert_paths(path, expected, 1.0)


# A q-homogeneous network that starts s times larger is the one under alpha = s^q.


@pytest.mark.parametrize("name", HOMOGENEOUS)
@pytest.mark.parametrize("s", [0.5, 3.0])
def test_eigenvalues_of_a_homogeneous_network(name: str, s: float) -> None:
    """The Jacobian is (q - 1)-homogeneous, so every eigenvalue of the kernel takes the factor s^(2 (q - 1))."""
    q, build = HOMOGENEOUS[name]
    network, x = build(False), points()
    torch.testing.assert_close(times(network, s)(x), s**q * network(x))
    one, other = (
        torch.linalg.eigvalsh(measure.ntk(f, x, reduce="trace")) for f in (network, times(network, s))
    )
    torch.testing.assert_close(other, s ** (2 * (q - 1)) * one)
    assert float(one[0]) > 1e-9 * float(one[-1])


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("loss", ["squared", "soft-hinge", "cross-entropy"])
@pytest.mark.parametrize("name", HOMOGENEOUS)
def test_a_larger_start_of_a_homogeneous_network_is_an_output_scale(
    name: str, loss: str, center: bool
) -> None:
    r"""From s w0 with rate lr the weights are s times those under alpha = s^q with rate lr s^(2 q - 2).

    With w = s v: dw/dt = -grad R(f(w)) is dv/dt = -s^-2 grad_v R(s^q f(v)), which is the scaled flow, with its
    1 / alpha^2 = s^(-2 q), at the time s^(2 q - 2) t. Steps of descent obey the same. A symmetric start says 0, and
    may be centred or not.
    """
    (q, build), s = HOMOGENEOUS[name], 1.7
    network, x, y = build(center), points(), targets().sign()
    settings = {"loss": LOSSES[loss], "momentum": 0.5, "steps": 15}
    rate = 0.02 / s ** (2 * q - 2)
    large = train.descent(times(network, s), x, y, lr=rate, **settings)  # pyright: ignore[reportArgumentType]
    module = control.scale(network, s**q, center=center)
    scaled = train.descent(module, x, y, lr=rate * s ** (2 * q - 2), **settings)  # pyright: ignore[reportArgumentType]
    (path, outputs), (expected, others) = moved(large), moved(scaled)
    assert_paths(path, expected, s)
    for one, other in zip(outputs, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)
    assert float((outputs[-1] - outputs[0]).abs().max()) > 1e-2


# The linear path, scaled back, does not know alpha; its end is the kernel solve.


@pytest.mark.parametrize("loss", ["squared", "soft-hinge", "cross-entropy"])
@pytest.mark.parametrize("alpha", [0.01, 1e6])
def test_the_rescaled_linear_path_does_not_depend_on_alpha(loss: str, alpha: float) -> None:
    """w0 + alpha (w - w0) of the linearised network, every parameter at every step, and F."""
    x, y, network = points(), targets().sign(), models.mlp(D, 8, 2, bias=True)

    def run(scale: float) -> tuple[Path, list[Tensor]]:
        module = control.scale(control.linearize(network), scale)
        return moved(train.descent(module, x, y, loss=LOSSES[loss], lr=0.3, momentum=0.5, steps=15))

    (path, outputs), (expected, others) = run(alpha), run(1.0)
    assert_paths(path, expected, 1 / alpha)
    for one, other in zip(outputs, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_the_path_of_the_network_itself_does_depend_on_alpha() -> None:
    """What the test above would not see if nothing were linearised."""
    x, y = points(), targets().sign()
    ends = [
        moved(train.descent(control.scale(models.mlp(D, 8, 2), a), x, y, loss=squared, lr=0.3, steps=15))[1][
            -1
        ]
        for a in (1.0, 100.0)
    ]
    assert float((ends[0] - ends[1]).abs().max()) > 1e-2


def test_descent_on_the_linearised_network_is_a_power_of_its_kernel() -> None:
    """Three outputs: F_k = (1 - (1 - lr K / n)^k) (y - f0) + f0, on the training set and beyond."""
    x, z, labels, lr = points(), points(7, seed=1), torch.arange(N) % 3, 0.5
    network = models.mlp(D, 30, 2, 3)
    k, cross = measure.ntk(network, x), measure.ntk(network, z, x)
    flat, across = (each.permute(0, 2, 1, 3).reshape(len(each) * 3, -1) for each in (k, cross))
    missing = (torch.nn.functional.one_hot(labels, 3).to(F64) - network(x).detach()).reshape(-1)
    step = torch.eye(3 * N, dtype=F64) - lr * flat / N
    assert float(torch.linalg.eigvalsh(step).abs().max()) < 1
    coefficients = torch.zeros_like(missing)
    for state in train.descent(control.linearize(network), x, labels, loss=squared, lr=lr, steps=40):
        expected = network(z).detach() + (across @ coefficients).reshape(-1, 3)
        torch.testing.assert_close(state(z).detach(), expected)
        coefficients = coefficients + lr * (missing - flat @ coefficients) / N
    solution = torch.linalg.solve(flat, missing - torch.linalg.matrix_power(step, 40) @ missing)
    torch.testing.assert_close(state(z).detach(), network(z).detach() + (across @ solution).reshape(-1, 3))
    solve = train.kernel(k, labels, start=network(x).detach()).at(math.inf)
    solution = torch.linalg.solve(flat, missing)
    expected = network(z).detach() + (across @ solution).reshape(-1, 3)
    torch.testing.assert_close(solve.predict(cross, network(z).detach()), expected)


def test_the_kernel_solve_is_the_limit_of_the_linearised_run() -> None:
    """In time: the solve moves the weights by the least norm. In the step: with an error of first order."""
    x, z, y = points(), points(7, seed=1), targets()
    network = models.mlp(D, 30, 2)
    k, cross = (measure.ntk(network, a, x, reduce="trace") for a in (x, z))
    with torch.no_grad():
        start, there = network(x), network(z)
    path = train.kernel(k, y, start=start)
    rows = torch.stack([
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(network(one[None])[0, 0], list(network.parameters()))])
        for one in x
    ])  # fmt: skip
    least = torch.linalg.pinv(rows) @ (y - start[:, 0])
    linear = control.linearize(network)
    with torch.no_grad():
        torch.nn.utils.vector_to_parameters(
            torch.nn.utils.parameters_to_vector(network.parameters()) + least, linear.parameters()
        )
        torch.testing.assert_close(path.at(math.inf).predict(cross, there), linear(z))
    errors = []
    for lr in (0.04, 0.02):
        steps = round(2.0 / lr)
        *_, end = train.descent(control.linearize(network), x, y, loss=squared, lr=lr, steps=steps)
        errors.append(float((path.at(2.0).predict(cross, there) - end(z)).detach().abs().max()))
    assert errors[0] < 0.1 and errors[0] / errors[1] == pytest.approx(2, rel=0.1)


# Theorem 2.2 of the first paper.


@pytest.mark.parametrize("loss", ["squared", "soft-hinge"])
def test_the_rates_of_the_finite_horizon(loss: str) -> None:
    """Over the same steps of the network and of its linearisation: sup |w - w0|, sup |w - w_lin|, sup |F - F_lin|."""
    x, y, network = points(), targets().sign(), models.mlp(D, 8, 2)
    alphas = [2.0**octave for octave in range(5, 11)]

    def run(module: nn.Module, alpha: float) -> tuple[Tensor, Tensor]:
        states = train.descent(control.scale(module, alpha), x, y, loss=LOSSES[loss], lr=0.1, steps=60)
        path, outputs = moved(states)
        return torch.stack([torch.cat([p.reshape(-1) for p in w.values()]) for w in path]), torch.stack(
            outputs
        )

    found = []
    for alpha in alphas:
        (w, f), (w_linear, f_linear) = run(network, alpha), run(control.linearize(network), alpha)
        apart = (w, w - w_linear, (f - f_linear)[..., 0])
        found.append([float(each.norm(dim=1).max()) for each in apart])
    logs = torch.tensor(found, dtype=F64).log()
    octaves = torch.tensor(alphas, dtype=F64).log()
    slopes = ((octaves - octaves.mean()) @ (logs - logs.mean(0))) / (octaves - octaves.mean()).square().sum()
    assert slopes.tolist() == pytest.approx([-1, -2, -1], abs=0.1)
