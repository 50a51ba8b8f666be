"""CIFAR-10 in both published versions; a batch is data, and nothing in it is run."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from regimes.core.error import UserError
from regimes.data.catalog import File
from regimes.data.cifar import BatchUnpickler, cifar_batch, cifar_binary
from tests.data.published import write_batch

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 3072), np.uint8)
LABELS = np.array([3, 1, 4, 1, 5], np.uint8)
RECORDS = np.concatenate([LABELS[:, None], IMAGES], axis=1).tobytes()


def sum_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Bomb:
    """An object that runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[list[str]]]:
        return subprocess.check_call, (["touch", "exploded"],)


def test_a_batch_with_the_published_checksum_is_read(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1"
    write_batch(path, IMAGES, LABELS)
    images, labels, found = cifar_batch(path, File("data_batch_1", sum_of(path)))
    assert np.array_equal(images, IMAGES)
    assert np.array_equal(labels, LABELS)
    assert found == sum_of(path)


def test_a_batch_with_any_other_checksum_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError) as caught:
        cifar_batch(path, File("data_batch_1", "0" * 64))
    assert f"sha256 expected {'0' * 64}, found {sum_of(path)}" in str(caught.value)
    assert "is not opened: take the published file again, or" in str(caught.value)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "danger", [Bomb(), print, Path(), np.random.default_rng], ids=["bomb", "print", "path", "generator"]
)
def test_nothing_but_arrays_is_named(danger: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"the batch asks for .*, expected numpy arrays only"):
        BatchUnpickler(pickle.dumps({b"data": danger})).load()
    assert not (tmp_path / "exploded").exists()


# Opcodes: c names, ( ... t is a tuple, R calls, b sets the state or the attributes of what it finds.
ARRAY, KIND, MAKE = b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n"


@pytest.mark.parametrize(
    ("raw", "found"),
    [(ARRAY + b"(J\xff\xff\xff\x7ftR.", np.empty(0, np.uint8)), (KIND + b"(X\1\0\0\0OtR.", np.dtype("u1"))],
    ids=["an array of two gigabytes", "an array of objects"],
)
def test_a_batch_makes_nothing_but_bytes(raw: bytes, found: object) -> None:
    assert repr(BatchUnpickler(raw).load()) == repr(found)


@pytest.mark.parametrize("part", [ARRAY, KIND, MAKE])
@pytest.mark.parametrize("state", [b"}X\5\0\0\0_makeK\1sb.", b"N}X\5\0\0\0_makeK\1s\x86b."])
def test_a_batch_changes_nothing_of_ours(part: bytes, state: bytes, tmp_path: Path) -> None:
    with pytest.raises((UserError, AttributeError)):
        BatchUnpickler(part + state).load()
    write_batch(tmp_path / "batch", IMAGES, LABELS)
    assert np.array_equal(BatchUnpickler((tmp_path / "batch").read_bytes()).load()[b"data"], IMAGES)


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_arrays_of_every_numpy_are_read(module: str) -> None:
    raw = pickle.dumps(IMAGES, protocol=3)
    for name in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
        raw = raw.replace(name, module.encode())
    assert np.array_equal(BatchUnpickler(raw).load(), IMAGES)


def test_a_batch_of_any_size_is_refused_by_its_beginning(tmp_path: Path) -> None:
    with (tmp_path / "data_batch_1").open("wb") as file:
        file.truncate(1 << 40)  # a hole: it takes no room
    with pytest.raises(UserError, match="data_batch_1 is not the published batch"):
        cifar_batch(tmp_path / "data_batch_1", File("data_batch_1", "0" * 64))


def test_the_binary_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(RECORDS)
    images, labels, found, verified = cifar_binary(
        path, File("data_batch_1", "0" * 64, sum_of(path)), len(RECORDS)
    )
    assert np.array_equal(images, IMAGES)
    assert np.array_equal(labels, LABELS)
    assert (found, verified) == (sum_of(path), "published")


def test_an_altered_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(RECORDS[:-1])
    with pytest.raises(UserError, match=f"sha256 expected {'1' * 64}, found {sum_of(path)}"):
        cifar_binary(path, File("data_batch_1", "0" * 64, "1" * 64), len(RECORDS))


def test_a_binary_file_of_another_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(RECORDS[:-1])
    with pytest.raises(UserError, match="holds 15364 bytes, expected a multiple of 3073"):
        cifar_binary(path, File("data_batch_1"), len(RECORDS))
