"""Listings and files of OpenML are read, and whatever comes in their place is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from regimes.core.error import UserError
from regimes.data.openml import Listing, listing, read_arff
from tests.data.conftest import Pages

CLASSES = ("cat", "dog", "horse")
HEADER = "% a comment\n@RELATION images\n\n@ATTRIBUTE pixel1 real\n@attribute 'pixel 2' INTEGER\n"


def arff(path: Path, rows: list[str], target: str = "@ATTRIBUTE class {0,1,2}") -> Path:
    path.write_text(f"{HEADER}{target}\n@DATA\n" + "\n".join(rows) + "\n")
    return path


URL = "https://there/x.arff"
LISTED = {"name": "images", "url": URL, "md5_checksum": "0a" * 16, "default_target_attribute": "class"}


def describe(pages: Pages, **fields: object) -> None:
    """A description where a server would give it."""
    pages.content["/api/v1/json/data/7"] = json.dumps({"data_set_description": fields}).encode()


def test_the_listing_is_read(pages: Pages) -> None:
    describe(pages, id="7", **LISTED)
    assert listing(7, pages.address) == Listing("images", URL, "0a" * 16, "class")


@pytest.mark.parametrize(
    "fields",
    [{"name": "images"}, LISTED | {"name": None}, LISTED | {"md5_checksum": "../../x"}, LISTED | {"url": 3}],
)
def test_an_answer_that_is_no_listing_is_refused(fields: dict[str, object], pages: Pages) -> None:
    describe(pages, **fields)
    with pytest.raises(UserError, match=r"`server`: .* did not describe a data set \(.*\); try again"):
        listing(7, pages.address)


@pytest.mark.parametrize(
    "answer", [b"", b"\xff", b"[]", b"[" * 100_000, b"1" * 5_000_000, b'{"a": ' + b"1" * 5000]
)
def test_an_answer_that_is_no_json_is_refused(answer: bytes, pages: Pages) -> None:
    pages.content["/api/v1/json/data/7"] = answer
    with pytest.raises(UserError, match=r"`server`: .* did not describe a data set \(.*\); try again"):
        listing(7, pages.address)


@pytest.mark.parametrize(
    "url",
    ["http://there/x.arff", "file:///etc/passwd", "ftp://there/x", "//there/x", "https:///x", "http://[", ""],
)
def test_an_address_that_is_not_https_is_refused(url: str, pages: Pages) -> None:
    describe(pages, **LISTED | {"url": url})
    with pytest.raises(
        UserError, match=r"`server`: the address .* came, expected one that begins with https://"
    ):
        listing(7, pages.address)


def test_no_answer_is_refused(pages: Pages) -> None:
    with pytest.raises(
        UserError, match=r"`server`: .*api/v1/json/data/7 cannot be read .*check the connection, or put"
    ):
        listing(7, pages.address)


@pytest.mark.parametrize(
    ("target", "rows"),
    [
        ("@ATTRIBUTE class {0,1,2}", ["0,255,2", "7,8,0", "9,9,1"]),
        ("@ATTRIBUTE class {cat,dog,horse}", ["0,255,horse", "7,8,cat", "9,9,dog"]),
        ("@ATTRIBUTE 'class' {'0','1','2'}", ["0.0, 255.0, '2'", "7,8,'0'", "% between", "9,9,'1'"]),
    ],
)
def test_an_arff_file_is_read(target: str, rows: list[str], tmp_path: Path) -> None:
    images, labels = read_arff(arff(tmp_path / "x.arff", rows, target), "class", CLASSES, 2)
    assert images.tolist() == [[0, 255], [7, 8], [9, 9]]
    assert labels.tolist() == [2, 0, 1]
    assert images.dtype == labels.dtype == np.uint8


def test_many_points_are_read_in_order(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (12_345, 2))
    rows = [f"{first},{second},{first % 3}" for first, second in values]
    images, labels = read_arff(arff(tmp_path / "x.arff", rows), "class", CLASSES, 2)
    assert np.array_equal(images, values)
    assert np.array_equal(labels, values[:, 0] % 3)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["0,256,1"], r"a pixel is no whole number from 0 to 255"),
        (["0,-1,1"], r"a pixel is no whole number from 0 to 255"),
        (["0,0.5,1"], r"a pixel is no whole number from 0 to 255"),
        (["0,?,1"], "something other than pixels"),
        (["0,,1"], "something other than pixels"),
        (["{0 1, 2 1}"], "something other than pixels"),
        (["0,1,3"], r"has a class '3', expected 0\.\.2"),
        (["0,1,cow"], "has a class 'cow'"),
        ([], "something other than pixels"),
    ],
)
def test_what_is_not_such_an_image_is_refused(rows: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_arff(arff(tmp_path / "x.arff", rows), "class", CLASSES, 2)


@pytest.mark.parametrize(("target", "pixels"), [("label", 2), ("class", 3)])
def test_other_columns_are_refused(target: str, pixels: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"has 3 columns, expected {pixels} pixels and '{target}'"):
        read_arff(arff(tmp_path / "x.arff", ["0,1,2"]), target, CLASSES, pixels)


def test_a_page_in_place_of_an_arff_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.arff").write_text("<html>Service unavailable</html>\n")
    with pytest.raises(UserError, match="has 0 columns, expected 2 pixels"):
        read_arff(tmp_path / "x.arff", "class", CLASSES, 2)


def test_an_attribute_without_a_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.arff").write_text("@attribute\n@attribute  \n@data\n0,1\n")
    with pytest.raises(UserError, match="has 2 columns, expected 2 pixels and 'class'"):
        read_arff(tmp_path / "x.arff", "class", CLASSES, 2)
