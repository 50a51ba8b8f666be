"""Where a data set's files lie, and whether they are what they should be."""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from regimes.core.error import UserError
from regimes.data.catalog import Description, File

__all__ = ["SUMS", "Content", "locate", "open_file", "recorded"]

SUMS = "SHA256SUMS"
LONGEST_RECORD = 1 << 20
LONGEST_HEAD = 1 << 12


@dataclass(frozen=True)
class Content:
    """A file that was read.

    ``data`` are its bytes (after ``gunzip``), ``sha256`` is that of the file as it lies on the disk, and
    ``verified`` says what that was compared with: ``"published"``, ``"fetched"`` or ``"none"``.
    """

    name: str
    data: bytes
    sha256: str
    verified: str


def locate(
    description: Description, directory: Path, names: Sequence[Sequence[str]], hint: str = ""
) -> list[Path]:
    """The files of a data set, all from one folder below ``directory``.

    Args:
        description: the data set; its ``folders`` are looked into in order.
        directory: the data directory, or the folder of the files itself.
        names: per file, the names it may have, the preferred one first.
        hint: what to add to the error.

    Raises:
        UserError: naming the missing files and the command that fetches them.
    """
    best: tuple[int, Path, list[str]] | None = None
    for folder in (directory / folder for folder in description.folders):
        found = [
            next((folder / name for name in choices if (folder / name).is_file()), None) for choices in names
        ]
        there = [path for path in found if path is not None]
        if len(there) == len(names):
            return there
        missing = [choices[0] for path, choices in zip(found, names, strict=True) if path is None]
        if best is None or len(there) > best[0]:
            best = (len(there), folder, missing)
    folder, missing = (best[1], best[2]) if best is not None else (directory, [])
    raise UserError(
        f"`directory`: {folder} lacks {', '.join(missing)}; "
        f"put the published files of {description.title.split(' (')[0]} there"
        f"{hint or f', or run: regimes fetch {description.name} --to {directory}'}"
    )


def recorded(folder: Path) -> dict[str, str]:
    """The checksums that a fetch has written beside the files, if any: file name to sha256."""
    path = folder / SUMS
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", errors="replace") as file:
        lines = (line.split() for line in file.read(LONGEST_RECORD).splitlines())
        return {words[1].lstrip("*"): words[0] for words in lines if len(words) == 2}


def open_file(path: Path, file: File, most: int) -> Content:
    """Read a file, packed with gzip or not, and compare it with what is known of it.

    A file passes if it is the published one, or if unpacked it equals the published one unpacked, or if it is
    the one a fetch has recorded in ``SHA256SUMS``. Where neither is known, only its structure can be checked.
    No more than ``most`` bytes are unpacked, however many a few packed ones would make.

    Args:
        path: where it lies.
        file: what is known of it.
        most: bytes of the published file, unpacked; no file can hold more.

    Raises:
        UserError: if it passes none of them, with the checksum expected and the one found; if it is too large.
    """
    packed = path.suffix == ".gz"
    # Deflate leaves what it cannot pack as it is, with 5 bytes for every 16 KiB at most.
    if path.stat().st_size > most + (most // 1000 + LONGEST_HEAD if packed else 0):
        raise too_large(path, most)
    raw = path.read_bytes()
    sha256 = hashlib.sha256(raw).hexdigest()
    record = recorded(path.parent).get(path.name, "")
    known = file.sha256 if packed else file.content
    expected = known or record
    try:
        data = gzip.GzipFile(fileobj=io.BytesIO(raw)).read(most + 1) if packed else raw
    except (EOFError, OSError, zlib.error) as error:
        why = "" if expected else f" ({error})"
        raise altered(path, why, expected or "that of the published file", sha256) from error
    if len(data) > most:
        raise too_large(path, most)
    if (known and sha256 == known) or (file.content and hashlib.sha256(data).hexdigest() == file.content):
        return Content(path.name, data, sha256, "published")
    if expected and sha256 != record:
        raise altered(path, "", expected, sha256)
    return Content(path.name, data, sha256, "fetched" if record else "none")


def altered(path: Path, why: str, expected: str, found: str) -> UserError:
    return UserError(
        f"`directory`: {path} is truncated or altered{why}: sha256 expected {expected}, found {found}; "
        "take the published file again, or fetch the data set again"
    )


def too_large(path: Path, most: int) -> UserError:
    return UserError(
        f"`directory`: {path} holds more than the {most} bytes of the published file, unpacked; take that again"
    )
