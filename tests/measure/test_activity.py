"""Which parameters and layers move, against plain loops over the parameters."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from regimes import control, measure, models
from regimes.core.error import UserError
from regimes.core.state import State
from regimes.measure.activity import RelativeTo

Trees = tuple[dict[str, Tensor], dict[str, Tensor]]
KINDS: tuple[RelativeTo, ...] = ("layer", "itself", "nothing")


def pair(seed: int, coarse: bool = False) -> Trees:
    """w and w0 of three layers, one with an empty parameter; coarse ones have many ties and zeros."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (3, 4), "a.bias": (3,), "b.weight": (2, 3), "b.none": (0, 3), "c": ()}
    start = {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}
    steps = {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}
    if coarse:
        start, steps = ({name: value.round() for name, value in tree.items()} for tree in (start, steps))
    return {name: start[name] + steps[name] for name in start}, start


def entries(tree: dict[str, Tensor]) -> list[tuple[str, float]]:
    """Every number with the name of its layer."""
    return [
        (name.rpartition(".")[0], each) for name, value in tree.items() for each in value.reshape(-1).tolist()
    ]


def plain(
    now: dict[str, Tensor], start: dict[str, Tensor], kind: RelativeTo
) -> list[tuple[str, float, float]]:
    """Layer, change and relative change of every parameter, one after another."""
    scales: dict[str, float] = {}
    for layer in {layer for layer, _ in entries(start)}:
        inside = [value for owner, value in entries(start) if owner == layer]
        scales[layer] = math.sqrt(sum(value**2 for value in inside) / len(inside))
    found = []
    for (layer, end), (_, value) in zip(entries(now), entries(start), strict=True):
        change = abs(end - value)
        by = {"layer": scales[layer], "itself": abs(value), "nothing": 1.0}[kind]
        found.append((layer, change, 0.0 if change == 0 else change / by if by else math.inf))
    return found


def chosen(found: measure.ActiveSet) -> list[bool]:
    return [bool(each) for mask in found.masks.values() for each in mask.reshape(-1)]


@given(st.integers(0, 99), st.booleans(), st.sampled_from(KINDS))
def test_changes_are_those_of_a_plain_loop(seed: int, coarse: bool, kind: RelativeTo) -> None:
    now, start = pair(seed, coarse)
    found, expected = measure.activity(now, start), plain(now, start, kind)
    assert [c for v in found.absolute.values() for c in v.reshape(-1).tolist()] == [c for _, c, _ in expected]
    relative = [c for value in found.relative(kind).values() for c in value.reshape(-1).tolist()]
    assert relative == pytest.approx([c for _, _, c in expected])
    whole = sum(c**2 for _, c, _ in expected)
    assert found.total == len(expected) and list(found.layers) == ["a", "b", ""]
    for name, layer in found.layers.items():
        inside = [c for owner, c, _ in expected if owner == name]
        size = math.sqrt(sum(value**2 for owner, value in entries(start) if owner == name))
        assert layer.count == len(inside) and layer.share == len(inside) / len(expected)
        assert layer.scale == pytest.approx(size / math.sqrt(len(inside)))
        assert layer.absolute == pytest.approx(math.hypot(*inside))
        assert layer.moved == pytest.approx(sum(c**2 for c in inside) / whole)
        if size:
            assert layer.relative == pytest.approx(math.hypot(*inside) / size)
    fourth = sum(c**4 for _, c, _ in expected)
    assert found.participation == pytest.approx(whole**2 / fourth / len(expected))


@given(st.integers(0, 99), st.booleans(), st.sampled_from(KINDS), st.floats(0, 3))
def test_what_is_above_a_threshold(seed: int, coarse: bool, kind: RelativeTo, threshold: float) -> None:
    now, start = pair(seed, coarse)
    found, expected = measure.activity(now, start).above(threshold, relative_to=kind), plain(now, start, kind)
    for inside, (_, _, change) in zip(chosen(found), expected, strict=True):
        assert inside == (change > threshold) or change == pytest.approx(threshold)
    check_shares(found, expected)


