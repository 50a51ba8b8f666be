"""Goldwaser, Ge 2022: features that are renewed every K steps."""

from regimes.papers.card import Card

__all__ = ["CARD"]

CARD = Card(
    name="iterative-linearisation",
    title="How often must a network be linearised again to train as well as it does itself",
    paper="Goldwaser, Ge: Understanding Sparse Feature Updates in Deep Networks using Iterative "
    "Linearisation. arXiv:2211.12345",
    published="2022-11",
    claims=(
        "R15",
        "R16",
        "R17",
        "P3-C",
        "P3-D",
    ),
    cost={
        "quick": "2 minutes on 2 cores",
        "small": "30 minutes on 2 cores",
        "paper": "GPUs",
    },
)
"""What the catalogue says of it."""
