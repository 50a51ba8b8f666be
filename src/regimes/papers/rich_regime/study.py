r"""Li, Banerjee: Experiments with Rich Regime Training for Deep Learning (arXiv:2102.13522).

After training most parameters have hardly moved and a few have moved far; these few are what was learnt, and lie in the
bottom layers, the more so the wider the network. Training that moves the top layers, and all of them now and then,
generalises as well as training of all of them, with a cheaper backward pass.

The abstract alone was at hand: what is active, which layers move and all numbers are definitions of this library
(``measure.activity``, ``measure.reset_test``, ``control.Cut``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from regimes.papers.recipe.device import chosen_device
from regimes.papers.rich_regime import CARD
from regimes.papers.rich_regime.claims import SAMPLED, claims
from regimes.papers.rich_regime.figures import figures
from regimes.papers.rich_regime.protocol import PROTOCOL
from regimes.papers.rich_regime.runs import ActivityRun, SparseRun
from regimes.study import Option, Scale, Study, Sweep, combine, grid
from regimes.study.field import Count

__all__ = ["STUDY", "Size"]

Law = Literal["standard", "mup"]
LAWS: tuple[Law, ...] = ("standard", "mup")


@dataclass(frozen=True)
class Size:
    """The size of both experiments on one data set.

    Attributes:
        n: training images.
        n_test: test images.
        batch_size: of descent.
        epochs: of the networks whose parameters are looked at.
        width: of the networks trained by layers.
        sparse_epochs: of these: enough for the sampled layers to reach the end of training as well.
        lr: the step under each law.
    """

    n: int
    n_test: int
    batch_size: int
    epochs: int
    width: int
    sparse_epochs: int
    lr: Mapping[str, float]

    def sweep(self, dataset: str, settings: Mapping[str, Any]) -> Sweep:
        """Widths under both laws, then policies of layers under the standard one."""
        common = {
            "dataset": dataset,
            "n": self.n,
            "n_test": self.n_test,
            "batch_size": self.batch_size,
            "momentum": settings["momentum"],
            "device": chosen_device(settings["device"]),
        }
        seeds = {"standard": range(settings["starts"]), "mup": range(settings["seeds"])}
        moved = [
            grid(
                ActivityRun,
                law=law,
                width=settings["widths"],
                lr=self.lr[law],
                epochs=self.epochs,
                seed=seeds[law],
                **common,
            )
            for law in LAWS
        ]
        fixed = {
            **common,
            "width": self.width,
            "lr": self.lr["standard"],
            "epochs": self.sparse_epochs,
            "seed": range(settings["seeds"]),
        }
        chances = sorted({SAMPLED, *settings["chances"]})
        return combine(
            *moved,
            grid(SparseRun, policy=["all", "top", "ends"], **fixed),
            grid(SparseRun, policy="sampled", p=chances, **fixed),
        )


# Steps at which the training loss falls at the smallest and the largest width, and at a smaller step besides: looked up
# on the training loss of all layers alone, before any run of the study. Those of the paper scale were not tried.
DIGITS = Size(
    n=1000, n_test=700, batch_size=50, epochs=15, width=64, sparse_epochs=40, lr={"standard": 0.2, "mup": 0.2}
)
SUBSET = Size(
    n=6000,
    n_test=4000,
    batch_size=64,
    epochs=20,
    width=128,
    sparse_epochs=60,
    lr={"standard": 0.05, "mup": 0.5},
)
ALL = Size(
    n=50_000,
    n_test=10_000,
    batch_size=64,
    epochs=50,
    width=1024,
    sparse_epochs=100,
    lr={"standard": 0.02, "mup": 0.5},
)


def _scale(name: str, size: Size, description: str, defaults: Mapping[str, Any]) -> Scale:
    """A scale; digits have one size at all of them."""

    def sweep(settings: Mapping[str, Any]) -> Sweep:
        sizes = {name: DIGITS if name == "digits" else size for name in settings["datasets"]}
        return combine(*(chosen.sweep(name, settings) for name, chosen in sizes.items()))

    return Scale(sweep, CARD.cost[name], description, defaults)


MORE: Mapping[str, Any] = {"chances": (0.1, SAMPLED, 0.45), "seeds": 10}
Data = Literal["digits", "mnist", "fashion-mnist", "cifar-10"]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Chance = Annotated[float, Field(ge=0, le=1)]

STUDY = Study(
    name=CARD.name,
    title=CARD.title,
    paper=CARD.paper,
    runs=[ActivityRun, SparseRun],
    options={
        "datasets": Option(tuple[Data, ...], ("digits",), "data sets, all classes"),
        "widths": Option(
            tuple[Count, ...], (16, 32, 64, 128), "widths of the networks whose parameters are looked at"
        ),
        "chances": Option(tuple[Chance, ...], (SAMPLED,), "probabilities that all layers move"),
        "momentum": Option(Momentum, 0.0, "of the descent"),
        "starts": Option(Count, 20, "seeds of the networks whose parameters are looked at, standard law"),
        "seeds": Option(Count, 8, "seeds of all others"),
        "device": Option(Literal["auto", "cpu", "cuda"], "auto", "where the tensors are"),
    },
    scales={
        "quick": _scale("quick", DIGITS, "digits, widths 16 to 128; layers by policy at width 64", {}),
        "small": _scale(
            "small",
            SUBSET,
            "6000 images of Fashion-MNIST, widths 64 to 512; layers by policy at width 128, 60 epochs",
            {**MORE, "datasets": ("fashion-mnist",), "widths": (64, 128, 256, 512)},
        ),
        "paper": _scale(
            "paper",
            ALL,
            "50000 images of Fashion-MNIST and CIFAR-10, widths to 2048",
            {**MORE, "datasets": ("fashion-mnist", "cifar-10"), "widths": (128, 256, 512, 1024, 2048)},
        ),
    },
    claims=claims,
    figures=figures,
    protocol=PROTOCOL,
)
