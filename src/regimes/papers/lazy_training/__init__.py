"""Chizat, Oyallon, Bach 2019: lazy training comes from scale, not from width."""

from regimes.papers.card import Card

__all__ = ["CARD"]

CARD = Card(
    name="lazy-training",
    title="A large output scale keeps a network at its linearisation",
    paper="Chizat, Oyallon, Bach: On Lazy Training in Differentiable Programming. NeurIPS 2019, "
    "arXiv:1812.07956",
    published="2018-12",
    claims=(
        "R1",
        "R2",
        "R3",
        "R4",
        "R5",
    ),
    cost={
        "quick": "2 minutes on 2 cores",
        "small": "30 minutes on 2 cores",
        "paper": "weeks of one GPU",
    },
)
"""What the catalogue says of it."""
