"""What README and the documentation show is what happens: every Python block runs as it is printed.

The blocks of a page run in order, in one namespace, in an empty directory. A comment before a block says what else is
known of it: ``<!-- block: slow -->`` (left to ``make test-slow``), ``data`` (needs REGIMES_DATA), ``prints`` (the
text block that follows is what it prints, up to one unit in the last digit of each number).
"""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?:^<!-- block: (?P<marks>[a-z ]+) -->\n)?^```(?P<kind>python|diff)\n(?P<code>.*?)^```$"
    r"(?:\n+^```text\n(?P<text>.*?)^```$)?",
    re.M | re.S,
)
MARKS = {"slow", "data", "prints"}
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


@dataclass(frozen=True)
class Block:
    """One block of code on a page: its first line there, its code, and what is known of it."""

    line: int
    kind: str
    code: str
    marks: frozenset[str]
    text: str


def blocks(page: Path) -> list[Block]:
    source = page.read_text()
    return [
        Block(
            line=source.count("\n", 0, found.start("code")) + 1,
            kind=found["kind"],
            code=found["code"],
            marks=frozenset((found["marks"] or "").split()),
            text=found["text"] or "",
        )
        for found in BLOCK.finditer(source)
    ]


CODED = {str(page.relative_to(ROOT)): blocks(page) for page in PAGES if blocks(page)}


def after(code: str) -> str:
    """A diff with its changes."""
    return "".join(line[2:] or "\n" for line in code.splitlines(keepends=True) if not line.startswith("-"))


def before(code: str) -> str:
    """A diff without its changes."""
    return "".join(line[2:] or "\n" for line in code.splitlines(keepends=True) if not line.startswith("+"))


def run(code: str, page: str, line: int, names: dict[str, object]) -> str:
    """Run a block; what it printed. A traceback shows the line of the page."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile("\n" * (line - 1) + code, str(ROOT / page), "exec"), names)
    return printed.getvalue()


def agree(printed: str, shown: str) -> bool:
    """The same words, and the same numbers up to one unit in the last digit that is shown.

    >>> agree("dK 0.31, 1.0e-4", "dK 0.32, 1.1e-4"), agree("dK 0.30", "dK 0.32"), agree("K 0.3", "dK 0.3")
    (True, False, False)
    """
    if NUMBER.sub("0", printed).split() != NUMBER.sub("0", shown).split():
        return False
    pairs = zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True)
    return all(abs(Decimal(one) - Decimal(other)) <= unit(other) for one, other in pairs)


def unit(number: str) -> Decimal:
    """One in the last digit of a number.

    >>> unit("3.8e-05"), unit("0.31")
    (Decimal('0.000001'), Decimal('0.01'))
    """
    return Decimal(1).scaleb(int(Decimal(number).as_tuple().exponent))


@pytest.mark.parametrize("page", CODED)
def test_python_blocks_run_as_printed(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in CODED[page]:
        if block.marks & {"slow", "data"}:
            continue
        if block.kind == "diff":
            run(before(block.code), page, block.line, {"__name__": "__main__"})
            run(after(block.code), page, block.line, {"__name__": "__main__"})
            continue
        printed = run(block.code, page, block.line, names)
        assert "prints" not in block.marks or agree(printed, block.text), printed


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in CODED if any("slow" in b.marks for b in CODED[page])])
def test_slow_python_blocks_run_as_printed(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    if any("data" in block.marks for block in CODED[page]):
        monkeypatch.setenv("REGIMES_DATA", str(request.getfixturevalue("real_data")))
    names: dict[str, object] = {"__name__": "__main__"}
    for block in CODED[page]:
        printed = run(block.code, page, block.line, names)
        assert "prints" not in block.marks or agree(printed, block.text), printed


def test_no_block_is_passed_over() -> None:
    """A block of data that is not slow would run nowhere; a comment with a typing error would be ignored."""
    for page, found in CODED.items():
        for block in found:
            assert block.marks <= MARKS and ("data" not in block.marks or "slow" in block.marks), page
    for page in PAGES:
        source = page.read_text()
        assert source.count("<!-- block:") == sum(bool(block.marks) for block in blocks(page)), page
        fenced = len(re.findall(r"^```(?:python|diff|py)\b", source, re.M))
        assert fenced == len(blocks(page)), page


def test_the_scale_of_the_readme_matters() -> None:
    """In the loop of README the kernel moves a hundred times less at alpha = 100 than at 1."""
    (block,) = (one for one in CODED["README.md"] if one.kind == "diff")
    code = after(block.code)
    assert "alpha=100.0" in code
    moved = {
        alpha: float(
            run(code.replace("alpha=100.0", f"alpha={alpha}"), "README.md", block.line, {}).split()[-1]
        )
        for alpha in ("100.0", "1.0")
    }
    assert 0 < moved["100.0"] < 0.1 * moved["1.0"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_links_to_is_there(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target
