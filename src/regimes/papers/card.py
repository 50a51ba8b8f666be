"""What is known of a paper's study without running it: its card, and nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Card"]


@dataclass(frozen=True)
class Card:
    """The card of a study: the ``CARD`` that the folder of a paper offers.

    Attributes:
        name: what ``regimes run`` calls the study.
        title: what it shows.
        paper: authors, title, where.
        published: year and month of the first version, such as "2019-06"; the catalogue goes by it.
        claims: the ids of the claims it gives a verdict on.
        cost: what a run takes in words, by the names of the scales; of a planned study what it may take.
    """

    name: str
    title: str
    paper: str
    published: str
    claims: tuple[str, ...]
    cost: Mapping[str, str]
