"""The tangent kernel against its definition, over modules that invite mistakes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from regimes import control, measure, models
from regimes.core.error import UserError
from regimes.core.state import State
from regimes.measure.kernel import tiles
from regimes.measure.kernel.rules import Reduce
from regimes.measure.kernel.trace import Network, plan
from tests import reference
from tests.measure.awkward import F64, MODULES, D, build
from tests.properties import assert_close, assert_psd, assert_symmetric

REDUCTIONS: tuple[Reduce, ...] = ("full", "diagonal", "trace")


def inputs(n: int = 5) -> Tensor:
    return torch.randn(n, D, dtype=F64, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("name", MODULES)
def test_equals_the_definition(name: str, reduce: Reduce) -> None:
    module, x1, x2 = build(name), inputs(5), inputs(3)
    for other in (None, x2):
        found = measure.ntk(module, x1, other, reduce=reduce, by_layer=True)
        expected = reference.kernel(module, x1, x1 if other is None else other, reduce)
        assert list(found) == list(expected)
        for owner, part in expected.items():
            assert_close(found[owner], part)
        assert_close(measure.ntk(module, x1, other, reduce=reduce), sum(expected.values(), torch.zeros(())))


@pytest.mark.parametrize("memory", [1, 5_000])
@pytest.mark.parametrize("name", ["mlp with biases and outputs", "images", "tied", "scaled"])
def test_does_not_depend_on_memory(name: str, memory: int) -> None:
    module = build(name)
    for other in (None, inputs(3)):
        whole = measure.ntk(module, inputs(4), other)
        assert_close(measure.ntk(module, inputs(4), other, memory=memory), whole)


@pytest.mark.parametrize("reduce", ["diagonal", "trace"])
def test_does_not_depend_on_memory_when_reduced(reduce: Reduce) -> None:
    module = build("mlp with biases and outputs")
    whole = measure.ntk(module, inputs(7), reduce=reduce)
    assert_close(measure.ntk(module, inputs(7), reduce=reduce, memory=3_000), whole)


def test_memory_bounds_the_jacobian(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    jacobian = tiles.jacobian

    def weighed(*args: Any, **kwargs: Any) -> dict[str, Tensor]:
        rows = jacobian(*args, **kwargs)
        sizes.append(sum(row.numel() * row.element_size() for row in rows.values()))
        return rows

    monkeypatch.setattr(tiles, "jacobian", weighed)
    measure.ntk(build("images"), inputs(40), memory=40_000)
    assert sizes and max(sizes) <= 40_000


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 6), width=st.integers(1, 6), depth=st.integers(1, 3), outputs=st.integers(1, 3),
    bias=st.booleans(), seed=st.integers(0, 99), reduce=st.sampled_from(REDUCTIONS),
)  # fmt: skip
def test_properties(
    n: int, width: int, depth: int, outputs: int, bias: bool, seed: int, reduce: Reduce
) -> None:
    module = models.mlp(D, width, depth, outputs, bias=bias, seed=seed)
    x = torch.randn(n, D, dtype=F64, generator=torch.Generator().manual_seed(seed))
    k = measure.ntk(module, x, reduce=reduce)
    assert_symmetric(k)
    assert_psd(k)
    parts = measure.ntk(module, x, reduce=reduce, by_layer=True)
    assert_close(torch.stack(list(parts.values())).sum(0), k)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert_close(measure.ntk(module, x[order], reduce=reduce), k[order][:, order])
    assert_close(measure.ntk(module, x, x[:2], reduce=reduce), k[:, :2])
    full = measure.ntk(module, x)
    diagonal = full.diagonal(dim1=2, dim2=3)
    assert_close(measure.ntk(module, x, reduce="diagonal"), diagonal)
    assert_close(measure.ntk(module, x, reduce="trace"), diagonal.mean(-1))


def test_scales_with_alpha_squared() -> None:
    network = models.mlp(D, 5, 2)
    k = measure.ntk(network, inputs())
    assert_close(measure.ntk(control.scale(network, 100.0), inputs()), 1e4 * k)


@pytest.mark.parametrize("name", ["mlp", "scaled", "tied", "two paths", "images"])
def test_takes_the_parameters_of_a_state(name: str) -> None:
    module = build(name)
    origin = {key: p.detach().clone() for key, p in module.named_parameters() if p.requires_grad}
    moved = {key: p + torch.randn_like(p) for key, p in origin.items()}
    found = measure.ntk(module, inputs(), parameters=moved)
    for key, p in module.named_parameters():
        assert not p.requires_grad or torch.equal(p, origin[key]), "the module has changed"
        if p.requires_grad:
            p.data.copy_(moved[key])
    assert_close(found, measure.ntk(module, inputs()))
    state = State.of(module, origin)
    assert_close(measure.ntk(module, inputs(), parameters=state.parameters), found)


def test_layers_that_can_go_by_rule_do() -> None:
    def by_rule(name: str) -> set[str]:
        module = build(name)
        named = dict(module.named_parameters())
        network = Network(module, named, tuple(key for key, p in named.items() if p.requires_grad))
        return set(plan(network, inputs(2))[0])

    assert by_rule("mlp") == {"0", "2", "4"}
    assert by_rule("in place") == {"a", "b", "out"}
    assert by_rule("partly frozen") == {"0", "2", "5"}
    assert by_rule("images") == {"5"}
    assert by_rule("tied") == by_rule("reused") == by_rule("functional") == {"out"}
    assert by_rule("flipped") == {"out"}


def test_leaves_no_trace_on_the_module() -> None:
    module = build("two paths")
    before = {name: id(p) for name, p in module.named_parameters(remove_duplicate=False)}
    measure.ntk(module, inputs())
    assert before == {name: id(p) for name, p in module.named_parameters(remove_duplicate=False)}
    assert all(p.grad is None for p in module.parameters())
    assert not any(m._forward_hooks for m in module.modules())


def test_works_where_gradients_are_off_and_gives_no_graph() -> None:
    module = build("images")
    expected = measure.ntk(module, inputs())
    with torch.no_grad():
        assert_close(measure.ntk(module, inputs()), expected)
    with torch.inference_mode():
        assert_close(measure.ntk(module, inputs()), expected)
    assert not expected.requires_grad


def test_keeps_the_precision_of_the_module() -> None:
    module = models.mlp(D, 5, 2, dtype=torch.float32)
    k = measure.ntk(module, inputs().float())
    assert k.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(measure.ntk(module, inputs().float()), k)


def test_on_each_device(device: torch.device) -> None:
    for name in ("mlp with biases and outputs", "images", "scaled"):
        module, expected = build(name), measure.ntk(build(name), inputs())
        assert_close(measure.ntk(module.to(device), inputs().to(device)).cpu(), expected, 1e-10)


def test_inputs_may_be_whole_numbers() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 1)).to(F64)
    x = torch.tensor([[0, 1], [1, 4], [2, 2]])
    assert_close(measure.ntk(module, x), sum(reference.kernel(module, x, x).values(), torch.zeros(())))


def test_large_finite_inputs_are_no_mistake() -> None:
    measure.ntk(nn.Linear(2, 1).double(), torch.full((2, 2), 1e308, dtype=F64))


class Drops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(D, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(nn.functional.dropout(x, 0.5))


def shaped(*shape: int) -> nn.Module:
    return nn.Sequential(nn.Linear(D, math.prod(shape)), nn.Unflatten(1, shape)).to(F64)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Linear(D, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)), r"'1' \(BatchNorm1d\) couples"),
        (nn.Sequential(nn.BatchNorm1d(D, track_running_stats=False), nn.Linear(D, 1)).eval(), "couples"),
        (nn.Sequential(nn.Linear(D, 3), nn.Dropout(0.1), nn.Linear(3, 1)), r"'1' \(Dropout\) is random"),
        (Drops(), "random"),
        (nn.Linear(D, 1).requires_grad_(False), "nothing requires grad"),
        (shaped(2, 3), r"expected \(n,\) or \(n, c\)"),
    ],
)
def test_refuses_a_module_without_a_kernel(module: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=message):
        measure.ntk(module.to(F64), inputs())


def test_names_the_mistake() -> None:
    module, x = models.mlp(D, 3, 1), inputs()
    with pytest.raises(UserError, match=r"`x1`.*nan"):
        measure.ntk(module, x * math.nan)
    with pytest.raises(UserError, match=r"`x1`.*at least one sample"):
        measure.ntk(module, x[:0])
    with pytest.raises(UserError, match=r"`x2`.*\(3,\).*\(4,\)"):
        measure.ntk(module, x, x[:, :3])
    with pytest.raises(UserError, match=r"`memory`"):
        measure.ntk(module, x, memory=-1)
    with pytest.raises(UserError, match=r"`parameters`.*did you mean '0.weight'"):
        measure.ntk(module, x, parameters={"0.weigth": torch.zeros(())})
    with pytest.raises(UserError, match=r"`parameters`: '0.weight' is missing"):
        measure.ntk(module, x, parameters={})
