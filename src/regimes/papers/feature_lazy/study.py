r"""Geiger, Spigler, Jacot, Wyart: Disentangling feature and lazy training in deep neural networks (arXiv:1906.08034).

The phase diagram of lazy and feature training in (alpha, width): fully connected networks, classes by parity, gradient
flow until every margin is met. Everything is a function of x = sqrt(h) alpha: the kernel hardly moves for large x (lazy
training), and moves by many times itself for small x (feature training); the crossover alpha* falls like h^-1/2.

In both regimes a fully connected and a convolutional network are trained once more from their frozen kernels, in
function space: the kernel of the start makes what the lazy network is, that of the end what the feature network is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from regimes.papers.feature_lazy import CARD
from regimes.papers.feature_lazy.claims import claims
from regimes.papers.feature_lazy.figures import figures
from regimes.papers.feature_lazy.protocol import PROTOCOL
from regimes.papers.feature_lazy.runs import FlowRun, FrozenRun
from regimes.papers.recipe.device import chosen_device
from regimes.study import Option, Scale, Study, Sweep, bisection, combine, grid
from regimes.study.field import Count, Index, Positive

__all__ = ["STUDY", "Networks", "Panel"]

# x = sqrt(h) alpha of the curves: the windows of the fits and the crossover between them.
CURVE = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 3e3, 1e4, 3e4, 1e5)
# x that stand for the regimes where ensembles are trained
BOTH_REGIMES = (0.1, 1e4)


@dataclass(frozen=True)
class Panel:
    """One data set and depth: what is trained on it.

    Attributes:
        dataset: its name.
        depth: L.
        n: training points.
        n_test: test points.
        pca: principal components, or None for the images.
        curve: widths whose whole curve in x is measured.
        crossover: widths whose alpha* is searched.
        ensemble: widths of which ``members`` seeds are trained in both regimes.
        x: values of sqrt(h) alpha of the curves.
        start: values of sqrt(h) alpha where the search for dK = 1 begins.
        factor: the ratio of the bracket at which it ends.
        shares: the least and the most seeds of a search, over ``members``; in between 32 / h of them, since the kernels
            of narrow networks fluctuate more.
    """

    dataset: str
    depth: int
    n: int = 300
    n_test: int = 4000
    pca: int | None = 10
    curve: tuple[int, ...] = (32, 64, 128)
    crossover: tuple[int, ...] = (16, 32, 64, 128, 256)
    ensemble: tuple[int, ...] = (16, 32, 64, 128, 256)
    x: tuple[float, ...] = CURVE
    start: tuple[float, ...] = (10.0, 100.0)
    factor: float = 2.0
    shares: tuple[float, float] = (0.0, 1.0)

    def sweep(self, settings: Mapping[str, Any], laws: Sequence[str]) -> Sweep:
        """All runs of the panel: the search for alpha* under each law; curves and ensembles under the first."""
        searches = [self._search(settings, law, h) for law in laws for h in self._searched(law)]
        seeds, members = range(settings["seeds"]), range(max(settings["seeds"], settings["members"]))
        points = [(h, x, seeds) for h in self.curve for x in self.x]
        points += [(h, x, members) for h in self.ensemble for x in BOTH_REGIMES]
        common = self._common(settings, laws[0])
        grids = [
            grid(FlowRun, width=h, alpha=_alpha(x, h, laws[0]), seed=chosen, **common)
            for h, x, chosen in points
        ]
        return combine(*grids, *searches)

    @property
    def points(self) -> dict[str, Any]:
        """What its networks are trained on, and their depth."""
        return {name: getattr(self, name) for name in ("dataset", "depth", "pca", "n", "n_test")}

    def _searched(self, law: str) -> list[int]:
        """Widths whose alpha* is searched: the NTK law is that of the claims, the others need no wide ones."""
        return [h for h in self.crossover if law == "ntk" or h <= 128]

    def _search(self, settings: Mapping[str, Any], law: str, h: int) -> Sweep:
        """alpha* of one width."""
        (least, most), members = self.shares, max(settings["seeds"], settings["members"])
        seeds = max(settings["seeds"], int(members * min(most, max(least, 32 / h))))
        return bisection(
            FlowRun,
            axis="alpha",
            column="dK",
            level=1.0,
            start=[_alpha(x, h, law) for x in self.start],
            factor=self.factor,
            seed=range(seeds),
            width=h,
            **self._common(settings, law),
        )

    def _common(self, settings: Mapping[str, Any], law: str) -> dict[str, Any]:
        return {**self.points, "law": law, "device": settings["device"]}


def _alpha(x: float, h: int, law: str) -> float:
    """alpha in the convention of the law at sqrt(h) alpha = x in that of the paper (``control.width``)."""
    return x if law in ("mean-field", "mup") else x / math.sqrt(h)


# The exponents are those of the first panel; the others show that they do not hang on data set or depth.
NARROW = (16, 32, 64, 128)
SMALL = {
    ("mnist", 2): Panel("mnist", 2, crossover=(16, 32, 64, 128, 256, 512), ensemble=(32, 64, 128, 256, 512)),
    ("mnist", 3): Panel("mnist", 3, n=256, curve=(32, 64), crossover=NARROW, ensemble=()),
    ("fashion-mnist", 2): Panel(
        "fashion-mnist", 2, n=256, pca=None, curve=(64,), crossover=NARROW, ensemble=()
    ),
    ("fashion-mnist", 3): Panel(
        "fashion-mnist", 3, n=256, pca=None, curve=(32, 64), crossover=NARROW, ensemble=NARROW
    ),
}
QUICK = Panel(
    "digits",
    2,
    n=200,
    n_test=1500,
    curve=(32, 64),
    crossover=NARROW,
    ensemble=(16, 32, 64),
    start=(1.0, 3.0, 10.0, 30.0),
    factor=4.0,
    shares=(0.5, 2.0),
    x=(0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 3e3, 1e4, 1e5),
)
HALF_DECADES = tuple(float(f"{10 ** (i / 2):.6g}") for i in range(-8, 15))
PAPER = Panel(
    "fashion-mnist",
    3,
    n=10_000,
    n_test=50_000,
    pca=None,
    curve=(100, 300, 1000),
    crossover=(30, 100, 300, 1000),
    ensemble=(10, 30, 100, 300, 1000),
    x=HALF_DECADES,
)

# Sides to which images are averaged for kernels of 3 x 3; those of digits are 8 x 8 as they come.
SIDES = {"digits": None, "cifar-10": 16}


@dataclass(frozen=True)
class Networks:
    """The size of these runs at one scale: a fully connected network, and a cnn on the images of the same data.

    Attributes:
        width: h of fc.
        n: training points of the cnn.
        n_test: its test points.
        channels: its h; None leaves the cnn out.
        averaged: whether its images are averaged, to 14 x 14 (cifar-10: 16 x 16), and its kernels 3 x 3; digits are
            8 x 8 as they come.
        activation: of the cnn.
        tolerance: of the steps.
        x: sqrt(h) alpha in the feature and in the lazy regime.
        fc: dataset, depth, pca, n and n_test of fc; those of the first panel if None.
    """

    width: int
    n: int
    n_test: int
    channels: int | None
    averaged: bool = True
    activation: str = "softplus"
    tolerance: float = 1e-3
    x: tuple[float, float] = (0.1, 1e4)
    fc: Mapping[str, Any] | None = None

    def sweep(self, panel: Mapping[str, Any], seeds: int, device: str) -> Sweep:
        """Both networks in both regimes; nothing without seeds.

        Args:
            panel: dataset, depth, pca, n and n_test of the first panel.
            seeds: of the cnn; fc, which costs little, has twice as many.
            device: cpu or cuda.
        """
        if not seeds:
            return combine()
        fc = {**(self.fc or panel), "model": "fc", "width": self.width}
        networks = [(fc, 2 * seeds)]
        if self.channels is not None:
            networks.append((self._cnn(fc["dataset"], self.channels), seeds))
        common = {"tolerance": self.tolerance, "device": device}
        return combine(
            *(
                grid(FrozenRun, alpha=x / math.sqrt(fields["width"]), seed=range(count), **fields, **common)
                for fields, count in networks
                for x in self.x
            )
        )

    def _cnn(self, name: str, channels: int) -> dict[str, Any]:
        """The fields of its runs that are not those of every run."""
        return {
            "dataset": name,
            "model": "cnn",
            "size": SIDES.get(name, 14) if self.averaged else None,
            "n": self.n,
            "n_test": self.n_test,
            "width": channels,
            "kernel": 3 if self.averaged else 5,
            "activation": self.activation,
        }


NETWORKS = {
    # The ratio of R13 falls below its bound at n = 1000 and above only: no cnn of two minutes can decide it.
    "quick": Networks(width=64, n=200, n_test=1500, channels=None),
    "small": Networks(width=64, n=192, n_test=4000, channels=8),
    # as published in version 1; ReLU is lazy far beyond where softplus is
    "paper": Networks(
        width=100,
        n=5000,
        n_test=10_000,
        channels=159,
        averaged=False,
        activation="relu",
        tolerance=1e-4,
        x=(0.1, 1e6),
        fc={"dataset": "mnist", "depth": 5, "pca": 10, "n": 5000, "n_test": 10_000},
    ),
}


def _panels(size: str, datasets: Sequence[str], depths: Sequence[int]) -> list[Panel]:
    """The panels of a scale; a data set or depth without one of its own takes the size of the first."""
    named = SMALL if size == "small" else {}
    base = {"quick": QUICK, "small": SMALL["fashion-mnist", 3], "paper": PAPER}[size]
    return [
        named.get((name, depth))
        or replace(base, dataset=name, depth=depth, pca=10 if name in ("digits", "mnist") else None)
        for name in datasets
        for depth in depths
    ]


def _sweep(size: str, settings: Mapping[str, Any]) -> Sweep:
    """The sweeps of all panels; the laws are compared on the first one, and kernels frozen on its data."""
    chosen, laws = {**settings, "device": chosen_device(settings["device"])}, settings["laws"]
    panels = _panels(size, chosen["datasets"], chosen["depths"])
    if widths := settings["widths"]:
        panels = [replace(panel, curve=widths, crossover=widths, ensemble=widths) for panel in panels]
    if scales := settings["scales"]:
        panels = [replace(panel, x=scales) for panel in panels]
    first, *rest = panels
    frozen = NETWORKS[size].sweep(first.points, chosen["frozen"], chosen["device"])
    return combine(first.sweep(chosen, laws), *(panel.sweep(chosen, laws[:1]) for panel in rest), frozen)


Law = Literal["ntk", "standard", "mean-field", "mup"]
Data = Literal["digits", "mnist", "fashion-mnist", "emnist", "cifar-10"]


METHODS = (
    (
        "Crossover",
        "alpha* of a network is where its kernel drift is 1, by interpolation in the log-log plane.",
    ),
    (
        "Ensembles",
        "They are the seeds of one setting. Var F is the mean squared distance from their average, over M - 1; the "
        "ensemble error is that of the sign of the average. Their intervals are by the jackknife: one member is left "
        "out at a time.",
    ),
)

STUDY = Study(
    name=CARD.name,
    title=CARD.title,
    paper=CARD.paper,
    runs=[FlowRun, FrozenRun],
    options={
        "datasets": Option(tuple[Data, ...], ("digits",), "data sets, classes by parity"),
        "depths": Option(tuple[Count, ...], (2,), "numbers of hidden layers"),
        "laws": Option(
            tuple[Law, ...],
            ("ntk",),
            "laws of width; those after the first for alpha* on the first panel alone",
        ),
        "widths": Option(tuple[Count, ...], (), "h of the plane; those of the scale if none is given"),
        "scales": Option(
            tuple[Positive, ...], (), "sqrt(h) alpha of the curves; those of the scale if none is given"
        ),
        "seeds": Option(Count, 3, "seeds of each point"),
        "members": Option(Count, 12, "seeds of each ensemble"),
        "frozen": Option(
            Index,
            5,
            "half the seeds of the network that is trained again from frozen kernels, on the first data set, and all "
            "of those of the convolutional one where the scale has it; 0: neither",
        ),
        "device": Option(Literal["auto", "cpu", "cuda"], "auto", "where the tensors are"),
    },
    scales={
        "quick": Scale(
            lambda settings: _sweep("quick", settings),
            CARD.cost["quick"],
            "digits on 10 principal components, 200 training points, two hidden layers; frozen kernels of such a "
            "network",
            {"frozen": 3},
        ),
        "small": Scale(
            lambda settings: _sweep("small", settings),
            CARD.cost["small"],
            "MNIST on 10 principal components and Fashion-MNIST on pixels, two and three hidden layers, four laws; "
            "frozen kernels, also of a convolutional network on 14 x 14 pixels",
            {
                "datasets": ("mnist", "fashion-mnist"),
                "depths": (2, 3),
                "laws": ("ntk", "standard", "mean-field", "mup"),
            },
        ),
        "paper": Scale(
            lambda settings: _sweep("paper", settings),
            CARD.cost["paper"],
            "Fashion-MNIST, 10000 training points, three hidden layers, widths to 1000; frozen kernels and "
            "convolutional networks on MNIST, 5000 training points",
            {"datasets": ("fashion-mnist",), "depths": (3,), "seeds": 10, "members": 20, "frozen": 10},
        ),
    },
    claims=claims,
    figures=figures,
    protocol=PROTOCOL,
    methods=METHODS,
)
