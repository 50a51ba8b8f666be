"""OpenML, the public collection of data sets: one description, one file, checked against its checksum."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas

from regimes.core.error import UserError
from regimes.data.transfer import BY_HAND, FAILURES, ask, check_address, unreachable

__all__ = ["SERVER", "Listing", "listing", "read_arff"]

SERVER = "https://www.openml.org"
LONGEST_LISTING = 1 << 22  # bytes
MD5 = "[0-9a-f]{32}"


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
        UserError: if there is no answer, or not such an answer, or its address is no ``https`` one.
    """
    url = f"{server}/api/v1/json/data/{number}"
    try:
        with ask(url, server) as answer:
            text = answer.read(LONGEST_LISTING)
    except FAILURES as error:
        raise unreachable(url, error) from error
    try:
        said = json.loads(text)["data_set_description"]
        names = ("name", "url", "md5_checksum", "default_target_attribute")
        found = Listing(*(said[name] for name in names))
        if not all(isinstance(said[name], str) for name in names) or not re.fullmatch(MD5, found.md5):
            raise ValueError("a name, an address or a checksum is none")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"`server`: {url} did not describe a data set ({type(error).__name__}: {error}); "
            f"try again later, or {BY_HAND}"
        ) from error
    check_address(found.url, server)
    return found


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
                names.append(rest[1:].split(rest[0])[0] if quoted else rest.partition(" ")[0])
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
