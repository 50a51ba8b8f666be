"""Would a linear model do?

Data go one way: ``task`` (what is learnt), ``fit`` and ``kernel`` (the models), ``verdict``; ``linear`` is the door.
"""

from regimes.compare.linear import would_linear_do
from regimes.compare.verdict import Comparison

__all__ = ["Comparison", "would_linear_do"]
