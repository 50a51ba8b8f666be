"""Tables on the page: what a study's functions give, as text, or why they gave none."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from regimes.core.error import UserError
from regimes.report import page
from regimes.report.laid_out import lay_out, lay_out_all
from regimes.study.fault import StudyFault
from tests.report import pages

ROWS = pd.DataFrame({"seed": [0, 1]})
TABLE = pd.DataFrame({"layers": ["top, <only>", "all"], "accuracy": [81.5, 85.0]})


def short(frame: pd.DataFrame) -> pd.DataFrame:
    raise UserError("`frame` has no finished run: let the study finish")


def wrong(frame: pd.DataFrame) -> Any:
    return 1 / 0


def test_cells_are_text_and_survive_commas() -> None:
    found = lay_out(("costs", "Costs", lambda rows: TABLE, "What it costs."), ROWS)
    assert found.columns == ("layers", "accuracy") and not found.note
    assert found.rows == (("top, <only>", "81.5"), ("all", "85.0"))
    assert list(csv.reader(io.StringIO(found.csv.decode()))) == [list(found.columns), *map(list, found.rows)]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (("costs", "Costs", short, ""), "let the study finish"),
        (("costs", "Costs", lambda rows: 3, ""), "gave int"),
        (("../costs", "Costs", lambda rows: TABLE, ""), "expected"),
        ("costs", "expected"),
    ],
)
def test_what_gives_no_table_is_a_note(entry: Any, words: str) -> None:
    found = lay_out(entry, ROWS)
    assert words in found.note and not found.rows
    assert "no run" in lay_out(("costs", "Costs", short, ""), ROWS.iloc[:0]).note


def test_a_mistake_in_the_study_is_told_and_noted() -> None:
    heard: list[StudyFault] = []
    assert "ZeroDivisionError" in lay_out(("costs", "Costs", wrong, ""), ROWS, heard.append).note
    (found,) = lay_out_all(wrong, ROWS, heard.append)
    assert "ZeroDivisionError" in found.note and len(heard) == 2


def test_tables_are_on_the_page_and_beside_it(tmp_path: Path) -> None:
    bare = dataclasses.replace(pages.STUDY, claims=(), figures=())

    def built(*tables: Any) -> str:
        page.build(tmp_path, dataclasses.replace(bare, tables=tables), frame=ROWS)
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    assert 'id="tables"' not in built()
    text = built(("costs", "What it costs", lambda rows: TABLE, "In <points>."))
    assert "top, &lt;only&gt;" in text and "In &lt;points&gt;." in text and 'href="#tables"' in text
    assert (tmp_path / "tables" / "costs.csv").read_text().splitlines()[0] == "layers,accuracy"
    assert "Not laid out" in built(("costs", "What it costs", short, ""))
    assert not (tmp_path / "tables" / "costs.csv").exists()
