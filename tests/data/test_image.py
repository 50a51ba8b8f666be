"""Images are those of the published files, upright, with the published classes; others are refused."""

from __future__ import annotations

import gzip
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from regimes.core.error import UserError
from regimes.data.catalog import DATASETS
from regimes.data.cifar import cifar_batch
from regimes.data.image import read
from tests.data.published import read_idx_slowly, write_emnist, write_idx

LETTERS = np.array([1, 26, 13, 2, 5, 1, 9, 26])


def test_digits_are_those_of_sklearn() -> None:
    images = read("digits")
    digits, labels = load_digits(return_X_y=True)
    assert np.array_equal(images.pixels.reshape(1797, 64), digits)
    assert np.array_equal(images.labels, labels)
    assert (images.verified, images.files, images.pixels.max()) == ("embedded", {}, DATASETS["digits"].top)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_published_files_are_read_as_a_plain_reader_reads_them(name: str, real_data: Path) -> None:
    images = read(name, real_data)
    assert (images.pixels.shape, images.train) == ((70000, 1, 28, 28), 60000)
    assert (images.verified, len(images.files)) == ("published", 4)
    assert images.labels[60000:].tolist() == read_idx_slowly(real_data / name / "t10k-labels-idx1-ubyte.gz")
    with gzip.open(real_data / name / "t10k-images-idx3-ubyte.gz") as file:
        content = file.read()
    for place in (0, 9999):
        start = 16 + 784 * place
        assert images.pixels[60000 + place].tobytes() == content[start : start + 784]


def test_the_classes_of_mnist_are_as_frequent_as_published(real_data: Path) -> None:
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    images = read("mnist", real_data)
    assert np.bincount(images.labels[:60000]).tolist() == counts
    # Published means of the pixels, over 255: the images are those, and in those files.
    np.testing.assert_allclose(images.pixels[:60000].mean() / 255, 0.130660, atol=1e-6)
    np.testing.assert_allclose(images.pixels[60000:].mean() / 255, 0.132515, atol=1e-6)


def test_the_published_batches_are_read(real_data: Path) -> None:
    images = read("cifar-10", real_data)
    assert (images.pixels.shape, images.train, images.verified) == ((60000, 3, 32, 32), 50000, "published")
    assert (np.bincount(images.labels[:50000]) == 5000).all()
    means = images.pixels[:50000].mean((0, 2, 3)) / 255
    np.testing.assert_allclose(means, [0.491400, 0.482158, 0.446531], atol=1e-6)


def test_both_versions_of_cifar_hold_the_same(real_data: Path, tmp_path: Path) -> None:
    """The checksums of the binary version in the catalogue are those of the published batches laid out so."""
    description = DATASETS["cifar-10"]
    for file in description.files:
        pixels, labels, _ = cifar_batch(real_data / "cifar-10-batches-py" / file.name, file)
        records = np.concatenate([labels[:, None], pixels], axis=1)
        (tmp_path / f"{file.name}.bin").write_bytes(records.tobytes())
    batches, binary = read("cifar-10", real_data), read("cifar-10", tmp_path)
    assert binary.verified == "published"
    assert np.array_equal(batches.pixels, binary.pixels)
    assert np.array_equal(batches.labels, binary.labels)


def test_unpacked_files_are_the_published_ones_too(real_data: Path, tmp_path: Path) -> None:
    for path in (real_data / "mnist").glob("*.gz"):
        (tmp_path / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    images = read("mnist", tmp_path)
    assert images.verified == "published"
    assert all(not name.endswith(".gz") for name in images.files)


def test_an_altered_file_is_refused(real_data: Path, tmp_path: Path) -> None:
    shutil.copytree(real_data / "mnist", tmp_path / "mnist")
    path = tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        UserError, match=f"expected {DATASETS['mnist'].files[3].sha256}, found [0-9a-f]{{64}}"
    ):
        read("mnist", tmp_path)


def test_another_data_sets_files_are_refused(real_data: Path) -> None:
    with pytest.raises(UserError, match="sha256 expected"):
        read("mnist", real_data / "fashion-mnist")


