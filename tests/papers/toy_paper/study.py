"""Its study."""

from __future__ import annotations

from regimes.study import Option, Scale, Study, grid
from regimes.study.field import Count

from . import CARD
from .claims import CLAIMS
from .figures import FIGURES
from .runs import ToyRun

__all__ = ["STUDY"]

STUDY = Study(
    name=CARD.name,
    title=CARD.title,
    paper=CARD.paper,
    runs=[ToyRun],
    options={"seeds": Option(Count, 3, "seeds of each scale")},
    scales={
        "quick": Scale(
            lambda settings: grid(ToyRun, alpha=[1.0, 100.0], seed=range(settings["seeds"])),
            CARD.cost["quick"],
            "twenty points",
        )
    },
    claims=CLAIMS,
    figures=FIGURES,
)
