"""The page holds all it needs and nothing else; it is built from whatever is there."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import errno
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure

from regimes.core.error import UserError
from regimes.report import page, provenance
from regimes.report.shown import Shown
from tests.report import pages

EMPTY = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "rect", "line", "ellipse"}


class Reader(HTMLParser):
    """Collects tags, text and addresses, and checks that what is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "out"
    pages.built(folder)
    return folder


@pytest.fixture(scope="module")
def reader(out: Path) -> Reader:
    return Reader((out / "report.html").read_text(encoding="utf-8"))


def test_files(out: Path) -> None:
    names = {
        path.relative_to(out).as_posix()
        for path in out.rglob("*")
        if path.parent.name != "rows" and path.is_file()
    }
    figures = {
        f"figures/{name}.{kind}" for name in ("kernel_change", "phase_diagram") for kind in ("svg", "png")
    }
    assert names == figures | {"claims.json", "report.html", "study.json"}


def test_claims_file(out: Path) -> None:
    claims = json.loads((out / "claims.json").read_text())
    assert [one["verdict"] for one in claims] == [
        "reproduced",
        "not reproduced",
        "inconclusive",
        "reproduced",
        "outside this scale",
    ]
    assert [one["kind"] for one in claims] == ["claim", "claim", "claim", "control", "claim"]
    assert claims[4]["value"] < 0, "what is outside this scale has its value all the same"
    assert claims[1]["range"] == [None, -2.0]


def test_whole_and_self_contained(reader: Reader) -> None:
    assert reader.open == []
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in reader.tags}
    addresses = [attrs[name] or "" for _, attrs in reader.tags for name in ("src", "href") if name in attrs]
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "viewport" in [attrs.get("name") for tag, attrs in reader.tags if tag == "meta"]


def test_summary_claims_and_provenance_are_told(reader: Reader) -> None:
    for words in (
        "1 of 3 claims reproduced, 1 not reproduced, 1 inconclusive; 1 outside this scale; the control holds.",
        "width = 64, and it takes 1000: narrow networks bend.",
        "2025-01-31 A2 the range, from 0 to <b> a slip & a typing error none",
        "– the paper gives no number",
        "Nobody: Nothing, 2025 <i>",
        "frame has no rows of a <CNN>: run them .".replace(" .", "."),
        "−1.1 to −0.9",
        "at most −2",
        "at least 0",
        "theorem",
        "error clustered over",
        "regimes run made-up --out out",
        "3 min in 2 sessions",
        "torch: 2.6.0",
        "Not drawn:",
    ):
        assert words in reader.text


def test_every_picture_has_words(reader: Reader) -> None:
    images = [attrs for tag, attrs in reader.tags if tag == "img"]
    assert len(images) == 2
    assert all(attrs["alt"] for attrs in images)
    assert images[1]["alt"] == "Phase diagram. Two regions & a line."
    for attrs in images:
        svg = base64.b64decode((attrs["src"] or "").partition(",")[2])
        assert not re.search(rb'(?:href|src)="(?!#)', svg.replace(b'xlink:href="data:', b""))


def test_verdicts_are_told_by_word_and_sign(reader: Reader) -> None:
    badges = [attrs["class"] for tag, attrs in reader.tags if "badge" in (attrs.get("class") or "")]
    words = ["reproduced", "not-reproduced", "inconclusive", "outside-this-scale", "reproduced"]
    assert badges == [f"badge {word}" for word in words]
    assert reader.text.index("✓ holds") > reader.text.index("Controls Identities")
    for mark in "✓✗?○":
        assert mark in reader.text


def test_same_rows_same_page(out: Path) -> None:
    before = (out / "report.html").read_bytes()
    page.build(out, pages.STUDY)
    assert (out / "report.html").read_bytes() == before


