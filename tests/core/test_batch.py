"""Inputs in one tensor or several: what is checked, what is taken, how a module is called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regimes.core import batch
from regimes.core.error import UserError


class Named(nn.Module):
    """Returns what it was given."""

    def forward(self, left: Tensor, right: Tensor, flag: bool = False) -> tuple[Tensor, Tensor, bool]:
        return left, right, flag


X, Y = torch.arange(6.0).view(3, 2), torch.arange(3)
FORMS: list[Any] = [
    (X, Y),
    [X, Y],
    {"right": Y, "left": X},
    (X, Y, True),
    {"left": X, "right": Y, "flag": True},
]


@pytest.mark.parametrize("x", FORMS, ids=str)
def test_every_form_reaches_the_module_and_is_cut_alike(x: Any) -> None:
    batch.check(x, "x")
    assert batch.count(x) == 3
    left, right, flag = batch.feed(Named(), batch.take(x, slice(1, 3)))
    assert torch.equal(left, X[1:]) and torch.equal(right, Y[1:])
    assert flag is (len(x) == 3)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.zeros(0, 3), r"`x1`: got shape \(0, 3\), expected at least one sample"),
        (torch.zeros(()), r"`x1`: got shape \(\), expected at least one sample"),
        ("words", "`x1`: got str, expected a tensor"),
        ((), "`x1`: got tuple, expected a tensor"),
        ((X, Y[:2]), r"`x1\[1\]`: got 2 samples, expected 3, as in `x1\[0\]`"),
        ({"ids": Y, "mask": X[:1]}, r"`x1\['mask'\]`: got 1 samples, expected 3, as in `x1\['ids'\]`"),
        (torch.tensor([[0.0, 1.0], [2.0, torch.nan]]), r"`x1`: \[1, 1\] is nan"),
        ((Y, torch.tensor([0.0, -torch.inf, 0.0])), r"`x1\[1\]`: \[1\] is -inf"),
    ],
    ids=str,
)
def test_bad_inputs_are_named(x: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        batch.check(x, "x1")


def test_large_finite_numbers_are_finite() -> None:
    batch.check(torch.full((4,), 3e38), "x")


@pytest.mark.parametrize(
    ("x2", "said"),
    [
        ((X, Y, Y), r"`x2`: got tensors \[0\], \[1\], \[2\], expected \[0\], \[1\], as in `x1`"),
        ((X[:, :1], Y), r"`x2\[0\]`: got samples of shape \(1,\), expected \(2,\), as in `x1\[0\]`"),
    ],
    ids=str,
)
def test_samples_of_another_shape_are_named(x2: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        batch.same_samples((X, Y), x2)
