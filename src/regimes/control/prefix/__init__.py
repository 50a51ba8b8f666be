"""What frozen layers at the bottom compute, once for each sample.

Data go one way. ``record`` sees what a pass does with what hangs on inputs and frozen layers alone, ``detour`` holds
two passes against each other and finds what crosses the cut, ``replay`` runs a pass without what is below it.
Samples and networks are told apart by ``control.unchanged``; ``table`` keeps the values, ``cached`` is the door.
"""

from regimes.control.prefix.cached import CachedPrefix

__all__ = ["CachedPrefix"]
