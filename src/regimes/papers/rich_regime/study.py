r"""Li, Banerjee: Experiments with Rich Regime Training for Deep Learning (arXiv:2102.13522).

After training most parameters have hardly moved and a few have moved far; these few are what was learnt, and lie in the
bottom layers, the more so the wider the network. Training that moves the top layers, and all of them now and then,
generalises as well as training of all of them, with a cheaper backward pass.

The abstract alone was at hand: what is active, which layers move and all numbers are definitions of this library
(``measure.activity``, ``measure.reset_test``, ``control.Cut``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from regimes.papers.recipe.device import chosen_device
from regimes.papers.rich_regime import CARD
from regimes.papers.rich_regime.claims import claims
from regimes.papers.rich_regime.figures import figures
from regimes.papers.rich_regime.protocol import PROTOCOL
from regimes.papers.rich_regime.tables import ACTIVITY, SAMPLED, SPARSE, tables
from regimes.study import Option, Scale, Study, Sweep, combine, grid
from regimes.study.field import Count

__all__ = ["STUDY", "Network", "Size", "Trained"]

Law = Literal["standard", "mup"]
LAWS: tuple[Law, ...] = ("standard", "mup")
# The option that holds the widths of a network.
WIDTHS = {"mlp": "widths", "cnn": "channels"}


@dataclass(frozen=True)
class Trained:
    """The networks that are trained by policies of layers, under the standard law.

    Attributes:
        width: of their layers.
        epochs: the same for all policies: enough for training of all layers to come to an end.
        lr: the step at first.
        decay: of the step: lr / (1 + decay t) in epoch t.
        more: seeds of all layers and of the sampled policy, beyond those that the settings ask for.
    """

    width: int
    epochs: int
    lr: float
    decay: float = 0.0
    more: int = 0


@dataclass(frozen=True)
class Network:
    """One kind of network in both experiments.

    Attributes:
        kind: mlp or cnn.
        epochs: of the networks whose parameters are looked at.
        lr: their step under each law.
        policies: the networks of the second experiment; None where it is left out.
        momentum: of both, if the settings do not say.
        decay: of the step of the first experiment.
        share: of the seeds that the settings ask for in the first experiment.
        fields: others of the runs.
    """

    kind: str
    epochs: int
    lr: Mapping[str, float]
    policies: Trained | None
    momentum: float = 0.0
    decay: float = 0.0
    share: float = 1.0
    fields: Mapping[str, Any] = field(default_factory=dict)

    def looked_at(self, common: Mapping[str, Any], settings: Mapping[str, Any]) -> Sweep:
        """The first experiment: widths under both laws."""
        counts = {"standard": settings["starts"], "mup": settings["mup_starts"]}
        seeds = {law: range(max(1, round(self.share * count))) for law, count in counts.items()}
        moved = [
            grid(
                ACTIVITY[self.kind],
                law=law,
                width=settings[WIDTHS[self.kind]],
                lr=self.lr[law],
                decay=self.decay,
                epochs=self.epochs,
                seed=seeds[law],
                **self._common(common, settings),
            )
            for law in LAWS
        ]
        return combine(*moved)

    def trained(self, common: Mapping[str, Any], settings: Mapping[str, Any]) -> Sweep:
        """The second experiment: policies of layers under the standard law, if there is one."""
        if self.policies is None:
            return combine()
        fixed = {**self._common(common, settings), **asdict(self.policies)}
        seeds = settings["seeds"]
        few, many = range(seeds), range(seeds + fixed.pop("more"))
        chances = sorted({SAMPLED, *settings["chances"]})
        run = SPARSE[self.kind]
        return combine(
            grid(run, policy="all", seed=many, **fixed),
            grid(run, policy=["top", "ends"], seed=few, **fixed),
            grid(run, policy="sampled", p=chances, seed=many, **fixed),
        )

    def _common(self, common: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        """What the runs of both experiments share."""
        momentum = self.momentum if settings["momentum"] is None else settings["momentum"]
        return {**common, **self.fields, "momentum": momentum}


@dataclass(frozen=True)
class Size:
    """The size of both experiments on one data set.

    Attributes:
        n: training images.
        n_test: test images.
        batch_size: of descent.
        networks: what is trained on them.
    """

    n: int
    n_test: int
    batch_size: int
    networks: tuple[Network, ...]

    def looked_at(self, dataset: str, settings: Mapping[str, Any]) -> Sweep:
        """The first experiment on the networks that the settings ask for."""
        common = self._common(dataset, settings)
        return combine(*(network.looked_at(common, settings) for network in self._asked(settings)))

    def trained(self, dataset: str, settings: Mapping[str, Any]) -> Sweep:
        """The second experiment on the networks that the settings ask for."""
        common = self._common(dataset, settings)
        return combine(*(network.trained(common, settings) for network in self._asked(settings)))

    def _asked(self, settings: Mapping[str, Any]) -> list[Network]:
        return [network for network in self.networks if network.kind in settings["networks"]]

    def _common(self, dataset: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What all runs share."""
        return {
            "dataset": dataset,
            "n": self.n,
            "n_test": self.n_test,
            "batch_size": self.batch_size,
            "device": chosen_device(settings["device"]),
        }