def check_shares(found: measure.ActiveSet, expected: list[tuple[str, float, float]]) -> None:
    """Counts, share of the movement and enrichment are those of the masks, and add up."""
    picked = [one for one, inside in zip(expected, chosen(found), strict=True) if inside]
    assert found.count == len(picked) and found.share == len(picked) / len(expected)
    whole = sum(c**2 for _, c, _ in expected)
    assert found.moved == pytest.approx(sum(c**2 for _, c, _ in picked) / whole)
    weights = {name: layer.share for name, layer in found.changes.layers.items()}
    for name, value in found.enrichment.items():
        own = [layer for layer, _, _ in picked if layer == name]
        assert found.counts[name] == len(own)
        if picked:
            assert value == pytest.approx(len(own) / len(picked) / weights[name])
    if picked:
        assert sum(value * weights[name] for name, value in found.enrichment.items()) == pytest.approx(1)
    else:
        assert all(math.isnan(value) for value in found.enrichment.values())
    layers = found.changes.layers.values()
    assert sum(layer.moved for layer in layers) == pytest.approx(1)
    assert sum(layer.share for layer in layers) == pytest.approx(1)


@given(st.integers(0, 99), st.booleans(), st.sampled_from(KINDS), st.floats(0, 1))
def test_the_top_and_the_bottom_have_their_size_whatever_the_ties(
    seed: int, coarse: bool, kind: RelativeTo, share: float
) -> None:
    now, start = pair(seed, coarse)
    changes, expected = measure.activity(now, start), plain(now, start, kind)
    wanted = max(math.floor(share * len(expected) + 0.5), 1) if share else 0
    values = [c for v in changes.relative(kind).values() for c in v.reshape(-1).tolist()]
    for found, sign in (
        (changes.top(share, relative_to=kind), -1),
        (changes.bottom(share, relative_to=kind), 1),
    ):
        # Python's sort is stable: of equal ones the first are taken.
        order = sorted(range(len(values)), key=lambda i, sign=sign: sign * values[i])[:wanted]
        assert chosen(found) == [i in order for i in range(len(values))]
        assert found.count == wanted and found.relative_to == kind
    check_shares(changes.top(share, relative_to=kind), expected)


@given(st.integers(0, 99), st.permutations(["a.weight", "a.bias", "b.weight", "b.none", "c"]))
def test_names_and_order_of_layers_do_not_matter(seed: int, order: list[str]) -> None:
    now, start = pair(seed)
    names = {"a.weight": "x.y.one", "a.bias": "x.y.two", "b.weight": "z.one", "b.none": "z.two", "c": "c"}
    there = measure.activity(*({names[name]: tree[name] for name in order} for tree in (now, start)))
    here = measure.activity(now, start)
    assert there.participation == pytest.approx(here.participation)
    for old, new in {"a": "x.y", "b": "z", "": ""}.items():
        assert vars(there.layers[new]) == pytest.approx(vars(here.layers[old]))
        for one, other in ((there.top(0.2), here.top(0.2)), (there.above(0.5), here.above(0.5))):
            assert one.enrichment[new] == pytest.approx(other.enrichment[old])


@given(st.integers(0, 99), st.floats(0.01, 100))
def test_relative_changes_do_not_depend_on_the_units(seed: int, factor: float) -> None:
    now, start = pair(seed)
    scaled = measure.activity(*({name: factor * v for name, v in tree.items()} for tree in (now, start)))
    bare = measure.activity(now, start)
    for kind in ("layer", "itself"):
        for name, value in bare.relative(kind).items():
            assert torch.allclose(scaled.relative(kind)[name], value)
    for name, layer in bare.layers.items():
        assert scaled.layers[name].relative == pytest.approx(layer.relative)
        assert scaled.layers[name].absolute == pytest.approx(factor * layer.absolute)


