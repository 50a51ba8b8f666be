"""Fully connected softplus networks, written out: against autograd, without overflow, the same at every place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from regimes import control, models
from regimes.core.activation import ScaledTanh, Softplus
from regimes.core.dense import dense_of
from regimes.core.layer import Linear, aligned

F64 = torch.float64


def stacked(networks: Sequence[nn.Module]) -> dict[str, Tensor]:
    trees = [dict(network.named_parameters()) for network in networks]
    return {name: torch.stack([tree[name].detach() for tree in trees]) for name in trees[0]}


def plain(network: nn.Module, tree: dict[str, Tensor], x: Tensor) -> Tensor:
    """f(w, x) of one member by the formula, softplus by torch's."""
    for name, part in network.named_children():
        if isinstance(part, Linear):
            x = part.scaling.multiplier * x @ tree[f"{name}.weight"].T + tree.get(f"{name}.bias", 0)
        elif isinstance(part, Softplus):
            x = part.a / part.beta * functional.softplus(part.beta * x, threshold=40)
    return x


@pytest.mark.parametrize("members", [1, 2, 5])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("law", list(control.LAWS))
@pytest.mark.parametrize(("width", "depth", "outputs"), [(7, 1, 1), (16, 2, 3), (9, 3, 1), (150, 2, 1)])
def test_it_is_autograd(width: int, depth: int, outputs: int, law: str, bias: bool, members: int) -> None:
    """Outputs and gradients of a random combination of them, below and above the size of batched products."""
    x = torch.randn(96 if width == 150 else 32, 5, dtype=F64)
    networks = [
        models.mlp(5, width, depth, outputs, law=control.law(law), bias=bias, seed=seed)
        for seed in range(members)
    ]
    tree = stacked(networks)
    if bias:
        tree = {name: w + 0.1 * torch.randn_like(w) for name, w in tree.items()}
    dense = dense_of(networks[0])
    assert dense is not None
    found = dense.forward(tree, x).clone()
    g = torch.randn_like(found)
    into = {name: torch.empty_like(w) for name, w in tree.items()}
    dense.backward(tree, g, into)
    for k, network in enumerate(networks):
        leaves = {name: w[k].clone().requires_grad_() for name, w in tree.items()}
        out = plain(network, leaves, x)
        torch.testing.assert_close(found[k], out.detach(), rtol=1e-12, atol=1e-12)
        grads = torch.autograd.grad((out * g[k]).sum(), list(leaves.values()))
        for name, wanted in zip(leaves, grads, strict=True):
            size = float(wanted.abs().max())
            torch.testing.assert_close(into[name][k], wanted, rtol=1e-11, atol=1e-12 * max(1.0, size))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_member_whose_exponential_overflows_is_exact_and_alone(dtype: torch.dtype) -> None:
    """Pre-activations of thousands, of both signs, beside a member of ordinary size."""
    networks = [models.mlp(5, 8, 3, seed=seed, dtype=dtype) for seed in range(3)]
    with torch.no_grad():
        for p in networks[1].parameters():
            p.mul_(60)
    x = torch.randn(32, 5, dtype=dtype)
    tree = stacked(networks)
    dense = dense_of(networks[0])
    assert dense is not None
    found = dense.forward(tree, x).clone()
    into = {name: torch.empty_like(w) for name, w in tree.items()}
    dense.backward(tree, torch.ones_like(found), into)
    digits = 1e-12 if dtype == F64 else 1e-4
    for k, network in enumerate(networks):
        leaves = {name: w[k].clone().requires_grad_() for name, w in tree.items()}
        out = plain(network, leaves, x)
        torch.testing.assert_close(found[k], out.detach(), rtol=digits, atol=digits)
        for name, wanted in zip(leaves, torch.autograd.grad(out.sum(), list(leaves.values())), strict=True):
            size = float(wanted.abs().max())
            torch.testing.assert_close(into[name][k], wanted, rtol=digits, atol=digits * size)
    calm = {name: w[[0, 2]] for name, w in tree.items()}
    assert torch.equal(dense.forward(calm, x)[1], found[2])


def test_what_is_written_out() -> None:
    def layer(inputs: int, outputs: int) -> Linear:
        return Linear(inputs, outputs, dtype=F64)

    class Other(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return -x

    assert dense_of(nn.Sequential(layer(2, 3), Softplus(), layer(3, 1))) is not None
    others = [
        layer(2, 3),
        nn.Sequential(layer(2, 3)),
        nn.Sequential(layer(2, 3), Softplus()),
        nn.Sequential(layer(2, 3), ScaledTanh(), layer(3, 1)),
        nn.Sequential(layer(2, 3), Softplus(), Other(3, 1)),
        nn.Sequential(nn.Sequential(layer(2, 3), Softplus()), layer(3, 1)),
        models.cnn(1, 3, kernel=3),
    ]
    assert not [one for one in others if dense_of(one) is not None]


PASSES: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp,
    "log": lambda x: torch.log(x.abs() + 1),
    "quotient": lambda x: x / (x.abs() + 1),
    "product": lambda x: x * (x + 1),
    "step": lambda x: torch.addcmul(x, x + 0.3, x - 0.7, value=-1),
    "tanh": torch.tanh,
}


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", PASSES)
def test_an_entry_does_not_depend_on_where_it_lies(name: str, dtype: torch.dtype) -> None:
    """Every function of entries that members go through: the first of many, one of few, the last ones."""
    values = 3 * torch.randn(3, dtype=dtype)
    wanted = PASSES[name](values[:, None].expand(3, 64).contiguous())[:, 0]
    for length in range(1, 70):
        found = PASSES[name](values.repeat(length))
        assert torch.equal(found, wanted.repeat(length))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_samples_fill_whole_vectors(dtype: torch.dtype) -> None:
    for n in (1, 15, 16, 31, 32, 33):
        x = torch.randn(n, 3, dtype=dtype)
        padded = aligned(x)
        assert torch.equal(padded[:n], x) and not bool(padded[n:].any())
        assert len(padded) * dtype.itemsize % 128 == 0 and len(padded) - n < 128 // dtype.itemsize
    assert aligned(padded) is padded
