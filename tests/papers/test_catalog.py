"""A paper is one folder: laid beside the others it is listed, run, judged and shown, without another line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import regimes
from regimes.papers.catalog import CATALOG, entry
from regimes.study import Store, Study
from tests.papers.toy_paper.runs import ToyRun
from tests.papers.toy_paper.study import STUDY

TOY = Path(__file__).parent / "toy_paper"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library with one folder more, as links: what a checkout looks like after the folder was added."""
    place = tmp_path_factory.mktemp("library")
    package = Path(regimes.__path__[0])
    for folder, below in ((place / "regimes", package), (place / "regimes" / "papers", package / "papers")):
        folder.mkdir()
        for path in below.iterdir():
            if path.name not in ("papers", "__pycache__"):
                (folder / path.name).symlink_to(path)
    (place / "regimes" / "papers" / "toy_paper").symlink_to(TOY)
    return place


PROGRAM = """
import sys
from regimes.cli import main
for words in ["list"], ["run", "toy-paper", "--out", "out"], ["claims", "out", "--json"], ["report", "out"]:
    sys.argv = ["regimes", *words]
    try:
        main()
    except SystemExit as end:
        print("exit", end.code)
"""


def test_a_paper_is_one_folder(library: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"PYTHONPATH": str(library)},
        cwd=library,
        capture_output=True,
        text=True,
        check=False,
    )
    listed, run, claims, report, _ = done.stdout.split("exit 0\n")
    assert "toy-paper (available)" in listed and "claims: T1" in listed and "quick: a few seconds" in listed
    assert "6 of 6 runs finished" in run and "1 of 1 claims reproduced" in run
    found = json.loads(claims)
    assert [(one["id"], one["paper"], one["verdict"]) for one in found] == [("T1", "toy-paper", "reproduced")]
    assert "Report:" in report
    page = (library / "out" / "report.html").read_text()
    assert "Weights move less under a larger output scale" in page
    assert (library / "out" / "figures" / "movement.svg").is_file()
    rows = Store(library / "out", [ToyRun]).read().frame
    assert {"dW", "size", "alpha", "status"} <= set(rows.columns)
    assert rows.loc[rows["status"] == "finished", "size"].gt(0).all()


def test_the_columns_of_a_run_are_those_of_its_probes() -> None:
    assert set(ToyRun.columns) == {"step", "time", "status", "loss", "seconds", "dW", "size"}


def test_the_folders_are_found_by_the_date_of_the_paper() -> None:
    dates = [one.card.published for one in CATALOG.values()]
    assert dates == sorted(dates)
    assert [one for one in CATALOG.values() if one.status == "planned"]
    assert entry("lazy-training").module == "regimes.papers.lazy_training.study"


def test_the_card_is_where_name_title_and_costs_stand() -> None:
    assert isinstance(STUDY, Study)
    assert (STUDY.name, STUDY.title) == ("toy-paper", "Weights move less under a larger output scale")
