"""Bad input to the tangent kernel: each mistake is named, with the way out."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regimes import measure, models
from regimes.core.error import UserError
from tests.kernel.limits import least_memory
from tests.measure.awkward import F64, D, build, samples
from tests.measure.awkward_case import Case, Net
from tests.measure.awkward_refused import BRANCHING, UNSEPARABLE
from tests.properties import assert_close

# As a user has it: types are checked in the tests only, before the function sees what came.
unchecked: Any = inspect.unwrap(measure.ntk)


def inputs(n: int = 5) -> Tensor:
    return torch.randn(n, D, dtype=F64, generator=torch.Generator().manual_seed(n))


def pair(n: int = 5) -> dict[str, Tensor]:
    return {"x": inputs(n), "context": inputs(n)[:, :2]}


def built(case: Case) -> nn.Module:
    torch.manual_seed(1)
    return case.module().to(F64)


def shaped(*shape: int) -> nn.Module:
    return nn.Sequential(nn.Linear(D, math.prod(shape)), nn.Unflatten(1, shape)).to(F64)


# Modules


@pytest.mark.parametrize("reduce", ["full", "trace"])
@pytest.mark.parametrize("name", BRANCHING)
def test_refuses_a_branch_on_the_numbers_of_the_samples(name: str, reduce: measure.Reduce) -> None:
    case = BRANCHING[name]
    owner = {"branching": "Branching", "branching inside": r"'1' \(Branching\)"}.get(name, "Net")
    with pytest.raises(UserError, match=rf"^`module`.*{owner}.*torch\.where"):
        measure.ntk(built(case), case.samples(5), reduce=reduce)


@pytest.mark.parametrize("name", UNSEPARABLE)
def test_refuses_what_couples_samples_or_is_random(name: str) -> None:
    case, said = UNSEPARABLE[name]
    with pytest.raises(UserError, match=f"^`module`: .*{said}"):
        measure.ntk(built(case), case.samples(5))


def test_refuses_a_module_without_trained_parameters() -> None:
    for module in (nn.Linear(D, 1).requires_grad_(False), nn.Tanh()):
        with pytest.raises(UserError, match=r"^`module`: nothing requires grad.*requires_grad"):
            measure.ntk(module.to(F64), inputs())


@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (2, 1, 2)], ids=str)
def test_refuses_outputs_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"^`module`.*\(\d, .*expected \(n,\) or \(n, c\).*output="):
        measure.ntk(shaped(*shape), inputs())


RETURNS: dict[str, tuple[Any, str]] = {
    "one number": (lambda net, x: net.a(x).sum(), r"\(\)"),
    "other samples": (lambda net, x: net.a(x)[1:], r"\(\d, 2\)"),
    "no columns": (lambda net, x: net.a(x)[:, :0], r"\(\d, 0\)"),
    "a pair": (lambda net, x: (net.a(x), net.a(x)), "tuple"),
    "a dict": (lambda net, x: {"logits": net.a(x)}, "dict"),
    "nothing": (lambda net, x: None, "NoneType"),
    "classes": (lambda net, x: net.a(x).argmax(1), "int64"),
    "complex numbers": (lambda net, x: net.a(x) + 1j, "complex128"),
}


@pytest.mark.parametrize("name", RETURNS)
def test_refuses_what_is_no_output(name: str) -> None:
    run, said = RETURNS[name]
    with pytest.raises(UserError, match=rf"^`module`.*{said}.*expected.*output="):
        measure.ntk(Net(run, a=nn.Linear(D, 2)).to(F64), inputs())


PICKED: dict[str, tuple[Any, str]] = {
    "a dict": (lambda out: {"logits": out}, "dict"),
    "nothing": (lambda out: None, "NoneType"),
    "another axis": (lambda out: out[:, :, None], r"\(\d, 2, 1\)"),
    "samples behind": (lambda out: out.T, r"\(2, \d\)"),
    "some samples": (lambda out: out[1:], r"\(\d, 2\)"),
    "classes": (lambda out: out.argmax(1), "int64"),
}


@pytest.mark.parametrize("name", PICKED)
def test_refuses_what_output_picks_if_it_is_no_output(name: str) -> None:
    output, said = PICKED[name]
    with pytest.raises(UserError, match=rf"^`output`.*{said}.*expected"):
        unchecked(nn.Linear(D, 2).to(F64), inputs(), output=output)


def test_an_error_of_output_is_its_own() -> None:
    with pytest.raises(AttributeError, match="logits"):
        measure.ntk(nn.Linear(D, 2).to(F64), inputs(), output=lambda out: out.logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64, torch.complex128])
def test_refuses_other_precisions(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(UserError, match=rf"'weight'.*{name}.*float32.*float64"):
        measure.ntk(nn.Linear(D, 2, dtype=dtype), inputs().to(dtype))


def test_refuses_parameters_of_two_precisions() -> None:
    module = nn.Sequential(nn.Linear(D, 3), Net(lambda net, x: net.a(x.double()), a=nn.Linear(3, 1).double()))
    with pytest.raises(UserError, match=r"'1\.a\.weight'.*float64.*float32"):
        measure.ntk(module, inputs().float())


def test_inputs_of_another_precision_are_named() -> None:
    with pytest.raises(UserError, match=r"`x1`.*float32.*float64"):
        measure.ntk(nn.Linear(D, 1).to(F64), inputs().float())
    with pytest.raises(UserError, match=r"`x1\['context'\]`.*float32.*float64"):
        measure.ntk(build("dict"), {"x": inputs(), "context": inputs()[:, :2].float()})


@pytest.mark.parametrize(("value", "said"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_names_a_parameter_that_is_not_finite(value: float, said: str) -> None:
    module = models.mlp(D, 3, 1)
    module.get_parameter("2.weight").data[0, 2] = value
    with pytest.raises(UserError, match=rf"'2\.weight'.*\[0, 2\] is {said}"):
        measure.ntk(module, inputs())
    given = {key: p.detach().clone() for key, p in models.mlp(D, 3, 1).named_parameters()}
    given["0.weight"][0, 3] = value
    with pytest.raises(UserError, match=rf"`parameters`.*'0\.weight'.*\[0, 3\] is {said}"):
        measure.ntk(models.mlp(D, 3, 1), inputs(), parameters=given)


def test_names_a_frozen_parameter_that_is_not_finite() -> None:
    module = models.mlp(D, 3, 1)
    frozen = module.get_parameter("0.weight").requires_grad_(False)
    frozen.data[0, 0] = math.nan
    with pytest.raises(UserError, match=r"'0\.weight'.*\[0, 0\] is nan"):
        measure.ntk(module, inputs())


def test_names_the_mistake_in_parameters() -> None:
    module, x = models.mlp(D, 3, 1), inputs()
    with pytest.raises(UserError, match=r"`parameters`.*did you mean '0.weight'"):
        measure.ntk(module, x, parameters={"0.weigth": torch.zeros(())})
    with pytest.raises(UserError, match=r"`parameters`: '0.weight' is missing"):
        measure.ntk(module, x, parameters={})
    given = {key: p.detach() for key, p in module.named_parameters()}
    with pytest.raises(UserError, match=r"`parameters`.*'2\.weight'.*\(2, 3\).*\(1, 3\)"):
        measure.ntk(module, x, parameters={**given, "2.weight": torch.zeros(2, 3, dtype=F64)})


# Inputs

MISTAKEN: dict[str, tuple[Any, Any, str]] = {
    "no samples": (inputs()[:0], None, r"^`x1`: got shape \(0, 4\), expected at least one sample"),
    "no samples in x2": (inputs(), inputs()[:0], r"^`x2`: got shape \(0, 4\), expected at least one sample"),
    "a number": (torch.tensor(1.0), None, r"^`x1`: got shape \(\)"),
    "no tensor": ("words", None, "^`x1`: got str"),
    "an empty tuple": ((), None, "^`x1`: got tuple"),
    "an array": (inputs().numpy(), None, "^`x1`: got ndarray.*expected a tensor"),
    "nan": (inputs().index_fill(1, torch.tensor(2), math.nan), None, r"^`x1`: \[0, 2\] is nan"),
    "nan in x2": (
        inputs(),
        torch.full((2, D), -math.inf, dtype=F64),
        r"^`x2`: \[0, 0\] is -inf, expected finite numbers",
    ),
    "other width": (inputs(), inputs()[:, :3], r"^`x2`.*\(3,\).*\(4,\)"),
    "other rank": (inputs(), inputs()[:, :, None], r"^`x2`.*\(4, 1\).*\(4,\)"),
}

MISTAKEN_PAIRS: dict[str, tuple[Any, Any, str]] = {
    "other counts": (
        {**pair(), "context": inputs()[:3, :2]},
        None,
        r"^`x1\['context'\]`: got 3 samples, expected 5",
    ),
    "other counts in a tuple": (
        (inputs(), inputs()[:3, :2]),
        None,
        r"^`x1\[1\]`: got 3 samples, expected 5, as in `x1\[0\]`",
    ),
    "other counts in x2": (pair(), {**pair(), "context": inputs(4)[:, :2]}, r"^`x2\['context'\]`: got 4"),
    "nan in one": ({**pair(), "context": pair()["context"] * math.nan}, None, r"`x1\['context'\]`: \[0, 0\]"),
    "other names": (pair(), {"x": inputs(), "contxt": pair()["context"]}, r"^`x2`.*contxt.*context"),
    "one missing": (pair(), {"x": inputs()}, r"^`x2`.*context.*as in `x1`"),
    "other form": (pair(), tuple(pair().values()), r"^`x2`.*as in `x1`"),
    "tensor against dict": (pair(), inputs(), r"^`x2`.*as in `x1`"),
    "other width in one": (
        pair(),
        {"x": inputs(), "context": inputs()},
        r"^`x2\['context'\]`.*\(4,\).*\(2,\)",
    ),
}


@pytest.mark.parametrize("name", MISTAKEN)
def test_names_the_mistake_in_the_inputs(name: str) -> None:
    x1, x2, said = MISTAKEN[name]
    with pytest.raises(UserError, match=said):
        unchecked(models.mlp(D, 3, 1), x1, x2)


@pytest.mark.parametrize("name", MISTAKEN_PAIRS)
def test_names_the_mistake_in_several_inputs(name: str) -> None:
    x1, x2, said = MISTAKEN_PAIRS[name]
    with pytest.raises(UserError, match=said):
        measure.ntk(build("dict"), x1, x2)


def test_a_name_that_the_module_does_not_take_is_in_the_message() -> None:
    with pytest.raises((UserError, TypeError), match="contxt"):
        measure.ntk(build("dict"), {"x": inputs(), "contxt": pair()["context"]})


def test_inputs_that_the_module_does_not_take_are_named() -> None:
    message = r"^`x1`: got torch\.float64 \(\d+, 4\) on cpu, which the module does not take: mat1 and mat2"
    with pytest.raises(UserError, match=message) as caught:
        measure.ntk(nn.Linear(D + 1, 1).to(F64), inputs())
    assert isinstance(caught.value.__cause__, RuntimeError)


class Faulty(nn.Linear):
    """A network whose forward has a fault of its own."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__(D, 1)
        self.error = error

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.error is None:
            return self.no_such_layer(input)  # pyright: ignore[reportCallIssue]
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("mine"), ValueError("mine"), TypeError("mine"), None])
def test_an_error_of_the_module_is_its_own(error: Exception | None) -> None:
    kind = AttributeError if error is None else type(error)
    with pytest.raises(kind, match="no_such_layer" if error is None else "mine") as caught:
        measure.ntk(Faulty(error).to(F64), inputs())
    assert not isinstance(caught.value, UserError)


