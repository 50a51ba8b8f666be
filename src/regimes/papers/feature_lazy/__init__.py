"""Geiger, Spigler, Jacot, Wyart 2020: the phase diagram of lazy and feature training."""

from regimes.papers.card import Card

__all__ = ["CARD"]

CARD = Card(
    name="feature-lazy",
    title="The phase diagram of lazy and feature training in scale and width",
    paper="Geiger, Spigler, Jacot, Wyart: Disentangling feature and lazy training in deep neural networks. "
    "J. Stat. Mech. 2020, arXiv:1906.08034",
    published="2019-06",
    claims=(
        "R6",
        "R7",
        "R8",
        "R9",
        "R10",
        "R11",
        "R12",
        "R13",
        "R14",
    ),
    cost={
        "quick": "2 minutes on 2 cores",
        "small": "30 minutes on 2 cores",
        "paper": "days on one GPU; a cluster for all of it",
    },
)
"""What the catalogue says of it."""
