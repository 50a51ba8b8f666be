"""A fetched data set is the published one, or the fetch says what is wrong and leaves nothing."""

from __future__ import annotations

import errno
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from regimes.core.error import UserError
from regimes.data.catalog import DATASETS, Description
from regimes.data.checksum import SUMS
from regimes.data.dataset import load
from regimes.data.download import fetch, upright
from regimes.data.idx import idx_encode
from regimes.data.image import read
from tests.data.conftest import Pages


def publish(pages: Pages, description: Description, pixels: np.ndarray, labels: np.ndarray) -> None:
    """Put images where OpenML would have them."""
    assert description.openml is not None
    number, name = description.openml
    count = pixels.shape[1]
    head = [f"@ATTRIBUTE pixel{place} real" for place in range(1, count + 1)]
    rows = [
        ",".join(map(str, (*row, label))) for row, label in zip(pixels.tolist(), labels.tolist(), strict=True)
    ]
    body = "\n".join(["@RELATION x", *head, "@ATTRIBUTE class {0}", "@DATA", *rows]).encode()
    pages.content[f"/data/{number}.arff"] = body
    said = {
        "name": name,
        "url": f"{pages.address}/data/{number}.arff",
        "md5_checksum": hashlib.md5(body).hexdigest(),
        "default_target_attribute": "class",
    }
    pages.content[f"/api/v1/json/data/{number}"] = json.dumps({"data_set_description": said}).encode()


def small(name: str, monkeypatch: pytest.MonkeyPatch, train: int, test: int) -> Description:
    """The description with other counts, and without checksums: these are other images."""
    description = DATASETS[name]
    variant = replace(description.variants[description.fetched], train=train, test=test)
    files = tuple(replace(file, sha256="", content="") for file in description.files)
    description = replace(description, variants={description.fetched: variant}, files=files)
    monkeypatch.setitem(DATASETS, name, description)
    return description


