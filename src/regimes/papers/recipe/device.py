"""Where the tensors are."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

__all__ = ["OnDevice", "chosen_device"]


class OnDevice(BaseModel):
    """What may run on a GPU.

    Attributes:
        device: cpu or cuda; kept in the key, since the last digits differ.
    """

    device: Literal["cpu", "cuda"] = "cpu"

    @property
    def place(self) -> str:
        """The device of the tensors."""
        return self.device


def chosen_device(asked: str) -> str:
    """The device, decided: what was asked for, and for "auto" a GPU if there is one.

    >>> chosen_device("cpu")
    'cpu'
    """
    if asked != "auto":
        return asked
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
