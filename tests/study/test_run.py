"""Equal experiments have equal keys, whatever process builds them; mistakes are one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from enum import Enum
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regimes.core.error import UserError
from regimes.study.run import Run, canonical
from tests.study.toy import Toy

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBERS | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
)


class Law(Enum):
    NTK = "ntk"


class Rich(Run):
    law: Law = Law.NTK
    names: frozenset[str] = frozenset()
    widths: tuple[int, ...] = ()
    task: Literal["parity", "classes"] = "parity"
    size: int | None = None

    @classmethod
    def perform(cls, runs: Any, data: Any, tick: Any) -> Any:
        return iter(())


class Newer(Rich):
    version = 2


@given(VALUES)
def test_canonical_is_json_and_idempotent(value: Any) -> None:
    once = canonical(value)
    assert canonical(json.loads(json.dumps(once))) == once


@given(NUMBERS)
def test_a_float_keeps_its_value(value: float) -> None:
    assert canonical(value) == value


@given(st.integers(-(2**53) + 1, 2**53 - 1))
def test_an_integer_and_its_float_are_one_key(value: int) -> None:
    assert json.dumps(canonical(value)) == json.dumps(canonical(float(value)))


@given(x=NUMBERS, y=NUMBERS, seed=st.integers(0, 100))
def test_keys_differ_exactly_where_fields_do(x: float, y: float, seed: int) -> None:
    assert (Toy(width=1, x=x, seed=seed).key == Toy(seed=seed, x=y, width=1).key) == (x == y)


@given(x=NUMBERS)
def test_a_run_is_restored_from_its_text(x: float) -> None:
    run = Toy(width=3, x=x)
    assert Toy(**json.loads(run.canonical)["fields"]) == run


def test_the_key_tells_class_and_version() -> None:
    keys = {Rich().key, Newer().key, type("Newer", (Rich,), {"version": 3, "__module__": __name__})().key}
    assert len(keys) == 3
    assert all(len(key) == 20 and int(key, 16) >= 0 for key in keys)


def test_the_key_is_the_same_in_every_process() -> None:
    """Sets and texts are hashed with another salt in every process."""
    code = "from tests.study.test_run import Rich; print(Rich(names={'a', 'b', 'c', 'd'}, widths=[1, 2]).key)"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True, text=True, check=True,
        ).stdout.strip()
        for seed in "12"
    }  # fmt: skip
    assert found == {Rich(names=frozenset("abcd"), widths=(1, 2)).key}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"width": 1, "x": float("nan")}, "`x` of Toy is nan: input should be a finite number"),
        ({"width": 1, "x": float("inf")}, "`x` of Toy is inf: input should be a finite number"),
        ({"width": 1.5}, "`width` of Toy is 1.5: input should be a valid integer"),
        ({"width": "x" * 900}, "`width` of Toy is 'xxxx"),
        ({}, "`width` of Toy is missing"),
        ({"width": 1, "sed": 2}, "`sed` is no field of Toy; did you mean 'seed'?"),
        ({"width": 1, "qqq": 2}, "`qqq` is no field of Toy; its fields are width, x, seed, pause"),
        ({"width": "a", "seed": "b"}, "(and 1 more)"),
    ],
)
def test_a_mistake_is_one_short_line(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        Toy(**values)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_a_run_cannot_be_changed_or_be_abstract() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Toy(width=1).width = 2  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError, match="abstract"):
        Run()  # pyright: ignore[reportAbstractUsage]


def test_a_name_that_is_taken_fails_at_declaration() -> None:
    with pytest.raises(UserError, match="`cost` cannot name"):
        type("Bad", (Rich,), {"columns": {"cost": float}, "__module__": __name__})
    with pytest.raises(UserError, match="`law` cannot name"):
        type("Bad", (Rich,), {"columns": {"law": str}, "__module__": __name__})


def test_all_but_leaves_out_what_members_differ_in() -> None:
    assert Toy(width=1, seed=0, x=2).all_but("seed", "x") == Toy(width=1, seed=5, x=3).all_but("seed", "x")
    assert Toy(width=1).all_but("seed") != Toy(width=2).all_but("seed")
    with pytest.raises(UserError, match="did you mean 'seed'"):
        Toy(width=1).all_but("seeds")


def test_studies_load_without_pytorch() -> None:
    """A worker for runs that need no PyTorch starts in a fraction of a second."""
    code = "import sys, regimes.study; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        ).returncode
        == 0
    )
