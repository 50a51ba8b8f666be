"""What the good arguments of ``tests/arguments_base.py`` are made of: small data, networks, rows, studies."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from regimes import control, measure, models
from regimes.core import estimate
from regimes.core.loss import squared
from regimes.core.tree import trainable
from regimes.report import claim
from regimes.study import Scale, Study, grid
from tests.papers.feature_lazy import synthetic
from tests.papers.lazy_training import synthetic as lazy
from tests.study.toy import Toy

__all__ = [
    "Arguments",
    "costs",
    "draw",
    "folder",
    "inputs",
    "kernel",
    "lazy_rows",
    "network",
    "on_top",
    "one",
    "parameters",
    "renewed",
    "rows",
    "signs",
    "sparse",
    "spectrum",
    "statement",
    "study",
]

Arguments = dict[str, Any]


def inputs(n: int = 4) -> Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(n), dtype=torch.float64)


def signs(n: int = 4) -> Tensor:
    return 1.0 - 2.0 * (torch.arange(n) % 2).double()


def network() -> nn.Module:
    return models.mlp(3, 4, 1)


def parameters(shift: float = 0.0) -> dict[str, Tensor]:
    return {name: value.detach() + shift for name, value in trainable(network()).items()}


def kernel() -> Tensor:
    return measure.ntk(network(), inputs(), reduce="trace")


def spectrum() -> Tensor:
    return torch.linalg.eigvalsh(kernel()) / 4


@functools.cache
def rows() -> pd.DataFrame:
    return synthetic.study(widths=(16, 32, 64), seeds=2)


@functools.cache
def lazy_rows() -> pd.DataFrame:
    return lazy.laws_obeyed()


def folder() -> Path:
    return Path(tempfile.mkdtemp())


def sparse(module: nn.Module) -> Arguments:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    return {"module": module, "optimizer": optimizer, "moves": control.Cut(0.2), "example": inputs()}


def on_top(module: nn.Module) -> control.LayerwiseSparse:
    return control.LayerwiseSparse(**{**sparse(module), "moves": control.Fixed(top=1)})


def renewed(module: nn.Module) -> Arguments:
    linear = control.linearize(module)
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.1)
    data = {"inputs": inputs(), "targets": signs(), "loss": squared}
    return {"module": linear, "optimizer": optimizer, "rule": control.Adaptive(trust=0.5), **data}


def study() -> Study:
    return Study(
        "toys", "Toys", [Toy], {"quick": Scale(lambda settings: grid(Toy, width=[1, 2]), "1 s", "two")}
    )


@functools.cache
def costs() -> measure.LayerCosts:
    return measure.layer_costs(
        network(), [(inputs(), signs())], lambda out, y: (out[:, 0] - y).square().mean()
    )


def statement() -> claim.Claim:
    return claim.Claim("R1", "Toys", "One is one.", 1.0, "table 1", (0.0, 2.0), one)


def one(frame: pd.DataFrame) -> estimate.Estimate:
    return estimate.Estimate(1.0, 0.5, 1.5, 3)


def draw(frame: pd.DataFrame) -> Any:
    from matplotlib.figure import Figure

    return Figure()
