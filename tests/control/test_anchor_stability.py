"""The stability bound of a linear block, against a dense solve and against descent itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from regimes import control, models, train
from regimes.control.anchor.stability import growth, limit
from regimes.core.error import UserError
from regimes.core.jacobian import jacobian
from regimes.core.loss import Loss, soft_hinge, squared
from regimes.core.loss import cross_entropy as entropy
from regimes.core.tree import trainable
from tests.control.networks import NETWORKS

F64 = torch.float64


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


X, SIGNS, CLASSES = drawn(14, 4), drawn(14, seed=1).sign(), torch.arange(14) % 3


def mlp(outputs: int) -> nn.Module:
    return models.mlp(4, 7, 2, outputs=outputs, activation="tanh")


LOSSES: Mapping[str, tuple[Loss, int, Tensor]] = {
    "squared": (squared, 1, SIGNS),
    "squared of classes": (squared, 3, CLASSES),
    "soft hinge": (soft_hinge, 1, SIGNS),
    "logistic": (entropy, 1, SIGNS),
    "cross-entropy": (entropy, 3, CLASSES),
}


def dense(
    module: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor], rates: Mapping[str, float]
) -> Tensor:
    """The eigenvalues of D^1/2 J^T H J D^1/2, all of it formed."""
    at = {name: p.detach() for name, p in trainable(module).items()}
    rows = jacobian(module, at, x)
    j = torch.cat([(rows[n] * rates.get(n, 1.0) ** 0.5).flatten(2) for n in at], 2).flatten(0, 1)
    out = module(x).detach()
    h = torch.autograd.functional.hessian(lambda u: loss(u.view_as(out)), out.flatten())
    assert isinstance(h, Tensor)
    return torch.linalg.eigvalsh(j.T @ h @ j)


@pytest.mark.parametrize("kind", LOSSES)
def test_is_that_of_the_dense_matrix(kind: str) -> None:
    """With momentum, Nesterov's too, scaled, and with the rates of a law of width; the residual tells the error."""
    loss, outputs, y = LOSSES[kind]
    rates = {"0.weight": 3.0, "4.weight": 0.0}
    ways: list[tuple[float, dict[str, Any]]] = [
        (1.0, {}),
        (2.0, {"momentum": 0.9}),
        (1.0, {"momentum": 0.5, "nesterov": True}),
    ]
    for alpha, more in ways:
        network = mlp(outputs)
        module = control.scale(network, alpha) if alpha != 1 else network
        given = rates if module is network else {f"network.{n}": rate for n, rate in rates.items()}
        top = float(dense(module, X, lambda out: loss.per_sample(out, y).mean() / alpha**2, given)[-1])  # noqa: B023
        found = control.stable_rate(module, X, y, loss, rates=given, **more)
        assert found.eigenvalue == pytest.approx(top, rel=1e-3)
        assert found.eigenvalue - 1e-12 <= top <= found.eigenvalue + found.residual + 1e-12
        mu = more.get("momentum", 0.0)
        c = 2 * (1 + mu) / (1 + 2 * mu) if more.get("nesterov") else 2 * (1 + mu)
        assert found.rate == found.whole == pytest.approx(c / top, rel=2e-2) and found.batch is None


def test_the_worst_batch_bounds_the_whole() -> None:
    """By convexity no bound of batches that divide the set is above that of the set; the smallest counts."""
    network = mlp(1)
    found = control.stable_rate(network, X, SIGNS, squared, batch_size=2, batches=15)
    assert found.batch is not None and found.rate == found.batch < found.whole
    per_pair = [
        float(dense(network, X[[i, j]], lambda u: squared.per_sample(u, SIGNS[[i, j]]).mean(), {})[-1])  # noqa: B023
        for i, j in ((i, (5 * i + 1) % 14) for i in range(14))
    ]
    assert found.batch <= 2 / (sum(per_pair) / len(per_pair))
    assert control.stable_rate(network, X, SIGNS, squared, batch_size=99).batch is None


@pytest.mark.parametrize("name", ["cubic", "fused attention", "two inputs", "named inputs"])
def test_what_forward_mode_cannot_pass_has_a_bound_as_well(name: str) -> None:
    """... and inputs of any kind, with what picks the outputs: of the mean of squares over 2."""
    make, x, output = NETWORKS[name]
    torch.manual_seed(1)
    net = make().to(F64)
    at = {n: p.detach() for n, p in trainable(net).items()}
    rows = jacobian(net, at, x, output=output)
    j = torch.cat([each.flatten(2) for each in rows.values()], 2).flatten(0, 1)
    top = float(torch.linalg.eigvalsh(j.T @ j)[-1]) / 5
    found = control.stable_rate(net, x, torch.zeros(5), lambda out, y: out.square().sum() / 10, output=output)
    assert found.eigenvalue == pytest.approx(top, rel=1e-3)
    linear = control.linearize(net, output=output)
    again = control.stable_rate(linear, x, torch.zeros(5), lambda out, y: out.square().sum() / 10)
    assert again == found


