"""The tangent kernel against its definition, over modules that invite mistakes."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from regimes import control, measure, models
from regimes.core.batch import tensors
from regimes.core.error import UserError
from regimes.core.state import State
from regimes.measure import Reduce
from tests import reference
from tests.kernel.limits import least_memory
from tests.measure.awkward import CASES, F64, TABLES, D, build, samples
from tests.measure.awkward_refused import COUPLED
from tests.properties import assert_close

REDUCTIONS: tuple[Reduce, ...] = get_args(Reduce)
Parts = dict[str, Tensor]


@cache
def rows(name: str, n: int) -> Parts:
    """The Jacobian of an entry of the table for n samples, by its definition."""
    return reference.jacobian(build(name), samples(name, n), CASES[name].output)


def whole(parts: Parts) -> Tensor:
    return torch.stack(list(parts.values())).sum(0)


def inputs(n: int = 5) -> Tensor:
    return torch.randn(n, D, dtype=F64, generator=torch.Generator().manual_seed(n))


def unequal(x: Any, y: Any) -> list[Any]:
    """The labels of what differs in two inputs of one form."""
    left, right = tensors(x), tensors(y)
    return [label for label in left if not torch.equal(left[label], right[label])]


def test_every_entry_has_a_name_of_its_own() -> None:
    assert len(CASES) == sum(map(len, TABLES))


# Reduction, rows, columns (as many as rows: the square kernel), by layer or not.
FORMS: list[tuple[Reduce, int, int, bool]] = [
    ("full", 5, 5, True),
    ("full", 5, 5, False),
    ("full", 1, 5, False),
    ("diagonal", 5, 3, True),
    ("diagonal", 5, 5, False),
    ("trace", 5, 5, True),
    ("trace", 5, 3, False),
]


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("name", CASES)
def test_equals_the_definition(name: str, reduce: Reduce) -> None:
    module, output = build(name), CASES[name].output
    for _, n, m, by_layer in (form for form in FORMS if form[0] == reduce):
        x1, x2 = samples(name, n), None if n == m else samples(name, m)
        expected = reference.products(rows(name, n), rows(name, m), reduce)
        if not by_layer:
            assert_close(measure.ntk(module, x1, x2, reduce=reduce, output=output), whole(expected))
            continue
        found = measure.ntk(module, x1, x2, reduce=reduce, by_layer=True, output=output)
        assert list(found) == list(expected)
        for owner, part in expected.items():
            assert_close(found[owner], part)


@pytest.mark.parametrize(
    "name", ["single", "lstm", "bert", "conv2d in groups", "time first", "columns", "filters"]
)
def test_of_one_sample_alone(name: str) -> None:
    module, output = build(name), CASES[name].output
    expected = whole(reference.products(rows(name, 1), rows(name, 1), "full"))
    assert_close(measure.ntk(module, samples(name, 1), output=output), expected)


@pytest.mark.parametrize("name", CASES)
def test_in_single_precision(name: str) -> None:
    output = CASES[name].output
    found = measure.ntk(build(name, torch.float32), samples(name, 5, torch.float32), output=output)
    assert found.dtype == torch.float32
    # The numbers in single precision, and the arithmetic in double.
    x = reference.each(samples(name, 5, torch.float32), lambda t: t.double() if t.is_floating_point() else t)
    exact = reference.jacobian(build(name, torch.float32).double(), x, output)
    assert_close(found.double(), whole(reference.products(exact, exact, "full")), 1e-5)


@pytest.mark.parametrize("name", CASES)
def test_leaves_no_trace(name: str) -> None:
    module, x = build(name), samples(name, 4)
    parameters = {key: id(p) for key, p in module.named_parameters(remove_duplicate=False)}
    trained = {key for key, p in module.named_parameters() if p.requires_grad}
    values = {key: value.detach().clone() for key, value in module.state_dict().items()}
    attributes = {key: set(vars(sub)) for key, sub in module.named_modules()}
    hooks = [list(sub._forward_hooks) for sub in module.modules()]
    found = measure.ntk(module, x, reduce="trace", output=CASES[name].output)
    assert not found.requires_grad
    assert not unequal(x, samples(name, 4)), "the inputs have changed"
    assert parameters == {key: id(p) for key, p in module.named_parameters(remove_duplicate=False)}
    assert trained == {key for key, p in module.named_parameters() if p.requires_grad}
    assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(value, values[key]) for key, value in module.state_dict().items())
    assert attributes == {key: set(vars(sub)) for key, sub in module.named_modules()}
    assert hooks == [list(sub._forward_hooks) for sub in module.modules()]


@pytest.mark.parametrize("name", COUPLED)
def test_is_exact_or_refused_where_samples_meet(name: str) -> None:
    """Where a sample gives something else in a batch than alone: the kernel of each alone, or none."""
    torch.manual_seed(1)
    case = COUPLED[name]
    module, x1, x2 = case.module().to(F64), case.samples(5), case.samples(3)
    expected = whole(reference.kernel(module, x1, x2))
    try:
        found = measure.ntk(module, x1, x2)
    except UserError as error:
        assert str(error).startswith("`module`")
    else:
        assert_close(found, expected)


def test_is_exact_or_refused_where_torch_keeps_computed_weights() -> None:
    module, x = build("weight norm"), inputs()
    expected = measure.ntk(module, x)
    with parametrize.cached():
        module(x)
        try:
            found = measure.ntk(module, x)
        except UserError as error:
            assert str(error).startswith("`module`")
        else:
            assert_close(found, expected)


@pytest.mark.parametrize("name", ["mlp", "images", "tied", "sequences", "bert", "ordered", "time first"])
def test_equal_samples_give_equal_entries(name: str) -> None:
    module, output, x = build(name), CASES[name].output, samples(name, 4)
    k = measure.ntk(module, x, output=output)
    assert_close(measure.ntk(module, x, x, output=output), k)
    assert_close(measure.ntk(module, x, samples(name, 4), output=output), k)
    twice = reference.each(x, lambda tensor: torch.cat([tensor, tensor]))
    assert_close(measure.ntk(module, twice, output=output), k.repeat(2, 2, 1, 1))


def test_inputs_may_lie_anyhow_in_memory() -> None:
    module, x = build("images"), inputs(6)
    expected = measure.ntk(module, x)
    assert_close(measure.ntk(module, x.T.contiguous().T), expected)
    assert_close(measure.ntk(module, x.repeat_interleave(2, 0)[::2]), expected)
    assert_close(measure.ntk(module, x.clone().requires_grad_()), expected)


def test_scales_with_alpha_squared() -> None:
    network = models.mlp(D, 5, 2)
    k = measure.ntk(network, inputs())
    assert_close(measure.ntk(control.scale(network, 100.0), inputs()), 1e4 * k)


@pytest.mark.parametrize(
    "name", ["mlp", "scaled", "tied", "two paths", "images", "lstm", "bert", "weight norm"]
)
def test_takes_the_parameters_of_a_state(name: str) -> None:
    module, output, x = build(name), CASES[name].output, samples(name, 4)
    origin = {key: p.detach().clone() for key, p in module.named_parameters() if p.requires_grad}
    moved = {key: p + torch.randn_like(p) for key, p in origin.items()}
    found = measure.ntk(module, x, output=output, parameters=moved)
    for key, p in module.named_parameters():
        assert not p.requires_grad or torch.equal(p, origin[key]), "the module has changed"
        if p.requires_grad:
            p.data.copy_(moved[key])
    assert_close(found, measure.ntk(module, x, output=output))
    state = State.of(module, origin)
    assert_close(measure.ntk(module, x, output=output, parameters=state.parameters), found)


def test_works_where_gradients_are_off() -> None:
    module = build("images")
    expected = measure.ntk(module, inputs())
    with torch.no_grad():
        assert_close(measure.ntk(module, inputs()), expected)
    with torch.inference_mode():
        assert_close(measure.ntk(module, inputs()), expected)
        made_inside = inputs()
    assert_close(measure.ntk(module, made_inside), expected)


def test_of_a_module_in_eval_mode_where_torch_has_a_fast_path() -> None:
    """Fused layers of torch run where nothing asks for a gradient: they see none of the uses."""
    module, x = build("padded encoder"), samples("padded encoder", 4)
    with torch.inference_mode():
        found = measure.ntk(module, x)
    assert_close(found, whole(reference.kernel(module, x, x)))


def test_keeps_the_precision_of_the_module() -> None:
    module = models.mlp(D, 5, 2, dtype=torch.float32)
    k = measure.ntk(module, inputs().float())
    assert k.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(measure.ntk(module, inputs().float()), k)


DEVICES = [
    "mlp with biases and outputs",
    "images",
    "scaled",
    "bert",
    "lstm",
    "vision transformer",
    "tied head",
]


@pytest.mark.parametrize(
    "name", [*DEVICES, "conv2d in groups", "positions", "bare parameters", "shared keys"]
)
def test_on_each_device(name: str, device: torch.device) -> None:
    output, x = CASES[name].output, samples(name, 5)
    expected = measure.ntk(build(name), x, output=output)
    moved = reference.each(x, lambda tensor: tensor.to(device))
    found = measure.ntk(build(name).to(device), moved, output=output)
    assert found.device.type == device.type
    assert_close(found.cpu(), expected, 1e-10)


def test_large_finite_inputs_are_no_mistake() -> None:
    measure.ntk(nn.Linear(2, 1).double(), torch.full((2, 2), 1e308, dtype=F64))


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_a_file_holds_the_kernel(reduce: Reduce, tmp_path: Path) -> None:
    module, x1, x2 = build("mlp with biases and outputs"), inputs(5), inputs(3)
    for other in (None, x2):
        path = tmp_path / f"{reduce} {other is None}.npy"
        found = measure.ntk(module, x1, other, reduce=reduce, out=path)
        expected = measure.ntk(module, x1, other, reduce=reduce)
        assert found.dtype == expected.dtype
        assert_close(found, expected)
        assert_close(torch.from_numpy(np.load(path)), expected)
        assert_close(measure.ntk(module, x1, other, reduce=reduce, out=path), expected)


class Killed(nn.Module):
    """Counts the samples that it has seen, and ends like an interrupted process once there were too many."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seen, self.end = network, 0, math.inf

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        if self.seen > self.end:
            raise KeyboardInterrupt
        return self.network(x)


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_killed_run_goes_on_where_it_was(share: float, tmp_path: Path) -> None:
    path, x = tmp_path / "kernel.npy", inputs(20)
    module = Killed(models.mlp(D, 5, 2))
    memory = 2 * least_memory(module, x)
    expected = measure.ntk(module, x, memory=memory)
    module.seen = 0
    measure.ntk(module, x, memory=memory, out=tmp_path / "another.npy")
    from_nothing, module.seen = module.seen, 0
    module.end = share * from_nothing
    with pytest.raises(KeyboardInterrupt):
        measure.ntk(module, x, memory=memory, out=path)
    module.seen, module.end = 0, math.inf
    assert_close(measure.ntk(module, x, memory=memory, out=path), expected)
    assert module.seen < (1.2 - share) * from_nothing