def test_from_zero_and_to_where_it_was() -> None:
    zero, one = torch.zeros(2), torch.tensor([0.0, 1.0])
    found = measure.activity({"a.b": one, "c.d": one}, {"a.b": zero, "c.d": one})
    assert found.layers["a"].relative == math.inf and found.layers["c"].relative == 0
    assert found.relative()["a.b"].tolist() == [0.0, math.inf]
    assert chosen(found.top(0.25)) == chosen(found.above(1e9)) == [False, True, False, False]
    still = measure.activity({"a": one}, {"a": one})
    assert math.isnan(still.participation) and math.isnan(still.layers[""].moved)
    assert still.above(0).count == 0 and math.isnan(still.above(0).moved) and still.top(0.5).count == 1


def test_large_and_small_numbers() -> None:
    for size in (1e-200, 1e200):
        start = {"a.w": torch.full((3,), size, dtype=torch.float64), "b.w": torch.ones(1)}
        found = measure.activity({**start, "a.w": start["a.w"] * torch.tensor([1, 2, 3])}, start)
        assert found.layers["a"].relative == pytest.approx(math.sqrt(5 / 3))
        assert found.layers["a"].moved == pytest.approx(1)
        assert found.participation == pytest.approx(25 / (17 * 4))


def test_in_double_precision_and_of_complex_and_mixed_parameters() -> None:
    start = {
        "a.half": torch.full((4,), 0.1, dtype=torch.bfloat16),
        "a.complex": torch.tensor([1 + 1j, 0]),
        "b.double": torch.ones(2, dtype=torch.float64),
        "b.count": torch.tensor([3]),
    }
    end = {
        "a.half": torch.full((4,), 0.3, dtype=torch.bfloat16),
        "a.complex": torch.tensor([4 + 5j, 0]),
        "b.double": torch.ones(2, dtype=torch.float64) + 1e-12,
        "b.count": torch.tensor([4]),
    }
    found = measure.activity(end, start)
    assert found.total == 8 and set(found.absolute) == {"a.half", "a.complex", "b.double"}
    half = float(end["a.half"][0]) - float(start["a.half"][0])
    assert found.layers["a"].absolute == pytest.approx(math.sqrt(4 * half**2 + 25), rel=1e-12)
    assert found.absolute["a.complex"].tolist() == [5.0, 0.0]
    assert found.layers["b"].absolute == pytest.approx(math.sqrt(2) * 1e-12, rel=1e-3)


def test_what_is_not_finite_is_told() -> None:
    one = {"a.w": torch.ones(2), "b": torch.ones(1)}
    for bad in (math.nan, math.inf, complex(0, math.nan)):
        lost = {**one, "a.w": torch.tensor([1, bad])}
        with pytest.raises(UserError, match=r"`parameters`: 'a.w': \[1\] is .*(nan|inf).*, expected finite"):
            measure.activity(lost, one)
        with pytest.raises(UserError, match=r"`origin`: 'a.w': \[1\] is"):
            measure.activity(one, lost)


def test_names_the_mistake() -> None:
    one = torch.ones(1)
    cases: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("`origin`: 'b' is in `origin` alone", {"a": one}, {"a": one, "b": one}),
        (r"'a' has shape \(1,\), expected \(3,\)", {"a": torch.ones(3)}, {"a": one}),
        ("hold no parameters", {}, {}),
        ("`parameters`: hold no numbers", {"a": torch.ones(0)}, {"a": torch.ones(0)}),
    ]
    for message, now, start in cases:
        with pytest.raises(UserError, match=message):
            measure.activity(now, start)
    changes = measure.activity({"a": one}, {"a": one})
    odd: Any = "layers"
    for message, call in (
        ("`threshold`: got -1", lambda: changes.above(-1)),
        ("`share`: got 2", lambda: changes.top(2)),
        ("`share`: got -0.1", lambda: changes.bottom(-0.1)),
        (
            "`relative_to`: got 'layers', expected one of .*did you mean 'layer'",
            lambda: changes.above(relative_to=odd),
        ),
        ("`threshold`: got -1", lambda: measure.Activity(threshold=-1)),
        ("`share`: got 0", lambda: measure.Activity(share=0)),
    ):
        with pytest.raises(UserError, match=message):
            call()


