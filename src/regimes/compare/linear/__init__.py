"""Would a linear model do: ``kernel`` solves what ``task.fit`` takes steps for; ``comparison`` is the result."""

from regimes.compare.linear.comparison import Comparison
from regimes.compare.linear.would_linear_do import would_linear_do

__all__ = ["Comparison", "would_linear_do"]
