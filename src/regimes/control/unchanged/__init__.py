"""Whether a network is still what it was: its parts by identity, its tensors by content, its attributes by value.

``roster`` knows the parts, ``contents`` the bits of tensors, ``computed`` is all of it.
"""

from regimes.control.unchanged.computed import Computed

__all__ = ["Computed"]