class Tied(nn.Module):
    """An embedding that is also the head, a batch norm, a frozen layer, and a list of layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.base = nn.Linear(3, 3).requires_grad_(False)
        self.head = nn.Linear(3, 5)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.base(self.norm(self.embed(x))))


def test_of_a_module_with_buffers_frozen_and_tied_parameters() -> None:
    torch.manual_seed(0)
    net = Tied()
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.arange(5)).square().sum().backward()
    optimizer.step()
    for now in (net.state_dict(), dict(net.named_parameters())):
        found = measure.activity(now, before, module=net)
        assert found.layers.keys() == {"embed", "norm", "head"} and found.total == 15 + 6 + 5
        probe = measure.Activity().look(State(net, now, before))
        assert probe["layer_moved"] == [layer.moved for layer in found.layers.values()]
    same = measure.activity(net.state_dict(), before, module=net)
    assert same.layers == found.layers
    for p in net.parameters():
        p.data.mul_(2)  # what was measured stays as it was
    assert same.layers == found.layers and same.top(0.2).counts == found.top(0.2).counts


def test_of_scaled_and_linearised_modules() -> None:
    for wrap in (lambda net: control.scale(net, 10.0), control.linearize):
        net = wrap(models.mlp(3, 4, 1, seed=0))
        before = copy.deepcopy(net.state_dict())
        with torch.no_grad():
            for p in net.parameters():
                if p.requires_grad:
                    p.mul_(1.5)
        found = measure.activity(net.state_dict(), before, module=net)
        assert [layer.relative for layer in found.layers.values()] == pytest.approx([0.5, 0.5])
        assert measure.Activity().look(State.of(net, before))["layer_change"] == pytest.approx([0.5, 0.5])


def test_a_probe_gives_the_columns_that_it_declares() -> None:
    state = State.of(models.mlp(3, 4, 2, bias=True, seed=0))
    moved = replace(state, parameters={name: p + i for i, (name, p) in enumerate(state.parameters.items())})
    probe = measure.Activity(threshold=0.5, share=0.1, relative_to="nothing")
    for one in (state, moved, replace(state, parameters={n: p * math.nan for n, p in state.origin.items()})):
        found = probe.look(one)
        assert found.keys() == probe.columns.keys()
        lists = {name for name, kind in probe.columns.items() if kind is not float}
        assert lists == {"layer_change", "layer_enrichment", "layer_moved", "layer_share"}
        assert all(
            len(value) == 3 for name, value in found.items() if name in lists and isinstance(value, list)
        )
    changes = measure.activity(moved.parameters, moved.origin)
    values = probe.look(moved)
    top = changes.top(0.1, relative_to="nothing")
    assert values["active"] == changes.above(0.5, relative_to="nothing").share
    assert values["top_moved"] == top.moved and values["layer_enrichment"] == list(top.enrichment.values())
    assert values["unmoved"] == 1 and values["participation"] == changes.participation
    every = sorted(c for v in changes.absolute.values() for c in v.reshape(-1).tolist())
    assert values["median_change"] == every[(len(every) - 1) // 2]


def test_a_diverged_member_has_nan_and_shares() -> None:
    state = State.of(models.mlp(3, 4, 1, seed=0))
    lost = replace(state, parameters={name: p * math.nan for name, p in state.origin.items()})
    found, there = measure.Activity().look(lost), measure.Activity().look(state)
    for name, value in found.items():
        numbers = value if isinstance(value, list) else [value]
        assert value == there[name] if name == "layer_share" else all(map(math.isnan, numbers))


def test_printed_it_is_a_line_for_each_layer() -> None:
    before = {"a.weight": torch.ones(2, 2), "a.bias": torch.ones(2), "head.weight": torch.ones(4)}
    after = {
        "a.weight": torch.full((2, 2), 1.5),
        "a.bias": torch.full((2,), 1.5),
        "head.weight": torch.ones(4),
    }
    found = measure.activity(after, before)
    assert [line.split() for line in str(found).splitlines()] == [
        ["layer", "parameters", "share", "change", "movement"],
        ["a", "6", "60.0%", "0.5", "100.0%"],
        ["head", "4", "40.0%", "0", "0.0%"],
    ]
    assert "tensor" not in repr(found)
