"""Arithmetic on named parameters, by its definition on the flat vector."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from regimes.core import tree
from tests.train.plain import AWKWARD


def trees() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    def one() -> dict[str, Tensor]:
        return {"a.weight": torch.randn(3, 2), "a.bias": torch.randn(3), "b": torch.randn(())}

    return one(), one()


def flat(a: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.reshape(-1) for value in a.values()])


def test_the_operations_are_those_of_the_flat_vector() -> None:
    a, b = trees()
    torch.testing.assert_close(flat(tree.add(a, b)), flat(a) + flat(b))
    torch.testing.assert_close(flat(tree.sub(a, b)), flat(a) - flat(b))
    torch.testing.assert_close(flat(tree.scale(a, 3.0)), 3 * flat(a))
    torch.testing.assert_close(tree.dot(a, b), flat(a) @ flat(b))
    torch.testing.assert_close(tree.norm(a), flat(a).norm())
    torch.testing.assert_close(tree.norm(a).square(), tree.dot(a, a))


@pytest.mark.parametrize("name", AWKWARD)
def test_a_layout_joins_and_splits(name: str) -> None:
    module = AWKWARD[name](0)
    layout = tree.Layout.of(module)
    named = tree.trainable(module)
    vector = layout.join(named)
    assert vector.shape == (layout.total,) == (sum(p.numel() for p in named.values()),)
    assert list(layout.split(vector)) == list(named)
    assert all(torch.equal(value, named[key]) for key, value in layout.split(vector).items())
    stacked = layout.split(torch.stack([vector, 2 * vector]))
    assert all(torch.equal(value[1], 2 * named[key]) for key, value in stacked.items())


def test_a_flat_vector_is_seen_through_views() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    layout = tree.Layout.of(module)
    flat = tree.Flat(layout, torch.cat([layout.join(tree.trainable(module)), torch.zeros(5)]))
    assert list(flat) == [name for name, _ in module.named_parameters()] and len(flat) == 4
    assert all(torch.equal(flat[name], p) for name, p in module.named_parameters())
    flat["2.bias"].fill_(7.0)
    assert float(flat.vector[layout.total - 1]) == 7.0
    assert flat["0.weight"].data_ptr() == flat.vector.data_ptr()
    with pytest.raises(KeyError):
        flat["nothing"]


def test_only_what_trains_counts_and_a_tied_parameter_once() -> None:
    module = AWKWARD["tied"](0)
    assert list(tree.trainable(module)) == [
        "first.weight",
        "first.bias",
        "second.bias",
        "out.weight",
        "out.bias",
    ]
    assert "0.weight" not in tree.trainable(AWKWARD["frozen"](0))


def test_owners_and_layers() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 1)))
    module.register_parameter("own", nn.Parameter(torch.zeros(1)))
    assert tree.owners(module) == {
        "own": "",
        "0.weight": "0",
        "0.bias": "0",
        "1.0.weight": "1.0",
        "1.0.bias": "1.0",
    }
    layers = tree.by_layer(tree.trainable(module))
    assert {owner: list(group) for owner, group in layers.items()} == {
        "": ["own"],
        "0": ["0.weight", "0.bias"],
        "1.0": ["1.0.weight", "1.0.bias"],
    }
