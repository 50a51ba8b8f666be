from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from regimes.core.error import UserError
from regimes.data.openml import Listing, listing, read_arff, retrieve

CLASSES = ("cat", "dog", "horse")
HEADER = "% a comment\n@RELATION images\n\n@ATTRIBUTE pixel1 real\n@attribute 'pixel 2' INTEGER\n"


def arff(path: Path, rows: list[str], target: str = "@ATTRIBUTE class {0,1,2}") -> Path:
    path.write_text(f"{HEADER}{target}\n@DATA\n" + "\n".join(rows) + "\n")
    return path


def describe(folder: Path, **fields: str) -> str:
    """A description where a server would give it; returns the server's address."""
    path = folder / "api" / "v1" / "json" / "data" / "7"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"data_set_description": fields}))
    return folder.as_uri()


def test_the_listing_is_read(tmp_path: Path) -> None:
    server = describe(
        tmp_path,
        id="7",
        name="images",
        url="http://there/x.arff",
        md5_checksum="abc",
        default_target_attribute="class",
    )
    assert listing(7, server) == Listing("images", "http://there/x.arff", "abc", "class")


def test_an_answer_that_is_no_listing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"`server`: .* did not describe a data set \(KeyError: 'url'\); try again"
    ):
        listing(7, describe(tmp_path, name="images"))


def test_no_answer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"`server`: .*api/v1/json/data/7 cannot be read .*check the connection, or put"
    ):
        listing(7, tmp_path.as_uri())


@pytest.mark.parametrize("progress", [True, False])
def test_what_is_retrieved_is_what_is_there(progress: bool, tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(3_000_000)
    (tmp_path / "there").write_bytes(content)
    md5 = hashlib.md5(content).hexdigest()
    retrieve((tmp_path / "there").as_uri(), tmp_path / "here", md5, "Images", progress)
    assert (tmp_path / "here").read_bytes() == content


def test_another_checksum_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"cut")
    found = hashlib.md5(b"cut").hexdigest()
    with pytest.raises(
        UserError, match=f"truncated or altered: md5 expected abc, found {found}; fetch it again"
    ):
        retrieve((tmp_path / "there").as_uri(), tmp_path / "here", "abc", "Images", False)


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
