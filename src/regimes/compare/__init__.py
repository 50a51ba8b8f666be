"""Would a linear model do?

Data go one way: ``problem`` (what is learnt), ``fit`` and ``kernel`` (the models), ``comparison``; ``linear`` is the
door.
"""

from regimes.compare.comparison import Comparison
from regimes.compare.linear import would_linear_do

__all__ = ["Comparison", "would_linear_do"]
