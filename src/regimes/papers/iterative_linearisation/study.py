"""Goldwaser, Ge: Understanding Sparse Feature Updates in Deep Networks using Iterative Linearisation.

A network is replaced by its linearisation, which is renewed every K steps. K = 1 is training as usual, K = T that of
the network linearised at its start; between the two some ten feature updates, U = T / K, train as well as all of them.

All runs of a ladder take the same steps at the same small rate, at which no linear block diverges: a network comes
back from the edge of stability, a linear block does not. The full text (arXiv:2211.12345) was not at hand; protocols
are this library's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from regimes.papers.iterative_linearisation import CARD
from regimes.papers.iterative_linearisation.claims import EARLY, FEW, MANY, claims
from regimes.papers.iterative_linearisation.figures import figures
from regimes.papers.iterative_linearisation.protocol import PROTOCOL
from regimes.papers.iterative_linearisation.runs import DampingRun, IdentityRun
from regimes.papers.iterative_linearisation.tables import BLOCKS, tables
from regimes.papers.recipe.device import chosen_device
from regimes.study import Option, Scale, Study, Sweep, combine, grid
from regimes.study.field import Count

__all__ = ["STUDY", "Ladder"]

IDENTITIES = ("sgd", "momentum", "adam", "adamw", "linear")


@dataclass(frozen=True)
class Ladder:
    """A task that is trained in blocks.

    Attributes:
        kind: of the network: mlp, cnn or parity.
        steps: T, of all runs.
        fields: of the runs.
        updates: U beside those that the claims need, which are 1, 10, 100 and T.
        once: one linearisation, as divisors of T: 10 for one at T / 10.
        share: of the seeds that the settings ask for.
        share_once: of these, those that are linearised once.
    """

    kind: str
    steps: int
    fields: Mapping[str, Any]
    updates: tuple[int, ...] = ()
    once: tuple[int, ...] = ()
    share: float = 1.0
    share_once: float = 1.0

    def sweep(self, settings: Mapping[str, Any]) -> Sweep:
        """The ladder, and the runs that are linearised once."""
        run, seeds = BLOCKS[self.kind], max(2, round(self.share * settings["seeds"]))
        common = {**self.fields, "steps": self.steps, "device": chosen_device(settings["device"])}
        periods = {-(-self.steps // updates) for updates in (1, FEW, MANY, *self.updates)}
        few = range(max(2, round(self.share_once * seeds)))
        found = [grid(run, period=[1, *sorted(periods - {1})], seed=range(seeds), **common)]
        if self.once:
            steps = sorted({self.steps // part for part in (EARLY, *self.once)})
            found.append(grid(run, once=steps, seed=few, **common))
        return combine(*found)


def _scale(name: str, description: str, defaults: Mapping[str, Any], *ladders: Ladder) -> Scale:
    """A scale: its ladders, the identities, and the block beside a damped Gauss-Newton step."""

    def sweep(settings: Mapping[str, Any]) -> Sweep:
        return combine(
            *(one.sweep(settings) for one in ladders if one.kind in settings["networks"]),
            grid(IdentityRun, kind=IDENTITIES, seed=range(settings["controls"])),
            grid(DampingRun, seed=range(settings["controls"])),
        )

    return Scale(sweep, CARD.cost[name], description, defaults)


# Rates and numbers of steps were looked for on seeds from 100 on, before any run of a scale: those at which K = 1 has
# come near its end and the rate stays below the bound at every anchor. The paper scale was not tried.
DIGITS = Ladder(
    "mlp",
    1000,
    {"dataset": "digits", "n": 500, "n_test": 1200, "lr": 0.2},
    updates=(3,),
    once=(100,),
    share_once=0.67,
)
PARITY = Ladder("parity", 800, {"inputs": 50, "n": 800, "lr": 0.6}, share=0.67)
FASHION = Ladder(
    "cnn",
    1000,
    {"dataset": "fashion-mnist", "loss": "cross-entropy", "lr": 0.015, "n_test": 5000},
    once=(EARLY,),
)
CIFAR = Ladder(
    "cnn",
    1000,
    {
        "dataset": "cifar-10",
        "size": 16,
        "width": 6,
        "loss": "cross-entropy",
        "lr": 0.03,
        "n_test": 5000,
    },
)
WIDER_PARITY = Ladder("parity", 800, {"inputs": 60, "n": 1800, "lr": 0.6})
_PUBLISHED = {"n": 50_000, "n_test": 10_000, "width": 64, "size": None, "loss": "cross-entropy"}
PUBLISHED = tuple(
    Ladder(
        "cnn",
        400_000,
        {**_PUBLISHED, "dataset": dataset, "lr": 1e-3},
        updates=(2, 4, 25, 1000),
        once=(1000, 100, 30, 3),
    )
    for dataset in ("fashion-mnist", "cifar-10")
)

Kind = Literal["mlp", "cnn", "parity"]

STUDY = Study(
    name=CARD.name,
    title=CARD.title,
    paper=CARD.paper,
    runs=[*BLOCKS.values(), IdentityRun, DampingRun],
    options={
        "networks": Option(
            tuple[Kind, ...],
            ("mlp", "cnn", "parity"),
            "fully connected and convolutional on images, sparse parity",
        ),
        "seeds": Option(Count, 14, "of the networks that are trained in blocks"),
        "controls": Option(Count, 3, "seeds of the identities, and of the block beside a Gauss-Newton step"),
        "device": Option(Literal["auto", "cpu", "cuda"], "auto", "where the tensors are"),
    },
    scales={
        "quick": _scale("quick", "digits, fully connected; a parity of 2 inputs of 50", {}, DIGITS, PARITY),
        "small": _scale(
            "small",
            "2000 images of Fashion-MNIST and of CIFAR-10, convolutional; a parity of 2 inputs of 60",
            {"seeds": 24},
            FASHION,
            CIFAR,
            WIDER_PARITY,
        ),
        "paper": _scale("paper", "all images of Fashion-MNIST and CIFAR-10", {"seeds": 5}, *PUBLISHED),
    },
    claims=claims,
    figures=figures,
    tables=tables,
    protocol=PROTOCOL,
)
