"""Code that must not be compiled, called from code that may be."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["as_written"]

A = TypeVar("A")


def as_written(run: Callable[..., A], *args: Any) -> A:
    """What a function gives where parts that are compiled run as they were written.

    Something may be compiled, around the call or inside, and there tangents are lost without a word.
    """
    if "torch._dynamo" not in sys.modules:
        return run(*args)
    return torch.compiler.disable(_eagerly)(run, args)  # pyright: ignore[reportCallIssue]


def _eagerly(run: Callable[..., A], args: tuple[Any, ...]) -> A:
    with torch.compiler.set_stance("force_eager"):
        return run(*args)
