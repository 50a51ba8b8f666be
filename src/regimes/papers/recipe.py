"""What the runs of papers share: data, network, engine and probes, put together to a run."""

from __future__ import annotations

__all__ = ["device_of"]


def device_of(asked: str) -> str:
    """The device, decided: what was asked for, and for "auto" a GPU if there is one.

    >>> device_of("cpu")
    'cpu'
    """
    if asked != "auto":
        return asked
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
