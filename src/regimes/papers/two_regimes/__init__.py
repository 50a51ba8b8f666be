"""Leclerc, Madry 2020: training with large steps and with small ones. Planned."""

from regimes.papers.card import Card

__all__ = ["CARD"]

CARD = Card(
    name="two-regimes",
    title="Large steps for generalisation, small steps with momentum for optimisation",
    paper="Leclerc, Madry: The Two Regimes of Deep Network Training. arXiv:2002.10376",
    published="2020-02",
    claims=(
        "R18",
        "R19",
    ),
    cost={
        "quick": "2 minutes on 2 cores",
        "small": "30 minutes on 2 cores",
        "paper": "GPUs",
    },
)
"""What the catalogue says of it."""
