"""Where the tensors are."""

from __future__ import annotations

__all__ = ["chosen_device"]


def chosen_device(asked: str) -> str:
    """The device, decided: what was asked for, and for "auto" a GPU if there is one.

    >>> chosen_device("cpu")
    'cpu'
    """
    if asked != "auto":
        return asked
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