def test_an_altered_batch_is_refused_unread(real_data: Path, tmp_path: Path) -> None:
    for file in DATASETS["cifar-10"].files:
        (tmp_path / file.name).write_bytes(pickle.dumps({}))
    with pytest.raises(UserError, match=r"data_batch_1 is not the published batch: sha256 expected 5463"):
        read("cifar-10", tmp_path)


@pytest.mark.parametrize("suffix", [".gz", ""])
@pytest.mark.parametrize("split", list(DATASETS["emnist"].variants))
def test_emnist_is_turned_upright(split: str, suffix: str, tmp_path: Path) -> None:
    first = 1 if split == "letters" else 0
    labels = np.arange(9) + first
    stored = write_emnist(tmp_path / "emnist", split, labels, 6, suffix)
    images = read("emnist", tmp_path, split)
    assert images.train == 6
    for place in range(9):
        assert np.array_equal(images.pixels[place, 0], stored[place].T)
    assert [images.classes[label] for label in images.labels] == list(images.classes[:9])
    assert (images.split, images.verified) == (split, "none")


def test_letters_are_counted_from_zero(tmp_path: Path) -> None:
    write_emnist(tmp_path, "letters", LETTERS, 5)
    images = read("emnist", tmp_path, "letters")
    assert "".join(images.classes[label] for label in images.labels) == "AZMBEAIZ"


@pytest.mark.parametrize("label", [0, 27, 255])
def test_a_label_that_is_no_letter_is_refused(label: int, tmp_path: Path) -> None:
    write_emnist(tmp_path, "letters", np.array([1, 2, label, 3]), 2)
    with pytest.raises(UserError, match=r"holds a label outside 1\.\.26"):
        read("emnist", tmp_path, "letters")


def test_a_small_file_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    write_emnist(tmp_path, "letters", LETTERS, 5)
    path = tmp_path / "emnist-letters-train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(bytes(10 << 20)) * 10)
    with pytest.raises(UserError, match=r"labels-idx1-ubyte\.gz holds more than the 124808 bytes"):
        read("emnist", tmp_path, "letters")


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_emnist(tmp_path, "letters", LETTERS, 5)

    def refuse(*_: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match=r"`directory`: .* cannot be read \(.*Permission denied"):
        read("emnist", tmp_path, "letters")


def test_images_without_their_labels_are_refused(tmp_path: Path) -> None:
    write_emnist(tmp_path, "letters", LETTERS, 5)
    write_idx(tmp_path / "emnist-letters-train-labels-idx1-ubyte.gz", LETTERS[:4])
    with pytest.raises(UserError, match=r"holds 5 images and .* 4 labels, expected as many"):
        read("emnist", tmp_path, "letters")


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    write_emnist(tmp_path, "letters", LETTERS, 5)
    write_idx(tmp_path / "emnist-letters-train-images-idx3-ubyte.gz", np.zeros((5, 28, 27)))
    with pytest.raises(UserError, match=r"has shape \(5, 28, 27\).*expected \(n, 28, 28\)"):
        read("emnist", tmp_path, "letters")


def test_the_missing_split_is_named_and_what_a_fetch_gives(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"lacks emnist-digits-train-.*\(a fetch gives the split 'balanced' only\)"
    ):
        read("emnist", tmp_path, "digits")
    with pytest.raises(UserError, match=r"lacks emnist-balanced-train-.*run: regimes fetch emnist --to"):
        read("emnist", tmp_path)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar-10"])
def test_an_empty_directory_names_the_command(name: str, tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=f"`directory`: .* lacks .*regimes fetch {name} --to {directory}"):
            read(name, directory)


def test_a_label_beyond_the_classes_of_cifar_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    description = DATASETS["cifar-10"]
    files = tuple(replace(file, content="") for file in description.files)
    monkeypatch.setitem(DATASETS, "cifar-10", replace(description, files=files))
    for file in files:
        (tmp_path / f"{file.name}.bin").write_bytes(bytes([10]) + bytes(3072))
    with pytest.raises(UserError, match="holds a label above 9"):
        read("cifar-10", tmp_path)
