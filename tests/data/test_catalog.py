"""The catalogue of data sets: read before anything heavy, and it suggests the nearest name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from regimes import data
from regimes.core.error import UserError
from regimes.data.catalog import DATASETS, describe, home


def test_the_promised_data_sets_are_there() -> None:
    assert list(DATASETS) == ["digits", "mnist", "fashion-mnist", "emnist", "cifar-10"]
    assert all(name == description.name for name, description in DATASETS.items())


def test_listing_loads_neither_torch_nor_sklearn() -> None:
    code = (
        "import sys; from regimes.data import DATASETS; assert DATASETS;"
        "print([m for m in ('torch', 'sklearn', 'pandas', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_reading_does_not_load_sklearn() -> None:
    code = "import sys; from regimes.data import load; assert load; print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", data.__all__)
def test_every_public_name_can_be_had(name: str) -> None:
    assert getattr(data, name) is not None


def test_another_name_cannot_be_had() -> None:
    with pytest.raises(AttributeError, match=r"'regimes\.data' has no attribute 'lode'"):
        getattr(data, "lo" + "de")


CLASS_COUNTS = {"byclass": 62, "bymerge": 47, "balanced": 47, "letters": 26, "digits": 10, "mnist": 10}


def test_the_splits_of_emnist_have_their_classes() -> None:
    variants = DATASETS["emnist"].variants
    assert {name: len(variant.classes) for name, variant in variants.items()} == CLASS_COUNTS
    assert all(len(set(variant.classes)) == len(variant.classes) for variant in variants.values())


@pytest.mark.parametrize(
    ("name", "suggestion"), [("minst", "mnist"), ("cifar10", "cifar-10"), ("fashion_mnist", "fashion-mnist")]
)
def test_the_nearest_data_set_is_suggested(name: str, suggestion: str) -> None:
    with pytest.raises(UserError, match=rf"`name`: '{name}' is no data set .*did you mean '{suggestion}'\?"):
        describe(name)


def test_the_nearest_split_is_suggested() -> None:
    with pytest.raises(
        UserError, match=r"`split`: 'leters' is no split of 'emnist' .*did you mean 'letters'\?"
    ):
        describe("emnist").variant("leters")


def test_a_split_of_a_data_set_without_splits_is_refused() -> None:
    with pytest.raises(
        UserError, match="`split`: 'balanced' came, but 'mnist' has only one split; leave it out"
    ):
        describe("mnist").variant("balanced")


def test_the_directory_is_the_argument_then_the_environment_then_the_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REGIMES_DATA", "/somewhere")
    assert home("/data") == Path("/data")
    assert home() == Path("/somewhere")
    monkeypatch.delenv("REGIMES_DATA")
    assert home() == Path.home() / ".cache" / "regimes"
