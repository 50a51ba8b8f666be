"""A made-up study with claims of every verdict and figures of every kind, built into a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from regimes.core.error import UserError
from regimes.papers.feature_lazy import figures
from regimes.papers.feature_lazy.tables import plane
from regimes.report import fit, page
from regimes.report.claim import Claim, Estimate, Scope
from regimes.study import Amendment, Run, Store
from regimes.study.field import Rows, Tick
from tests.papers.feature_lazy import synthetic

RECORD = {
    "study": "made-up",
    "scale": "quick",
    "settings": {"widths": [16, 64], "seeds": 3},
    "source": None,
    "sessions": [
        {
            "started": "2025-01-01T12:00:00+00:00",
            "seconds": 60.0 * (i + 1),
            "finished": 48,
            "command": "regimes run made-up --out out",
            "on": "here",
            "machine": {"system": "Linux", "cores": 2},
            "versions": {"regimes": "0.1.0", "torch": "2.6.0"},
        }
        for i in range(2)
    ],
}


class Plane(Run):
    """One network of the synthetic plane; its rows are made up."""

    columns: ClassVar[dict[str, Any]] = {
        **dict.fromkeys(("member", "step"), int),
        **dict.fromkeys(("time", "loss", "seconds", "dK", "dW", "t1", "t2", "test_error"), float),
        **dict.fromkeys(("test_targets", "test_outputs"), list[float]),
        "status": str,
    }

    dataset: str
    task: str
    n: int
    depth: int
    law: str
    width: int
    alpha: float
    seed: int

    @classmethod
    def perform(cls, runs: Sequence[Run], data: Path | None, tick: Tick) -> Iterator[tuple[Run, Rows]]:
        yield from ()


@dataclass(frozen=True)
class Study:
    name: str
    title: str
    paper: str
    runs: tuple[type[Run], ...]
    claims: tuple[Claim, ...]
    figures: tuple[Any, ...]
    protocol: tuple[Amendment, ...] = ()
    methods: tuple[tuple[str, str], ...] = ()
    tables: tuple[Any, ...] = ()


def slope(frame: pd.DataFrame) -> Estimate:
    rows = plane.tidy(frame)
    return fit.power_law(rows["x"], rows["dK"], (1e3, 1e6), groups=rows["network"]).estimate()


def missing(frame: pd.DataFrame) -> Estimate:
    raise UserError("`frame` has no rows of a <CNN>: run them")


def undrawn(frame: pd.DataFrame) -> None:
    missing(frame)


def claim(name: str, allowed: tuple[float | None, float | None], statistic: Callable[..., Estimate]) -> Claim:
    return Claim(
        name,
        "made up",
        f"The drift falls with a known exponent & more ({name}).",
        -1.0,
        "theorem",
        allowed,
        statistic,
    )


STUDY = Study(
    "made-up",
    "A study that was made up",
    "Nobody: Nothing, 2025 <i>",
    (Plane,),
    (
        claim("A1", (-1.1, -0.9), slope),
        claim("A2", (None, -2.0), slope),
        claim("A3", (0.0, None), missing),
        replace(claim("A4", (-1.1, -0.9), slope), kind="control"),
        replace(
            claim("A5", (0.0, None), slope),
            reference="upwards",
            scope=Scope({"width": 1000}, "narrow networks bend"),
        ),
    ),
    (
        ("kernel_change", "Kernel drift", figures.kernel_change, "One curve for all widths."),
        ("phase_diagram", "Phase diagram", figures.phase_diagram, "Two regions & a line."),
        ("gap", "Gap", undrawn, "Not measured."),
    ),
    (Amendment("2025-01-31", ("A2",), "the range, from 0 to <b>", "a slip & a typing error", "none"),),
)


def rows(panels: int = 2) -> pd.DataFrame:
    grid = (-2, -1, 0, 1, 2, 3, 4, 5)
    parts = [synthetic.study((16, 64), grid, outputs=False, depth=2 + i) for i in range(panels)]
    return pd.concat(parts, ignore_index=True)


def built(out: Path, panels: int = 2) -> list[dict[str, Any]]:
    """Write the rows and the record as a study would, then build the page."""
    store = Store(out, (Plane,))
    for _, part in rows(panels).groupby("key"):
        looks = part.astype(object).where(part.notna(), None).to_dict("records")
        own = Plane(**{name: looks[0][name] for name in Plane.model_fields})
        store.put(own, [{str(name): look[name] for name in Plane.columns} for look in looks])
    (out / "study.json").write_text(json.dumps(RECORD))
    return page.build(out, STUDY)
