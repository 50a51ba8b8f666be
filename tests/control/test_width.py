"""The laws of width: how large things are, and how far they move, against width."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from regimes import control, models, train
from regimes.core.error import UserError
from regimes.core.layer import Linear, Scaling
from regimes.core.loss import squared
from tests.train.plain import task

WIDTHS = (32, 64, 128, 256, 512)
SEEDS = range(4)


def slope(sizes: Tensor) -> float:
    """The exponent of a size against width."""
    h = torch.tensor(WIDTHS, dtype=torch.float64).log()
    centred = h - h.mean()
    return float((centred * sizes.log()).sum() / centred.square().sum())


@cache
def exponents(law: str) -> dict[str, float]:
    """Exponents of the size of pre-activations and outputs, and of their change over the first steps."""
    x, y = task(20, 10)
    rows = []
    # under the standard law the second step is one of a flow that has blown up already
    steps = 1 if law == "standard" else 3
    for h in WIDTHS:
        squares = torch.zeros(5, dtype=torch.float64)
        for seed in SEEDS:
            net = models.mlp(10, h, 2, law=control.law(law), seed=seed)
            run = train.descent(control.scale(net, 1.0), x, y, loss=squared, lr=0.1, steps=steps)
            after = list(run)[-1].materialize().get_submodule("network")
            with torch.no_grad():
                pairs = [(net[:1], after[:1]), (net[:3], after[:3]), (net, after)]  # pyright: ignore[reportIndexIssue]
                size = [net[:3](x), net(x)]
                change = [moved(x) - start(x) for start, moved in pairs]
            squares += torch.stack([each.square().mean() for each in (*size, *change)])
        rows.append((squares / len(SEEDS)).sqrt())
    names = ("z2", "f", "change of z1", "change of z2", "change of F")
    return {name: slope(sizes) for name, sizes in zip(names, torch.stack(rows).T, strict=True)}


EXPONENTS = [
    # law, quantity, exponent of h
    ("ntk", "z2", 0.0),
    ("ntk", "f", 0.0),
    ("ntk", "change of z1", -0.5),
    ("ntk", "change of z2", -0.5),
    ("ntk", "change of F", 0.0),
    ("mean-field", "z2", 0.0),
    ("mean-field", "f", -0.5),
    ("mean-field", "change of z1", 0.0),
    ("mean-field", "change of z2", 0.0),
    ("mean-field", "change of F", 0.0),
    ("mup", "z2", 0.0),
    ("mup", "f", -0.5),
    ("mup", "change of z1", 0.0),
    ("mup", "change of z2", 0.0),
    ("mup", "change of F", 0.0),
    ("standard", "z2", 0.0),
    ("standard", "f", 0.0),
    ("standard", "change of z2", 0.5),
    ("standard", "change of F", 1.0),
]


@pytest.mark.parametrize(("law", "quantity", "exponent"), EXPONENTS)
def test_coordinate_check(law: str, quantity: str, exponent: float) -> None:
    """At alpha = 1: features stand under NTK, move under mean-field and muP; standard outputs blow up."""
    assert exponents(law)[quantity] == pytest.approx(exponent, abs=0.15)


@pytest.mark.parametrize("law", list(control.LAWS))
@pytest.mark.parametrize("sigma", ["softplus", "relu", "tanh"])
def test_preactivations_have_variance_one_at_every_width(law: str, sigma: str) -> None:
    """Layers divided by h instead of sqrt(h) would move the boundary of the regimes to another power of h."""
    x = torch.randn(200, 50, dtype=torch.float64)
    x = x / x.norm(dim=1, keepdim=True) * math.sqrt(50)
    for width in (16, 64, 256, 1024):
        seeds = range(max(2, 512 // width))
        nets = [models.mlp(50, width, 3, law=control.law(law), activation=sigma, seed=s) for s in seeds]
        for depth in (1, 3, 5):
            with torch.no_grad():
                z = torch.stack([net[:depth](x) for net in nets])
            # softplus has a mean, so that entries of one network are correlated: 512 units give about 10 %
            assert float(z.square().mean()) == pytest.approx(1.0, abs=0.25), (width, depth)


@pytest.mark.parametrize("law", list(control.LAWS))
def test_the_table_of_the_docstring(law: str) -> None:
    d, h = 6, 40
    wanted = {
        "ntk": [(d**-0.5, 1, 1), (h**-0.5, 1, 1), (h**-0.5, 1, 1)],
        "standard": [(1, d**-0.5, 1), (1, h**-0.5, 1), (1, h**-0.5, 1)],
        "mean-field": [(d**-0.5, 1, h), (h**-0.5, 1, h), (1 / h, 1, h)],
        "mup": [(1, d**-0.5, h / d), (1, h**-0.5, 1), (1, 1 / h, 1 / h)],
    }[law]
    net = models.mlp(d, h, 2, law=control.law(law))
    for scaling, row in zip(control.table(net).values(), wanted, strict=True):
        assert (scaling.multiplier, scaling.std, scaling.rate) == pytest.approx(row)


@pytest.mark.parametrize(("one", "other"), [("ntk", "standard"), ("mean-field", "mup")])
def test_the_same_seed_is_the_same_function(one: str, other: str) -> None:
    """What is a multiplier in one law is in the weights of the other."""
    x = torch.randn(7, 6, dtype=torch.float64)
    pair = [models.mlp(6, 20, 3, law=control.law(name), seed=4)(x) for name in (one, other)]
    torch.testing.assert_close(*pair, rtol=1e-12, atol=1e-12)


def test_ntk_is_mean_field_times_the_root_of_the_width() -> None:
    x = torch.randn(7, 6, dtype=torch.float64)
    ntk, field = (models.mlp(6, 25, 2, law=control.law(name), seed=4)(x) for name in ("ntk", "mean-field"))
    torch.testing.assert_close(ntk, 5 * field, rtol=1e-12, atol=1e-12)


def test_rates_by_parameter() -> None:
    net = models.mlp(6, 40, 2, law=control.MEAN_FIELD, bias=True)
    found = control.rates(net)
    assert list(found) == [name for name, _ in net.named_parameters()]
    assert found["2.weight"] == found["0.bias"] == found["2.bias"] == 40
    assert found["4.bias"] == 1
    assert set(control.rates(torch.nn.Linear(3, 2)).values()) == {1.0}
    assert control.table(torch.nn.Linear(3, 2)) == {}
    scaled = control.scale(models.mlp(6, 40, 1, law=control.MUP), 2.0)
    assert control.rates(scaled)["network.2.weight"] == pytest.approx(1 / 40)


def test_a_layer_of_a_user_takes_part() -> None:
    layer = Linear(3, 2, scaling=Scaling(rate=8.0, bias_rate=3.0), bias=True)
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), layer)
    assert control.rates(net) == {"0.weight": 1, "0.bias": 1, "1.weight": 8, "1.bias": 3}


def test_laws_by_name() -> None:
    assert control.law("mup") is control.MUP and set(control.LAWS) == {"ntk", "standard", "mean-field", "mup"}
    with pytest.raises(
        UserError, match=r"`name`: got 'meanfield', expected one of .*; did you mean 'mean-field'"
    ):
        control.law("meanfield")