# Steps at which the training loss falls without jumps at the smallest and the largest width: looked up on the training
# loss, on seeds from 100 on, before any run of a scale. Those of the paper scale were not tried. The step of the small
# scale decays, since the last steps at a constant one scatter the accuracy by more than the claims allow. Its policies
# are trained on MNIST: there 30 epochs bring the sampled one to an end, while on Fashion-MNIST 60 do not.
DIGITS = Size(
    n=1000,
    n_test=700,
    batch_size=50,
    networks=(
        Network("mlp", 15, {"standard": 0.2, "mup": 0.2}, Trained(width=64, epochs=40, lr=0.2)),
        # On 1000 images convolutional networks trained by policies scatter by 3 points between starts.
        Network("cnn", 8, {"standard": 0.05, "mup": 0.1}, None, momentum=0.9, decay=0.2, share=0.5),
    ),
)
SUBSET = Size(
    n=5000,
    n_test=4000,
    batch_size=64,
    networks=(
        Network(
            "mlp",
            20,
            {"standard": 0.02, "mup": 0.1},
            Trained(width=128, epochs=30, lr=0.05, decay=0.1),
            decay=0.2,
        ),
        Network(
            "cnn",
            8,
            {"standard": 0.02, "mup": 0.1},
            Trained(width=16, epochs=30, lr=0.03, decay=0.1, more=2),
            momentum=0.9,
            decay=0.2,
            fields={"size": 14},
        ),
    ),
)
ALL = Size(
    n=50_000,
    n_test=10_000,
    batch_size=64,
    networks=(
        Network(
            "mlp",
            50,
            {"standard": 0.01, "mup": 0.1},
            Trained(width=1024, epochs=100, lr=0.02, decay=0.05),
            decay=0.1,
        ),
        Network(
            "cnn",
            50,
            {"standard": 0.01, "mup": 0.1},
            Trained(width=64, epochs=100, lr=0.01, decay=0.05),
            momentum=0.9,
            decay=0.1,
        ),
    ),
)


def _scale(name: str, size: Size, description: str, defaults: Mapping[str, Any]) -> Scale:
    """A scale; digits have one size at all of them."""

    def sweep(settings: Mapping[str, Any]) -> Sweep:
        def of(dataset: str) -> Size:
            return DIGITS if dataset == "digits" else size

        names = settings["datasets"]
        trained = settings["policy_datasets"] or names
        return combine(
            *(of(each).looked_at(each, settings) for each in names),
            *(of(each).trained(each, settings) for each in trained),
        )

    return Scale(sweep, CARD.cost[name], description, defaults)


Data = Literal["digits", "mnist", "fashion-mnist", "cifar-10"]
Kind = Literal["mlp", "cnn"]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Chance = Annotated[float, Field(ge=0, le=1)]

STUDY = Study(
    name=CARD.name,
    title=CARD.title,
    paper=CARD.paper,
    runs=[*ACTIVITY.values(), *SPARSE.values()],
    options={
        "datasets": Option(tuple[Data, ...], ("digits",), "data sets, all classes"),
        "policy_datasets": Option(
            tuple[Data, ...], (), "data sets of the networks trained by policies, if not the same"
        ),
        "networks": Option(tuple[Kind, ...], ("mlp", "cnn"), "fully connected, convolutional"),
        "widths": Option(
            tuple[Count, ...], (16, 32, 64, 128), "of the fully connected networks that are looked at"
        ),
        "channels": Option(
            tuple[Count, ...], (8, 16, 24, 32), "widths of the convolutional networks that are looked at"
        ),
        "chances": Option(tuple[Chance, ...], (SAMPLED,), "probabilities that all layers move"),
        "momentum": Option(Momentum | None, None, "of the descent, if not that of each network"),
        "starts": Option(Count, 20, "seeds of the networks that are looked at, standard law"),
        "mup_starts": Option(Count, 8, "seeds of the networks that are looked at, maximal-update law"),
        "seeds": Option(Count, 8, "seeds of the networks trained by policies of layers"),
        "device": Option(Literal["auto", "cpu", "cuda"], "auto", "where the tensors are"),
    },
    scales={
        "quick": _scale("quick", DIGITS, "digits; widths 16 to 128, channels 8 to 32", {}),
        "small": _scale(
            "small",
            SUBSET,
            "5000 images of Fashion-MNIST, of MNIST for the policies; widths 64 to 512, channels 8 to 32",
            {
                "datasets": ("fashion-mnist",),
                "policy_datasets": ("mnist",),
                "widths": (64, 128, 256, 512),
                "starts": 10,
                "mup_starts": 4,
                "seeds": 14,
            },
        ),
        "paper": _scale(
            "paper",
            ALL,
            "50000 images of Fashion-MNIST and CIFAR-10; widths to 2048, channels to 256",
            {
                "datasets": ("fashion-mnist", "cifar-10"),
                "widths": (128, 256, 512, 1024, 2048),
                "channels": (16, 32, 64, 128, 256),
                "chances": (0.1, SAMPLED, 0.45),
                "mup_starts": 10,
                "seeds": 10,
            },
        ),
    },
    claims=claims,
    figures=figures,
    tables=tables,
    protocol=PROTOCOL,
)
