"""Losses by their formulas, and the margins that end a run."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from regimes.core.error import UserError
from regimes.core.loss import LOSSES, CrossEntropy, Hinge, Loss, SoftHinge, Squared, soft_hinge

BINARY = [Squared(), Hinge(), SoftHinge(), SoftHinge(3.0), CrossEntropy()]


def binary(loss: Loss, f: Tensor, y: Tensor) -> Tensor:
    """The formula."""
    match loss:
        case Squared():
            return (f - y) ** 2 / 2
        case Hinge():
            return torch.maximum(torch.zeros(()), 1 - f * y)
        case SoftHinge(beta):
            return torch.logaddexp(torch.zeros((), dtype=f.dtype), beta * (1 - f * y)) / beta
        case _:
            return torch.logaddexp(torch.zeros((), dtype=f.dtype), -f * y)


def samples() -> tuple[Tensor, Tensor]:
    f = torch.cat(
        [torch.randn(40, dtype=torch.float64) * 3, torch.tensor([0.0, 1.0, -1.0, 50.0, -50.0, 1e4])]
    )
    return f, torch.where(torch.arange(len(f)) % 2 == 0, 1.0, -1.0).double()


@pytest.mark.parametrize("loss", BINARY, ids=repr)
def test_binary_losses_are_their_formulas(loss: Loss) -> None:
    f, y = samples()
    torch.testing.assert_close(loss.per_sample(f[:, None], y), binary(loss, f, y), rtol=1e-12, atol=1e-15)
    members = torch.stack([f, 2 * f])[..., None]
    torch.testing.assert_close(loss.per_sample(members, y)[1], binary(loss, 2 * f, y), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("loss", BINARY, ids=repr)
def test_gradients_are_those_of_the_formulas(loss: Loss) -> None:
    """Also at F = 0, where a centred network starts, and at the margin."""
    f, y = samples()
    keep = torch.ones_like(f, dtype=torch.bool) if not isinstance(loss, Hinge) else f * y != 1
    found = []
    for function in (lambda f: loss.per_sample(f[:, None], y), lambda f: binary(loss, f, y)):
        leaf = f.clone().requires_grad_()
        found.append(torch.autograd.grad(function(leaf).sum(), leaf)[0][keep])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", BINARY, ids=repr)
def test_slopes_are_gradients(loss: Loss) -> None:
    """Of one network and of members; also without a graph."""
    f, y = samples()
    members = torch.stack([f, 2 * f])[..., None]
    leaf = members.clone().requires_grad_()
    wanted = torch.autograd.grad(loss.per_sample(leaf, y).sum(), leaf)[0]
    with torch.no_grad():
        torch.testing.assert_close(loss.slope(members, y), wanted, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(loss.slope(members[0], y), wanted[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sample_far_beyond_its_margin_costs_nothing(dtype: torch.dtype) -> None:
    """No product with its slope is a subnormal number: the slope is 0, or not small enough for that."""
    f = torch.linspace(-50, 50, 2001, dtype=dtype)[:, None]
    slopes = soft_hinge.slope(f, torch.ones(2001, dtype=dtype)).abs()
    least = torch.finfo(dtype).eps ** 3
    assert bool(((slopes == 0) | (slopes > least / 2)).all()) and bool((slopes[f <= 1] >= 0.5).all())


def test_the_slope_of_the_smooth_losses_at_their_kinks() -> None:
    for loss, f, slope in ((CrossEntropy(), 0.0, -0.5), (SoftHinge(), 1.0, -0.5), (SoftHinge(), 0.0, -1.0)):
        leaf = torch.tensor([[f]], dtype=torch.float64, requires_grad=True)
        value = loss.per_sample(leaf, torch.ones(1, dtype=torch.float64)).sum()
        (g,) = torch.autograd.grad(value, leaf)
        assert float(g) == pytest.approx(slope, rel=1e-8)


def test_classes_are_those_of_torch() -> None:
    f = torch.randn(2, 30, 4, dtype=torch.float64)
    y = torch.arange(30) % 4
    for k in range(2):
        torch.testing.assert_close(
            CrossEntropy().per_sample(f, y)[k], functional.cross_entropy(f[k], y, reduction="none")
        )
        hot = functional.one_hot(y, 4)
        torch.testing.assert_close(Squared().per_sample(f, y)[k], ((f[k] - hot) ** 2).sum(1) / 2)


def test_margins() -> None:
    f = torch.tensor([[0.999], [1.0], [-1.0], [5.0]], dtype=torch.float64)
    y = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    for loss in (Hinge(), SoftHinge(), CrossEntropy()):
        assert loss.fits(f, y).tolist() == [False, True, True, False]
    assert Squared(1e-3).fits(f, y).tolist() == [True, True, True, False]
    assert Squared(1e-8).fits(f, y).tolist() == [False, True, True, False]
    classes = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.1, 0.0], [0.0, 3.0, 0.0]], dtype=torch.float64)
    assert CrossEntropy().fits(classes, torch.tensor([0, 0, 0])).tolist() == [True, False, False]
    assert CrossEntropy().fits(classes, torch.tensor([0, 0, 1])).tolist() == [True, False, True]


def test_the_soft_hinge_is_the_hinge_where_it_is_sharp() -> None:
    f, y = samples()
    distance = (SoftHinge(1e4).per_sample(f[:, None], y) - Hinge().per_sample(f[:, None], y)).abs().max()
    assert float(distance) <= math.log(2) / 1e4 + 1e-12


def test_bits_do_not_depend_on_the_place_of_an_entry() -> None:
    f, y = samples()
    whole = soft_hinge.per_sample(f[:, None], y)
    for shift in range(1, 9):
        assert torch.equal(soft_hinge.per_sample(f[shift:, None].clone(), y[shift:]), whole[shift:])


def test_losses_by_name() -> None:
    assert set(LOSSES) == {"squared", "hinge", "soft-hinge", "cross-entropy"}
    assert LOSSES["soft-hinge"] == SoftHinge(20.0) and Squared() == LOSSES["squared"]


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_targets_of_another_shape_or_kind_are_never_broadcast(loss: Loss) -> None:
    one, three = torch.ones(5, 1), torch.ones(2, 5, 3)
    y, classes = torch.ones(5), torch.zeros(5, dtype=torch.int64)
    wrong = ((one, y[:, None]), (one, y[:1]), (one, classes), (three, y), (three, classes[:, None]), (y, y))
    for outputs, targets in wrong:
        for ask in (loss.per_sample, loss.fits):
            with pytest.raises(UserError, match="`targets`: got torch"):
                ask(outputs, targets)