# Options


def test_names_a_misspelt_reduction() -> None:
    with pytest.raises(UserError, match=r"^`reduce`: got 'diagnal', expected.*did you mean 'diagonal'"):
        unchecked(models.mlp(D, 3, 1), inputs(), reduce="diagnal")
    with pytest.raises(UserError, match=r"^`reduce`: got 'sum', expected one of full, diagonal, trace"):
        unchecked(models.mlp(D, 3, 1), inputs(), reduce="sum")


@pytest.mark.parametrize("memory", [0, -1])
def test_refuses_a_limit_that_is_no_number_of_bytes(memory: int) -> None:
    with pytest.raises(UserError, match=rf"^`memory`: got {memory}, expected"):
        measure.ntk(models.mlp(D, 3, 1), inputs(), memory=memory)


@pytest.mark.parametrize("name", ["mlp with biases and outputs", "images", "lstm", "attention", "einsum"])
def test_says_how_much_memory_the_smallest_tile_needs(name: str) -> None:
    module, x = build(name), samples(name, 3)
    needed = least_memory(module, x)
    assert_close(measure.ntk(module, x, memory=needed), measure.ntk(module, x))
    with pytest.raises(UserError, match=r"^`memory`: got"):
        measure.ntk(module, x, memory=needed - 1)


