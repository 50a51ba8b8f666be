"""OpenML, the public collection of data sets: one description, one file, checked against its checksum."""

from __future__ import annotations

import hashlib
import http.client
import json
import urllib.request
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from regimes.core.error import UserError

__all__ = ["BY_HAND", "SERVER", "Listing", "listing", "read_arff", "retrieve"]

SERVER = "https://www.openml.org"
TIMEOUT = 60.0  # seconds without a byte
BLOCK = 1 << 20
BY_HAND = "put the published files into the data directory yourself"
FAILURES = (OSError, http.client.HTTPException)


@dataclass(frozen=True)
class Listing:
    """What OpenML says of a data set: name, address and md5 of its ARFF file, name of the class column."""

    name: str
    url: str
    md5: str
    target: str


def listing(number: int, server: str = SERVER) -> Listing:
    """Ask OpenML for a data set by its number (``SERVER/api/v1/json/data/NUMBER``).

    Raises:
        UserError: if there is no answer, or not such an answer.
    """
    url = f"{server}/api/v1/json/data/{number}"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            said = json.load(answer)["data_set_description"]
        return Listing(said["name"], said["url"], said["md5_checksum"], said["default_target_attribute"])
    except FAILURES as error:
        raise unreachable(url, error) from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"`server`: {url} did not describe a data set ({type(error).__name__}: {error}); "
            f"try again later, or {BY_HAND}"
        ) from error


def retrieve(url: str, path: Path, md5: str, title: str, progress: bool = True) -> None:
    """Write what is at ``url`` to ``path``, with a progress bar, and compare its md5.

    Raises:
        UserError: if the connection fails, or the checksum is another.
    """
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, path.open("wb") as file:
            for block in watched(
                answer.read, int(answer.headers.get("Content-Length") or 0), title, progress
            ):
                digest.update(block)
                file.write(block)
    except FAILURES as error:
        raise unreachable(url, error) from error
    if digest.hexdigest() != md5:
        raise UserError(
            f"`name`: {url} came truncated or altered: md5 expected {md5}, found {digest.hexdigest()}; "
            f"fetch it again, or {BY_HAND}"
        )


def watched(read: Callable[[int], bytes], total: int, title: str, progress: bool) -> Iterator[bytes]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not progress, transient=True
    ) as bar:
        task = bar.add_task(title, total=total or None)
        while block := read(BLOCK):
            bar.update(task, advance=len(block))
            yield block


def unreachable(url: str, error: Exception) -> UserError:
    return UserError(f"`server`: {url} cannot be read ({error}); check the connection, or {BY_HAND}")


def read_arff(
    path: Path, target: str, classes: tuple[str, ...], pixels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, d) and labels (n,), both uint8, of a dense ARFF file of images.

    An ARFF file is a header (``@attribute NAME TYPE`` per column) and, after ``@data``, one line of values
    per point. A class is given by its number or by its name.

    Raises:
        UserError: if the columns, the pixels or the classes are not those of such images.
    """
    names, skip = header(path)
    if target not in names or len(names) != pixels + 1:
        raise UserError(
            f"`name`: OpenML's file has {len(names)} columns, expected {pixels} pixels and '{target}'; "
            f"{BY_HAND}"
        )
    column = names.index(target)
    images, labels = [], []
    types: dict[Hashable, str] = {
        place: "str" if place == column else "float32" for place in range(len(names))
    }
    try:
        # Opened here, so that it is closed even where pandas fails before it has made its reader.
        with path.open(encoding="utf-8") as file:
            for part in pandas.read_csv(
                file,
                header=None,
                names=list(types),
                skiprows=skip,
                comment="%",
                quotechar="'",
                dtype=types,
                chunksize=5000,
            ):
                labels.append(part.pop(column).to_numpy(str))
                images.append(whole(part.to_numpy()))
    except (ValueError, pandas.errors.ParserError) as error:
        raise UserError(
            f"`name`: OpenML's file holds something other than pixels 0..255 and classes ({error}); {BY_HAND}"
        ) from error
    return np.concatenate(images), class_numbers(np.concatenate(labels), classes)


def header(path: Path) -> tuple[list[str], int]:
    """The names of the columns, and the number of lines before the first point."""
    names: list[str] = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            word, _, rest = line.strip().partition(" ")
            if word.lower() == "@data":
                return names, number
            if word.lower() == "@attribute":
                rest = rest.strip()
                quoted = rest[:1] in ("'", '"')
                names.append(rest[1:].split(rest[0])[0] if quoted else rest.split()[0])
    return names, 0


def whole(values: np.ndarray) -> np.ndarray:
    pixels = values.astype(np.uint8) if values.min() >= 0 and values.max() <= 255 else np.zeros(0, np.uint8)
    if pixels.shape != values.shape or (pixels != values).any():
        raise ValueError("a pixel is no whole number from 0 to 255")
    return pixels


def class_numbers(words: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    known = {name: number for number, name in reversed(list(enumerate(classes)))}
    known |= {str(number): number for number in range(len(classes))}
    unique, places = np.unique(np.char.strip(words, " \t'\""), return_inverse=True)
    strange = [str(word) for word in unique if word not in known]
    if strange:
        raise UserError(f"`name`: OpenML's file has a class {strange[0]!r}, expected 0..{len(classes) - 1}")
    return np.array([known[str(word)] for word in unique], np.uint8)[places]
