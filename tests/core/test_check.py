"""What an annotation does not say is refused in one line; what it says is taken in any of its forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regimes.core.check import checked
from regimes.core.error import UserError


@checked
def called(
    module: nn.Module | None = None,
    x: Tensor | None = None,
    width: int = 1,
    rate: float = 1.0,
    bias: bool = False,
    reduce: Literal["full", "trace"] = "full",
    values: Mapping[str, Tensor] | None = None,
    widths: Sequence[int] = (),
    window: tuple[float, float] = (0.0, 1.0),
    path: Path | None = None,
    output: Callable[[Any], Tensor] | None = None,
) -> Mapping[str, Any]:
    return locals()


@checked
@dataclass(frozen=True)
class Held:
    width: int


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("width", "3", "`width`: got '3', expected a whole number"),
        ("width", True, "`width`: got True, expected a whole number"),
        ("width", 2.5, "`width`: got 2.5, expected a whole number"),
        ("width", np.zeros(2), r"`width`: got an array of float64 \(2,\), expected a whole number"),
        ("rate", float("nan"), "`rate`: got nan, expected a number"),
        ("rate", 10**400, "`rate`: got an object of type int, expected a number"),
        ("rate", 1j, "`rate`: got 1j, expected a number"),
        ("bias", 1, "`bias`: got 1, expected True or False"),
        ("reduce", "ful", r"`reduce`: got 'ful', expected one of full, trace; did you mean 'full'\?"),
        ("module", nn.Linear, r"expected a torch.nn.Module, or None; call it first: Linear\(...\)"),
        ("module", {"weight": torch.ones(1)}, "a state_dict goes into one by module.load_state_dict"),
        ("x", [1.0], r"`x`: got \[1.0\], expected a dense tensor, or None; torch.as_tensor makes one"),
        ("x", np.ones((2, 3)), r"`x`: got an array of float64 \(2, 3\), .*; torch.as_tensor makes one"),
        (
            "x",
            torch.ones(2, device="meta"),
            r"got a tensor of torch.float32 \(2,\) \(torch.strided, on meta\)",
        ),
        ("x", torch.ones(2).to_sparse(), r"torch.sparse_coo, on cpu\), expected a dense tensor"),
        ("values", {"w": [1.0]}, "`values`: .*expected a mapping, each a dense tensor, or None"),
        ("values", {1: torch.ones(1)}, "`values`: .*expected a mapping"),
        ("widths", "123", "`widths`: got '123', expected a sequence, each a whole number"),
        ("widths", [1, None], "`widths`: .*expected a sequence"),
        ("window", (1.0,), r"`window`: got \(1.0,\), expected 2 values \(a number, a number\)"),
        ("path", 3, "`path`: got 3, expected a path, or None"),
        ("path", "a\0b", "`path`: got .*, expected a path, or None"),
        ("output", "logits", "`output`: got 'logits', expected a function, or None"),
    ],
)
def test_what_an_annotation_does_not_say_is_refused(argument: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        called(**{argument: value})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("argument", "value", "taken"),
    [
        ("width", np.int64(3), 3),
        ("width", torch.tensor(3), 3),
        ("width", 3.0, 3),
        ("rate", np.float32(0.5), 0.5),
        ("rate", torch.tensor(0.5), 0.5),
        ("rate", 2, 2),
        ("rate", float("inf"), float("inf")),
        ("bias", np.bool_(True), True),
        ("widths", np.array([1, 2]), [1, 2]),
        ("widths", range(3), range(3)),
        ("window", [1, 2.0], (1, 2.0)),
        ("path", "a", Path("a")),
    ],
)
def test_numbers_and_paths_of_any_kind_are_taken(argument: str, value: object, taken: object) -> None:
    found = called(**{argument: value})[argument]  # pyright: ignore[reportArgumentType]
    assert type(found) is type(taken)
    assert found == taken


def test_a_class_is_checked_where_it_is_made() -> None:
    assert Held(3).width == 3
    with pytest.raises(UserError, match="`width`: got None, expected a whole number"):
        Held(None)  # pyright: ignore[reportArgumentType]


def test_a_call_without_its_arguments_is_pythons_own_error() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'width'"):
        Held()  # pyright: ignore[reportCallIssue]


def test_what_came_is_said_in_one_line() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise KeyError

    for value in (Broken(), "x" * 1000, 10**5000):
        with pytest.raises(UserError, match=r"^`bias`: got an object of type \w+, expected True or False$"):
            called(bias=value)  # pyright: ignore[reportArgumentType]


def test_an_error_behind_a_function_among_the_arguments_is_that_error() -> None:
    @checked
    def apply(make: Callable[[Sequence[int]], float], values: Sequence[int]) -> float:
        return make(values)

    with pytest.raises(ValueError, match="of its own"):
        apply(fails, [1, 2])


def fails(values: Sequence[int]) -> float:
    raise ValueError("of its own")