def test_nothing_there_is_still_a_page(tmp_path: Path) -> None:
    verdicts = page.build(tmp_path, pages.STUDY)
    assert {one["verdict"] for one in verdicts} == {"inconclusive"}
    text = Reader((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "0 of 4 claims reproduced, 4 inconclusive; 0 of 1 controls hold." in text
    assert "Runs: none finished" in text
    assert text.count("Not drawn: no run is finished yet.") == 3


def test_stale_figures_are_removed(tmp_path: Path) -> None:
    stale = tmp_path / "figures" / "gap.svg"
    stale.parent.mkdir()
    stale.write_text("old")
    page.build(tmp_path, pages.STUDY, pages.rows(1))
    assert not stale.exists()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "abc.parquet").write_bytes(b"no")
    (tmp_path / "study.json").write_text("{")
    page.build(tmp_path, pages.STUDY)
    text = Reader((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "abc.parquet is torn or not Parquet: left out;" in text
    assert "study.json could not be read and was left out." in text


def test_no_folder_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`store` is"):
        page.build(tmp_path / "nowhere", pages.STUDY)


def test_files_are_written_through_the_given_function(tmp_path: Path) -> None:
    written: dict[str, bytes] = {}
    page.build(
        tmp_path,
        pages.STUDY,
        pd.DataFrame(),
        write=lambda path, content: written.update({path.name: content}),
    )
    assert set(written) == {"claims.json", "report.html"}
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays_when_the_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every write in turn, with every error a disk may have: one line, and whole files of before or after."""
    monkeypatch.setattr(page, "draw_all", lambda *_: [Shown("one", "One", "", b"svg", b"png")])
    page.build(tmp_path, PLAIN)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    original, writes = os.replace, 0
    for error in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.EACCES):
        for failing in range(4):
            count = 0

            def replace(*arguments: Any, error: int = error, failing: int = failing) -> None:
                nonlocal count
                count += 1
                if count > failing:
                    raise OSError(error, os.strerror(error))
                original(*arguments)

            monkeypatch.setattr("os.replace", replace)
            with pytest.raises(UserError, match=f"cannot write there .*{os.strerror(error).lower()}"):
                page.build(tmp_path, PLAIN)
            writes += 1
            monkeypatch.setattr("os.replace", original)
            assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert writes == 20


def square(frame: pd.DataFrame) -> Figure:
    return Figure(figsize=(1, 1))


def wild(frame: pd.DataFrame) -> Any:
    raise RuntimeError("wild")


PLAIN = dataclasses.replace(pages.STUDY, claims=(), figures=(("square", "Square", square, ""),))
ROWS = pd.DataFrame({"key": ["a"], "status": ["finished"]})


def test_what_raises_is_a_note_and_the_rest_is_built(tmp_path: Path) -> None:
    claims = (pages.claim("A9", (0, 1), wild),)
    figures = (("wild", "Wild", wild, ""), ("none", "None", lambda frame: None, ""), *PLAIN.figures)
    study = dataclasses.replace(PLAIN, claims=claims, figures=figures)
    (tmp_path / "failures.txt").write_text("a run failed\n")
    for _ in range(2):
        with pytest.warns(
            UserWarning, match=r"raised RuntimeError: wild \(test_page.py, line \d+\); the traceback"
        ):
            verdicts = page.build(tmp_path, study, ROWS)
    assert "raised RuntimeError: wild" in verdicts[-1]["note"]
    text = Reader((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "Not drawn: figure wild raised RuntimeError: wild (test_page.py, line" in text
    assert "figure none gave NoneType: expected a matplotlib Figure" in text
    kept = (tmp_path / "failures.txt").read_text()
    assert kept.startswith("a run failed\n") and kept.count("Traceback") == 2
    assert (tmp_path / "figures" / "square.png").is_file()
    page.build(tmp_path, PLAIN, ROWS)
    assert (tmp_path / "failures.txt").read_text() == "a run failed\n"


def test_claims_that_cannot_be_had_leave_the_figures(tmp_path: Path) -> None:
    study = dataclasses.replace(PLAIN, claims=wild)
    with (
        pytest.warns(UserWarning, match="`claims` raised"),
        pytest.raises(UserError, match="`claims` raised RuntimeError: wild"),
    ):
        page.build(tmp_path, study, ROWS)
    assert "`claims`".strip("`") in (tmp_path / "report.html").read_text()
    assert (tmp_path / "figures" / "square.svg").is_file()


NAMES = ["../../x", "/tmp/x", "a/b", "..", ".", "", "x\0y", "x" * 300, "a\nb", "\udcff", "~", "con:", 3, None]


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_figure_stays_in_its_folder(tmp_path: Path, name: Any) -> None:
    figures = ((name, "Title", square, "Caption"),)
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    page.build(out, dataclasses.replace(PLAIN, figures=figures), ROWS)
    assert {path.name for path in tmp_path.rglob("*")} == {"deep", "out", "claims.json", "report.html"}
    assert "expected (name, title, function, caption)" in (out / "report.html").read_text()


@pytest.mark.parametrize("figures", [3, [3], [()], ["abcd"], [("a", "b", 3, "c")], wild, lambda frame: 3])
def test_figures_of_another_form_are_a_note(tmp_path: Path, figures: Any) -> None:
    study = dataclasses.replace(PLAIN, figures=figures)
    with (
        contextlib.nullcontext()
        if isinstance(figures, list)
        else pytest.warns(UserWarning, match="`figures`")
    ):
        page.build(tmp_path, study, ROWS)
    assert "Not drawn: <code>figures</code>" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"sessions": "none", "data": None},
        {"sessions": [{}], "anything": {"deep": {"deeper": {"deepest": [1, {"a": 2}]}}}},
        {
            "sessions": [
                {"seconds": 10**400},
                {"seconds": float("nan")},
                {"seconds": -1},
                {"seconds": float("inf")},
            ]
        },
        {"sessions": [{"seconds": "many", "command": None, "machine": "a laptop", "versions": None}]},
    ],
)
def test_provenance_survives_any_record(record: dict[str, Any]) -> None:
    for name, value in provenance.facts(record):
        assert name
        assert isinstance(value, (str, list))


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (-1.3337, -1.3357, -1.3318, ("−1.3337", "[−1.3357, −1.3318]")),
        (0.5, 0.5, 0.5, ("0.500", "[0.500, 0.500]")),
        (1234.0, 1100.0, 1400.0, ("1234", "[1100, 1400]")),
        (1e-6, 0.9e-6, 1.1e-6, ("1.00 × 10⁻⁶", "[9.00 × 10⁻⁷, 1.10 × 10⁻⁶]")),
    ],
)
def test_measured_numbers_have_the_digits_they_deserve(
    value: float, low: float, high: float, expected: tuple[str, str]
) -> None:
    assert page.measured({"value": value, "low": low, "high": high}) == expected


def test_what_a_study_says_of_its_statistics_is_among_the_methods() -> None:
    own = dataclasses.replace(pages.STUDY, methods=(("Drift", "It is a share < 1."),))
    with_it, without = (page.render(study, [], [], pages.rows(1), {}) for study in (own, pages.STUDY))
    assert "<b>Drift.</b> It is a share &lt; 1." in with_it and "Drift." not in without
    assert "crossover" not in without.split("Methods")[-1]
