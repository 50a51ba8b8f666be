"""Modules that a fast tangent kernel gets wrong, unless it looks at what they do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests import reference
from tests.measure import (
    awkward_attention,
    awkward_forward,
    awkward_layers,
    awkward_refused,
    awkward_shared,
    awkward_traps,
    awkward_weights,
)
from tests.measure.awkward_case import F64, Case, D

__all__ = ["CASES", "F64", "TABLES", "Case", "D", "build", "samples"]

TABLES = (
    awkward_layers.CASES,
    awkward_shared.CASES,
    awkward_weights.CASES,
    awkward_forward.CASES,
    awkward_attention.CASES,
    awkward_traps.CASES,
)
CASES: dict[str, Case] = {name: case for table in TABLES for name, case in table.items()}


def build(name: str, dtype: torch.dtype = F64) -> nn.Module:
    """The module of that name, the same at every call; a branching one, too."""
    torch.manual_seed(1)
    return {**CASES, **awkward_refused.BRANCHING}[name].module().to(dtype)


def samples(name: str, n: int, dtype: torch.dtype = F64) -> Any:
    """n samples for the module of that name, the same at every call."""

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return reference.each(CASES[name].samples(n), cast)
