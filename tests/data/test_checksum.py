"""A file is taken if it is the published one, however it is packed; any other is refused, at no cost."""

from __future__ import annotations

import gzip
import hashlib
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from regimes.core.error import UserError
from regimes.data.catalog import DATASETS, File
from regimes.data.checksum import SUMS, locate, open_file, recorded

CONTENT = b"what was published"
PACKED = gzip.compress(CONTENT, mtime=0)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


PUBLISHED = File("file", sha256(PACKED), sha256(CONTENT))
UNKNOWN = File("file")
MOST = 100


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "data"),
    [("file.gz", PACKED), ("file", CONTENT), ("file.gz", gzip.compress(CONTENT, compresslevel=1, mtime=7))],
    ids=["as published", "unpacked", "packed again"],
)
def test_the_published_file_passes_however_it_is_packed(name: str, data: bytes, tmp_path: Path) -> None:
    content = open_file(put(tmp_path / name, data), PUBLISHED, MOST)
    assert (content.data, content.sha256, content.verified) == (CONTENT, sha256(data), "published")


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("file.gz", PACKED[:-5], PUBLISHED.sha256),
        ("file.gz", b"", PUBLISHED.sha256),
        ("file.gz", PACKED[:20] + b"x" + PACKED[21:], PUBLISHED.sha256),
        ("file.gz", gzip.compress(CONTENT + b".", mtime=0), PUBLISHED.sha256),
        ("file", CONTENT[:-1], PUBLISHED.content),
        ("file", CONTENT + b".", PUBLISHED.content),
    ],
)
def test_a_truncated_or_altered_file_is_refused(
    name: str, data: bytes, expected: str, tmp_path: Path
) -> None:
    message = f"{name} is truncated or altered: sha256 expected {expected}, found {sha256(data)}; take"
    with pytest.raises(UserError, match=message):
        open_file(put(tmp_path / name, data), PUBLISHED, MOST)


def test_without_a_known_checksum_the_file_is_taken_as_it_is(tmp_path: Path) -> None:
    assert open_file(put(tmp_path / "file.gz", PACKED), UNKNOWN, MOST).verified == "none"
    assert open_file(put(tmp_path / "file", CONTENT), UNKNOWN, MOST).data == CONTENT


def test_without_a_known_checksum_a_truncated_gzip_file_is_still_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"truncated or altered \(.*\): sha256 expected that of the published"
    ):
        open_file(put(tmp_path / "file.gz", PACKED[:-5]), UNKNOWN, MOST)


@pytest.mark.parametrize("file", [PUBLISHED, UNKNOWN], ids=["known", "unknown"])
def test_a_few_bytes_that_unpack_to_many_are_not_unpacked(
    file: File, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    bomb = gzip.compress(bytes(50 << 20))
    path = put(tmp_path / "file.gz", bomb)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"file\.gz holds more than the 60000 bytes of the published file"):
        open_file(path, file, 60_000)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    record_property("bytes", most)
    assert most < 1 << 20


@pytest.mark.parametrize("name", ["file", "file.gz"])
def test_a_file_that_is_too_large_is_not_read(name: str, tmp_path: Path) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(1 << 40)  # a hole: it takes no room
    with pytest.raises(UserError, match="holds more than the 100 bytes of the published file"):
        open_file(tmp_path / name, UNKNOWN, MOST)


def test_a_record_that_is_no_text_records_nothing(tmp_path: Path) -> None:
    put(tmp_path / SUMS, b"\xff\xfe\n" + bytes(range(256)))
    assert "file" not in recorded(tmp_path)


def test_what_a_fetch_recorded_passes_and_nothing_else(tmp_path: Path) -> None:
    other = gzip.compress(b"another order", mtime=0)
    put(tmp_path / SUMS, f"{sha256(other)}  file.gz\n".encode())
    assert recorded(tmp_path) == {"file.gz": sha256(other)}
    for file in (PUBLISHED, UNKNOWN):
        assert open_file(put(tmp_path / "file.gz", other), file, MOST).verified == "fetched"
        expected = file.sha256 or sha256(other)
        with pytest.raises(UserError, match=f"sha256 expected {expected}, found {sha256(other + b'.')}"):
            open_file(put(tmp_path / "file.gz", other + b"."), file, MOST)
    assert open_file(put(tmp_path / "file.gz", PACKED), PUBLISHED, MOST).verified == "published"


MNIST = DATASETS["mnist"]
NAMES = [(f"{file.name}.gz", file.name) for file in MNIST.files]


@pytest.mark.parametrize("folder", [".", "mnist", "MNIST/raw"])
def test_the_files_are_found_in_any_folder_packed_or_not(folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    there = [put(tmp_path / folder / names[place % 2], b"") for place, names in enumerate(NAMES)]
    assert locate(MNIST, tmp_path, NAMES) == there


def test_missing_files_are_named_with_the_command_that_fetches_them(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    for names in NAMES[:2]:
        put(tmp_path / "mnist" / names[1], b"")
    with pytest.raises(UserError) as caught:
        locate(MNIST, tmp_path, NAMES)
    message = str(caught.value)
    assert f"{tmp_path / 'mnist'} lacks t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz;" in message
    assert message.endswith(f"or run: regimes fetch mnist --to {tmp_path}")


def test_files_from_two_folders_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    for place, names in enumerate(NAMES):
        put((tmp_path / "mnist" if place else tmp_path) / names[0], b"")
    with pytest.raises(UserError, match=r"lacks train-images-idx3-ubyte\.gz;"):
        locate(MNIST, tmp_path, NAMES)
