"""A paper that nobody wrote: all that it takes to add one to the library, in one folder."""

from regimes.papers.card import Card

__all__ = ["CARD"]

CARD = Card(
    name="toy-paper",
    title="Weights move less under a larger output scale",
    paper="Nobody: Nothing New. 2025",
    published="2025-01",
    claims=("T1",),
    cost={"quick": "a few seconds"},
)