def test_a_file_of_another_kernel_is_kept(tmp_path: Path) -> None:
    path, module, x = tmp_path / "kernel.npy", models.mlp(D, 3, 1), inputs()
    expected = measure.ntk(module, x, out=path).clone()
    stored = path.read_bytes()
    other = models.mlp(D, 3, 1, seed=5)
    for what in (
        lambda: measure.ntk(module, x[:4], out=path),
        lambda: measure.ntk(module, x * 2, out=path),
        lambda: measure.ntk(module, x, x, reduce="trace", out=path),
        lambda: measure.ntk(other, x, out=path),
    ):
        with pytest.raises(UserError, match=r"^`out`.*kernel\.npy.*overwrite=True"):
            what()
        assert path.read_bytes() == stored
    assert_close(measure.ntk(module, x, out=path), expected)
    assert_close(measure.ntk(other, x[:4], out=path, overwrite=True), measure.ntk(other, x[:4]))


def test_a_file_that_is_no_kernel_is_kept(tmp_path: Path) -> None:
    module, x = models.mlp(D, 3, 1), inputs()
    text = tmp_path / "notes.npy"
    text.write_text("not an array")
    array = tmp_path / "array.npy"
    np.save(array, np.zeros((5, 5, 1, 1)))
    for path in (text, array):
        before = path.read_bytes()
        with pytest.raises(UserError, match=r"^`out`.*overwrite=True"):
            measure.ntk(module, x, out=path)
        assert path.read_bytes() == before
        assert_close(measure.ntk(module, x, out=path, overwrite=True), measure.ntk(module, x))


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    module, x = models.mlp(D, 3, 1), inputs()
    with pytest.raises(UserError, match=r"^`out`.*missing"):
        measure.ntk(module, x, out=tmp_path / "missing" / "kernel.npy")
    with pytest.raises(UserError, match=r"^`out`"):
        measure.ntk(module, x, out=tmp_path)
    with pytest.raises(UserError, match=r"^`out`.*\.npy"):
        measure.ntk(module, x, out=tmp_path / "kernel.txt")