def test_of_a_linearised_module_it_is_that_of_the_anchor() -> None:
    network = mlp(3)
    linear = control.linearize(network)
    with torch.no_grad():
        for p in linear.parameters():
            p += 1.0
    found = control.stable_rate(linear, X, CLASSES, cross_entropy)
    assert found == control.stable_rate(network, X, CLASSES, cross_entropy)
    linear.relinearize()
    assert control.stable_rate(linear, X, CLASSES, cross_entropy) != found


def test_the_softmax_is_curved_by_a_half_at_most() -> None:
    """... and less where outputs saturate."""
    network = mlp(3)
    half = control.stable_rate(network, X, CLASSES, squared).eigenvalue / 2
    first = control.stable_rate(network, X, CLASSES, entropy).eigenvalue
    with torch.no_grad():
        network.get_parameter("4.weight").mul_(50)
    inner = control.stable_rate(
        network, X, CLASSES, squared, rates={"4.weight": 1.0, "2.weight": 0.0, "0.weight": 0.0}
    )
    later = control.stable_rate(
        network, X, CLASSES, entropy, rates={"4.weight": 1.0, "2.weight": 0.0, "0.weight": 0.0}
    )
    assert first <= half * 1.001 and later.eigenvalue < 0.5 * 0.5 * inner.eigenvalue


@pytest.mark.parametrize(
    ("momentum", "nesterov", "batch"),
    [(0.0, False, 7), (0.9, False, None), (0.9, False, 7), (0.6, True, None), (0.6, True, 7)],
)
def test_below_it_a_block_never_diverges_and_above_it_does(
    momentum: float, nesterov: bool, batch: int | None
) -> None:
    """A linear block of the squared loss by ``torch.optim.SGD``, at 0.9 of the bound and at 1.1 of the whole one.

    There are more weights than samples, so that some weights fit them all.
    """
    network = mlp(1)
    found = control.stable_rate(
        network, X, SIGNS, squared, momentum=momentum, nesterov=nesterov, batch_size=batch, batches=6
    )

    def ends(rate: float, size: int) -> float:
        linear = control.linearize(network)
        optimizer = torch.optim.SGD(linear.parameters(), lr=rate, momentum=momentum, nesterov=nesterov)
        generator = torch.Generator().manual_seed(0)
        for _ in range(150):
            part = torch.randperm(14, generator=generator)[:size]
            optimizer.zero_grad()
            squared.per_sample(linear(X[part]), SIGNS[part]).mean().backward()
            optimizer.step()
        return float(squared.per_sample(linear(X).detach(), SIGNS).mean())

    start = float(squared.per_sample(network(X).detach(), SIGNS).mean())
    assert ends(0.9 * found.rate, batch or 14) < start
    assert ends(1.1 * found.whole, 14) > 3 * start


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9])
def test_the_factor_of_growth_is_that_of_the_iteration(momentum: float, nesterov: bool) -> None:
    """It passes 1 at the limit."""
    c = limit(momentum, nesterov)
    for q in (0.3 * c, 0.9 * c, 0.999 * c, 1.001 * c, 1.4 * c):
        first = [1 - q - momentum * q, -(momentum**2)] if nesterov else [1 - q, -momentum]
        step = torch.tensor([first, [q, momentum]], dtype=F64)  # (e, eta v)
        radius = float(torch.linalg.eigvals(step).abs().max())
        assert growth(q, momentum, nesterov) == pytest.approx(radius, rel=1e-6) and (radius > 1) == (q > c)


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_block_beyond_the_bound_is_shortened_whichever_the_momentum(nesterov: bool) -> None:
    linear = control.linearize(mlp(1))
    bound = control.stable_rate(linear, X, SIGNS, squared, momentum=0.9, nesterov=nesterov).rate
    for factor, expected in ((0.9, {"start"}), (1.2, {"start", "stable"})):
        linear = control.linearize(mlp(1))
        optimizer = torch.optim.SGD(linear.parameters(), lr=factor * bound, momentum=0.9, nesterov=nesterov)
        policy = control.IterativeLinearisation(
            linear, optimizer, control.AtSteps([]), inputs=X, targets=SIGNS, loss=squared, stable="shorten"
        )
        for _ in range(30):
            optimizer.zero_grad()
            squared.per_sample(linear(X), SIGNS).mean().backward()
            optimizer.step()
            policy.step()
            if len(policy.blocks) > 1:
                break
        assert {block.why for block in policy.blocks} == expected


