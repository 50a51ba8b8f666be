"""Li, Banerjee 2021: active parameters, and back-propagation through few layers."""

from regimes.papers.card import Card

__all__ = ["CARD"]

CARD = Card(
    name="rich-regime",
    title="Few parameters and layers are active, and back-propagation can do without the others",
    paper="Li, Banerjee: Experiments with Rich Regime Training for Deep Learning. arXiv:2102.13522",
    published="2021-02",
    claims=(
        "R20",
        "R21",
    ),
    cost={
        "quick": "2 minutes on 2 cores",
        "small": "30 minutes on 2 cores",
        "paper": "days of one GPU",
    },
)
"""What the catalogue says of it."""