def drawn(name: str, count: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images, each class equally often in every stretch of ``classes`` images."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, int(np.prod(DATASETS[name].shape))))
    return pixels.astype(np.uint8), (np.arange(count) % classes).astype(np.uint8)


@pytest.mark.parametrize(("name", "folder"), [("mnist", "mnist"), ("fashion-mnist", "fashion-mnist")])
@pytest.mark.parametrize("progress", [True, False])
def test_a_fetched_data_set_can_be_loaded(
    name: str, folder: str, progress: bool, pages: Pages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    description = small(name, monkeypatch, 40, 20)
    pixels, labels = drawn(name, 60, 10)
    publish(pages, description, pixels, labels)
    paths = fetch(name, tmp_path, progress, server=pages.address)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        f"{folder}/{file.name}.gz" for file in description.files
    ]
    images = read(name, tmp_path)
    assert np.array_equal(images.pixels.reshape(60, -1), pixels)
    assert np.array_equal(images.labels, labels)
    assert (images.train, images.verified) == (40, "fetched")
    assert len(load(name, directory=tmp_path).train) == 40


def test_cifar_is_fetched_as_its_binary_version(
    pages: Pages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    description = small("cifar-10", monkeypatch, 50, 10)
    pixels, labels = drawn("cifar-10", 60, 10)
    publish(pages, description, pixels, labels)
    paths = fetch("cifar-10", tmp_path, False, server=pages.address)
    assert [path.stat().st_size for path in paths] == [10 * 3073] * 6
    images = read("cifar-10", tmp_path)
    assert np.array_equal(images.pixels.reshape(60, -1), pixels)
    assert images.train == 50


def stroke() -> np.ndarray:
    """A 1, upright."""
    image = np.zeros((28, 28), np.uint8)
    image[4:24, 13:15] = 200
    return image


@pytest.mark.parametrize("turned", [True, False])
def test_emnist_is_upright_whichever_way_it_comes(
    turned: bool, pages: Pages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    description = small("emnist", monkeypatch, 94, 47)
    pixels, labels = drawn("emnist", 141, 47)
    images = pixels.reshape(-1, 28, 28)
    images[labels == 1] = stroke()
    publish(pages, description, (images.swapaxes(1, 2) if turned else images).reshape(141, -1), labels)
    paths = fetch("emnist", tmp_path, False, server=pages.address)
    assert paths[0].name == "emnist-balanced-train-images-idx3-ubyte.gz"
    assert np.array_equal(read("emnist", tmp_path).pixels[:, 0], images)


def test_real_ones_stand(real_data: Path) -> None:
    for name in ("mnist", "fashion-mnist"):  # class 1 of Fashion-MNIST is trousers
        images = read(name, real_data)
        ones = images.pixels[images.labels == 1, 0]
        assert upright(ones)
        assert not upright(ones.swapaxes(1, 2))


def test_what_equals_the_published_files_is_known_as_published(
    pages: Pages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    description = small("mnist", monkeypatch, 3, 2)
    pixels, labels = drawn("mnist", 5, 10)  # the classes are not equally frequent: as in MNIST
    images = pixels.reshape(-1, 28, 28)
    parts = (images[:3], labels[:3], images[3:], labels[3:])
    sums = [hashlib.sha256(idx_encode(part)).hexdigest() for part in parts]
    files = tuple(replace(file, content=digest) for file, digest in zip(description.files, sums, strict=True))
    description = replace(description, files=files)
    monkeypatch.setitem(DATASETS, "mnist", description)
    publish(pages, description, pixels, labels)
    fetch("mnist", tmp_path, False, server=pages.address)
    assert read("mnist", tmp_path).verified == "published"
    (tmp_path / "mnist" / SUMS).unlink()
    assert read("mnist", tmp_path).verified == "published"
    assert "byte for byte" not in capsys.readouterr().err


def test_another_order_is_kept_and_reported(
    pages: Pages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    description = small("fashion-mnist", monkeypatch, 40, 20)
    files = tuple(replace(file, content="0" * 64) for file in description.files)
    description = replace(description, files=files)
    monkeypatch.setitem(DATASETS, "fashion-mnist", description)
    publish(pages, description, *drawn("fashion-mnist", 60, 10))
    fetch("fashion-mnist", tmp_path, False, server=pages.address)
    assert "not the published files byte for byte" in " ".join(capsys.readouterr().err.split())
    assert load("fashion-mnist", directory=tmp_path).provenance["verified"] == "fetched"


def test_other_images_are_refused(pages: Pages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    description = small("mnist", monkeypatch, 40, 20)
    pixels, labels = drawn("mnist", 60, 10)
    labels[3] = 7
    publish(pages, description, pixels, labels)
    with pytest.raises(
        UserError, match="is not the published MNIST: sha256 of train-images-idx3-ubyte expected"
    ):
        fetch("mnist", tmp_path, False, server=pages.address)
    assert list((tmp_path / "mnist").iterdir()) == []


def test_what_is_there_is_not_fetched_again(pages: Pages, real_data: Path) -> None:
    paths = fetch("mnist", real_data, False, server=pages.address)
    assert [path.exists() for path in paths] == [True] * 4
    assert pages.asked == []


def test_an_altered_file_is_noticed_and_fetched_again(
    pages: Pages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    description = small("mnist", monkeypatch, 40, 20)
    publish(pages, description, *drawn("mnist", 60, 10))
    path = fetch("mnist", tmp_path, False, server=pages.address)[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=f"sha256 expected {hashlib.sha256(whole).hexdigest()}, found"):
        read("mnist", tmp_path)
    fetch("mnist", tmp_path, False, server=pages.address)
    assert path.read_bytes() == whole, "the same download gives the same bytes"
    assert len(pages.asked) == 4


@pytest.mark.parametrize("fault", ["cut", "gone", "renamed", "fewer"])
def test_a_fetch_that_fails_leaves_nothing(
    fault: str, pages: Pages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    description = small("mnist", monkeypatch, 40, 20)
    publish(pages, description, *drawn("mnist", 59 if fault == "fewer" else 60, 10))
    listing, body = "/api/v1/json/data/554", "/data/554.arff"
    if fault == "cut":
        pages.content[body] = pages.content[body][:-100]
    if fault == "gone":
        del pages.content[body]
    if fault == "renamed":
        pages.content[listing] = pages.content[listing].replace(b"mnist_784", b"iris")
    message = {
        "cut": "truncated or altered: md5 expected [0-9a-f]{32}, found [0-9a-f]{32}",
        "gone": "`server`: .*/data/554.arff cannot be read .*404",
        "renamed": "OpenML's data set 554 is called 'iris', expected 'mnist_784'",
        "fewer": r"OpenML's copy of MNIST holds 59 images, expected 40 \+ 20",
    }[fault]
    with pytest.raises(UserError, match=message):
        fetch("mnist", tmp_path, False, server=pages.address)
    assert list((tmp_path / "mnist").iterdir()) == []


def test_a_download_that_broke_goes_on_at_the_next_fetch(
    pages: Pages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    description = small("mnist", monkeypatch, 40, 20)
    publish(pages, description, *drawn("mnist", 60, 10))
    pages.breaks["/data/554.arff"] = [20_000, 0]
    with pytest.raises(UserError, match="cannot be read"):
        fetch("mnist", tmp_path, False, server=pages.address)
    (left,) = (tmp_path / "mnist").iterdir()
    assert left.stat().st_size == 20_000
    fetch("mnist", tmp_path, False, server=pages.address)
    assert pages.ranges[-1] == "bytes=20000-"
    assert not left.exists()
    assert read("mnist", tmp_path).verified == "fetched"


@pytest.mark.parametrize("fault", ["gone", "cut", "renamed"])
def test_a_bad_mirror_gives_way_to_the_next(
    fault: str, pages: Pages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    description = small("mnist", monkeypatch, 40, 20)
    publish(pages, description, *drawn("mnist", 60, 10))
    listing = "/api/v1/json/data/554"
    bad = pages.content[listing]
    bad = bad.replace(b"mnist_784", b"iris") if fault == "renamed" else bad.replace(b"554.arff", b"555.arff")
    pages.content[f"/bad{listing}"] = b"" if fault == "gone" else bad
    pages.content["/data/555.arff"] = b"cut"
    fetch("mnist", tmp_path, False, server=[f"{pages.address}/bad", pages.address])
    assert read("mnist", tmp_path).verified == "fetched"


def test_the_failures_of_all_mirrors_are_told(pages: Pages, tmp_path: Path) -> None:
    mirrors = [f"{pages.address}/one", f"{pages.address}/two", "http://example.org"]
    with pytest.raises(UserError, match=r"none of 3 servers has it \(.*/one/.*404.*/two/.*404.*example.org"):
        fetch("mnist", tmp_path, False, server=mirrors)


def test_a_directory_that_cannot_be_written_to_is_named(pages: Pages, tmp_path: Path) -> None:
    (tmp_path / "mnist").write_text("a file in the place of the folder")
    with pytest.raises(UserError, match=r"`directory`: .*/mnist cannot be written to \(.*; make room"):
        fetch("mnist", tmp_path, False, server=pages.address)


def test_a_full_disk_is_named(pages: Pages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    description = small("mnist", monkeypatch, 40, 20)
    publish(pages, description, *drawn("mnist", 60, 10))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(
        UserError, match=r"`directory`: .* cannot be written to \(.*No space left.*\); make room"
    ):
        fetch("mnist", tmp_path, False, server=pages.address)
    assert list((tmp_path / "mnist").iterdir()) == []


def test_no_connection_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"`server`: .* cannot be read .*put the published files into the data dir"
    ):
        fetch("mnist", tmp_path, False, server="http://127.0.0.1:9")


def test_digits_need_no_fetch(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`name`: 'digits' comes with scikit-learn and needs no fetch"):
        fetch("digits", tmp_path)


def test_the_nearest_name_is_suggested(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean 'emnist'\?"):
        fetch("emist", tmp_path)