def engine(stable: Any, lr: Any, **more: Any) -> train.Descent:
    return train.descent(
        [mlp(1), models.mlp(4, 7, 2, activation="tanh", seed=3)],
        *(X, SIGNS),
        **{"lr": lr, "steps": 40, "loss": squared, "anchor": control.Every(20), "stable": stable, **more},
    )


def test_an_engine_lowers_shortens_or_refuses() -> None:
    """Each member by its own bound, found at each anchor; what was done is in its blocks, times, and what is saved."""
    bounds = [
        control.stable_rate(m, X, SIGNS, squared).rate
        for m in (mlp(1), models.mlp(4, 7, 2, activation="tanh", seed=3))
    ]
    rate = 1.5 * max(bounds)
    run = engine("lower", rate)
    ends = {s.member: s for s in run if s.status != "running"}
    for k, bound in enumerate(bounds):
        blocks = run.blocks(k)
        assert [b.step for b in blocks[:2]] == [0, 20] and blocks[0].bound == pytest.approx(bound, rel=1e-9)
        assert blocks[0].lowered and ends[k].status == "finished" and ends[k].loss < 1
        second = blocks[1].bound
        assert second is not None and blocks[1].lowered == (rate > second)
        expected = 20 * 0.9 * bound + 20 * (0.9 * second if rate > second else rate)
        assert ends[k].time == pytest.approx(expected, rel=1e-9)
    with pytest.raises(
        UserError, match=rf"`lr`: got {rate:.4g} at step 0, expected less than {bounds[0]:.4g}"
    ):
        list(engine("refuse", rate))
    assert all(s.status != "diverged" for s in engine("refuse", [0.5 * b for b in bounds]))
    run = engine("shorten", 1.2 * bounds[0], steps=9)
    list(run)
    assert {b.why for b in run.blocks(0)} >= {"start", "stable"} and len(run.blocks(0)) > 3
    run = engine(None, 4 * rate, steps=400, anchor=control.AtSteps([]))
    assert [s.status for s in run if s.status != "running"] == ["diverged"] * 2 and run.blocks(0)[
        0
    ].bound is None
    engine("refuse", 1e9, anchor=control.Every(1))  # a step of the network itself


def test_an_engine_takes_batches_and_rates_of_a_law() -> None:
    """The bound of a member is that of its batches in the metric of its rates."""
    net = models.mlp(4, 8, 1, law=control.law("mup"))
    run = train.descent(
        control.scale(net, 3.0),
        X,
        SIGNS,
        lr=1e-3,
        steps=2,
        batch_size=5,
        loss=squared,
        anchor=control.Every(9),
        stable="refuse",
    )
    list(run)
    found = control.stable_rate(net, X, SIGNS, squared, batch_size=5, batches=4, rates=control.rates(net))
    assert run.blocks()[0].bound == pytest.approx(found.batch, rel=1e-6)
    assert control.rates(net) != dict.fromkeys(control.rates(net), 1.0)


def test_mistakes_are_refused() -> None:
    net = mlp(1)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"momentum": 1.0}, "`momentum`: got 1.0"),
        ({"batch_size": 0}, "`batch_size`: got 0, expected 1"),
        ({"batches": 0}, "`batches`: got 0"),
        ({"rates": {"5.weight": 1.0}}, "`rates`: got '5.weight', expected names"),
        ({"rates": {"0.weight": -1.0}}, "`rates`: got -1.0 for '0.weight'"),
    ]
    for more, match in cases:
        with pytest.raises(UserError, match=match):
            control.stable_rate(net, X, SIGNS, squared, **more)
    with pytest.raises(UserError, match="`module`: is linearised inside the scale"):
        control.stable_rate(control.scale(control.linearize(net), 2.0), X, SIGNS, squared)
    with pytest.raises(UserError, match="`stable`: got 'lower' without an `anchor`"):
        train.descent(net, X, SIGNS, lr=0.1, steps=1, stable="lower")
    assert control.stable_rate(
        nn.Linear(4, 1).double(), 0 * X, SIGNS, squared, rates={"bias": 0.0}
    ).rate == float("inf")
