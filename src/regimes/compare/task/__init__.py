"""What comparisons have in common.

``prepare`` checks a ``problem``, ``fit`` and ``loop`` train on it, ``score`` gives intervals, a ``criterion`` decides.
"""

__all__ = []
