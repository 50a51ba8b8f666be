r"""Chizat, Oyallon, Bach: On Lazy Training in Differentiable Programming (NeurIPS 2019, arXiv:1812.07956).

A model under a large output scale, F = alpha (f(w) - f(w0)) with its loss over alpha^2, trains like its linearisation:
the weights move by 1/alpha, and stay within 1/alpha^2 of those of the linear model. So does a two-layer network that
starts with large weights, or that is scaled by 1/sqrt(m). What it learns then is what a linear model learns: more test
loss on a teacher of few neurons, and less accuracy on images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from regimes.papers.lazy_training import CARD
from regimes.papers.lazy_training.claims import claims
from regimes.papers.lazy_training.figures import figures
from regimes.papers.lazy_training.protocol import PROTOCOL
from regimes.papers.lazy_training.runs import ImageRun, RateRun, SpectrumRun, StudentRun
from regimes.papers.recipe.device import chosen_device
from regimes.study import Option, Scale, Study, Sweep, combine, grid
from regimes.study.field import Count, Positive

__all__ = ["STUDY", "Classification", "Spectra", "Students"]

# The octaves of alpha, of which the last five are fitted.
OCTAVES = tuple(2.0**k for k in range(11))
TAUS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
WIDTHS = (8, 32, 128, 512)
ALPHAS = (1.0, 10.0, 100.0, 1000.0)
# From here on the linearised model is solved for comparison.
LINEAR = 1.0
# Seeds of the spectra, at most.
FEW = 3


@dataclass(frozen=True)
class Students:
    """The size of the teacher-student experiments.

    Attributes:
        inputs: d.
        n: training points.
        width: m, where tau varies.
        steps: of descent, where tau varies.
        steps_width: of descent, where m varies.
        taus: standard deviations of the start.
        widths: m, where the scaling varies.
    """

    inputs: int = 50
    n: int = 500
    width: int = 40
    steps: int = 5000
    steps_width: int = 5000
    taus: tuple[float, ...] = TAUS
    widths: tuple[int, ...] = WIDTHS

    def sweep(self, seeds: Sequence[int]) -> Sweep:
        """The paths in the plane, tau and width."""
        return combine(_paths(), self._tau(seeds), self._width(seeds))

    def _tau(self, seeds: Sequence[int]) -> Sweep:
        """Test loss against tau: symmetric start, one scale of time for all tau but the smallest."""
        return combine(
            *(
                grid(
                    StudentRun,
                    tau=tau,
                    lr=_rounded(min(10.0, 0.1 / tau**2)),
                    linear=tau >= LINEAR,
                    seed=seeds,
                    inputs=self.inputs,
                    n=self.n,
                    width=self.width,
                    steps=self.steps,
                )
                for tau in self.taus
            )
        )

    def _width(self, seeds: Sequence[int]) -> Sweep:
        """Test loss against m for both scalings: plain start, and the times of both in step."""
        # the step that the symmetric networks have at tau = 1, in the units of 1/sqrt(m)
        step = _rounded(0.1 * self.width)
        return combine(
            *(
                grid(
                    StudentRun,
                    width=m,
                    scaling=scaling,
                    lr=lr,
                    symmetric=False,
                    seed=seeds,
                    inputs=self.inputs,
                    n=self.n,
                    steps=self.steps_width,
                )
                for m in self.widths
                for scaling, lr in (("1/sqrt(m)", step), ("1/m", step * m))
            )
        )


def _paths() -> Sweep:
    """Two students of one teacher in the plane: one that starts small, one that starts large."""
    return grid(
        StudentRun, tau=[0.1, 2.0], inputs=2, n=15, width=16, lr=0.02, steps=20_000, traced=True, seed=0
    )


@dataclass(frozen=True)
class Classification:
    """The size of the experiments on one data set.

    Attributes:
        n: training points.
        n_test: test points.
        epochs: of descent.
        batch_size: of descent.
        lr: the step, the same for every alpha.
    """

    n: int
    n_test: int
    epochs: int
    batch_size: int
    lr: float

    def sweep(self, dataset: str, alphas: Sequence[float], seeds: Sequence[int], device: str) -> Sweep:
        """Accuracy and stability against alpha on one data set."""
        return grid(
            ImageRun,
            alpha=alphas,
            seed=seeds,
            dataset=dataset,
            decay=_rounded(1 / 3),
            device=device,
            **asdict(self),
        )


@dataclass(frozen=True)
class Spectra:
    """The size of the experiment.

    Attributes:
        n: images.
        model: of every data set.
        width_factor: of vgg, narrower than 1 where the published width takes too long.
        narrow: images for a narrow vgg on CIFAR-10 besides, 0 for none.
    """

    n: int
    model: Literal["conv", "vgg"] = "conv"
    narrow: int = 0
    width_factor: float = 0.25

    def sweep(self, datasets: Sequence[str], seeds: Sequence[int], device: str) -> Sweep:
        """Real and random pixels of the shape of each data set."""
        common = {"pixels": ["real", "random"], "seed": seeds, "device": device}
        parts = [grid(SpectrumRun, dataset=datasets, model=self.model, n=self.n, **common)]
        if self.narrow and "cifar-10" in datasets:
            parts.append(
                grid(
                    SpectrumRun,
                    dataset="cifar-10",
                    model="vgg",
                    width_factor=self.width_factor,
                    n=self.narrow,
                    **common,
                )
            )
        return combine(*parts)


def _rounded(value: float) -> float:
    """Six digits: the same key on every machine."""
    return float(f"{value:.6g}")


STUDENTS = {
    "quick": Students(steps_width=1000),
    "small": Students(),
    "paper": Students(
        inputs=100,
        n=1000,
        width=48,
        steps=10_000,
        steps_width=25_000,
        taus=(*(_rounded(10 ** (-2.2 + 0.4 * k)) for k in range(8)), *TAUS),
        widths=(8, 16, 32, 64, 128, 256, 512),
    ),
}
RATES: Mapping[str, Mapping[str, int]] = {
    "quick": {},
    "small": {"width": 32, "inputs": 10, "n": 50},
    "paper": {"width": 64, "inputs": 20, "n": 100},
}
# Steps that train at alpha = 1 and keep the linear dynamics stable: with momentum mu that takes lr below
# 2 (1 + mu) / lambda, with lambda the largest eigenvalue of K / n. Over five starts it is at least 0.20 on digits,
# 0.055 on Fashion-MNIST and 0.044 on CIFAR-10 (from up to 200 images). Beyond it a network at alpha = 1 still trains,
# on a path of its own, and one at alpha = 1000 does not.
#
# CIFAR-10 takes all its training images: what features gain over the linearisation grows with n. Of few images a
# network at alpha = 1 knows all and has learnt little (docs/gallery.md has the numbers).
DIGITS = Classification(n=1000, n_test=700, epochs=10, batch_size=32, lr=0.1)
SUBSET = Classification(n=4000, n_test=2000, epochs=10, batch_size=64, lr=0.05)
ALL = Classification(n=50_000, n_test=10_000, epochs=10, batch_size=64, lr=0.02)
IMAGES = {"digits": DIGITS, "cifar-10": ALL}
SPECTRA = {
    "quick": Spectra(n=100),
    "small": Spectra(n=250, narrow=200),
    "paper": Spectra(n=500, model="vgg"),
}


def _sweep(size: str, settings: Mapping[str, Any]) -> Sweep:
    """All runs of the quick and the small scale."""
    seeds, device = range(settings["seeds"]), chosen_device(settings["device"])
    images = [
        IMAGES.get(name, SUBSET).sweep(name, settings["alphas"], seeds, device)
        for name in settings["datasets"]
    ]
    rates = grid(RateRun, alpha=OCTAVES, seed=seeds, **RATES[size])
    kernels = SPECTRA[size].sweep(settings["datasets"], seeds[:FEW], device)
    return combine(rates, STUDENTS[size].sweep(seeds), *images, kernels)


def _paper(settings: Mapping[str, Any]) -> Sweep:
    """The published sizes: VGG-11 on all of the training images, and the wide networks of figure 3(b)."""
    seeds, device = range(settings["seeds"]), chosen_device(settings["device"])
    common = {"n": 50_000, "n_test": 10_000, "epochs": 70, "decay": _rounded(1 / 3), "device": device}
    double = {**common, "dtype": "float64"}
    # 0.2 for half the squared error summed over ten outputs is the published 1 for its mean over them
    images = [
        grid(ImageRun, dataset=name, model="vgg", alpha=settings["alphas"], lr=0.2, batch_size=128, seed=seeds,
             **double)
        for name in settings["datasets"]
    ]  # fmt: skip
    wide = [
        grid(ImageRun, dataset="cifar-10", model=model, width_factor=factor, gain=gain, loss="cross-entropy",
             alpha=alpha, lr=lr, batch_size=8, seed=seeds, **chosen)
        for model, factor, gain in (("vgg", 8.0, 1.3), ("resnet", 7.0, 1.2))
        for alpha, lr, chosen in ((1.0, 0.01, common), (1e7, 1.0, double))
    ]  # fmt: skip
    rates = grid(RateRun, alpha=OCTAVES, seed=seeds, **RATES["paper"])
    kernels = SPECTRA["paper"].sweep(settings["datasets"], seeds[:FEW], device)
    return combine(rates, STUDENTS["paper"].sweep(seeds), *images, *wide, kernels)


Data = Literal["digits", "mnist", "fashion-mnist", "cifar-10"]

STUDY = Study(
    name=CARD.name,
    title=CARD.title,
    paper=CARD.paper,
    runs=[RateRun, StudentRun, ImageRun, SpectrumRun],
    options={
        "datasets": Option(tuple[Data, ...], ("digits",), "data sets, all classes"),
        "alphas": Option(tuple[Positive, ...], ALPHAS, "output scales of the networks on images"),
        "seeds": Option(Count, 5, "seeds of each point"),
        "device": Option(Literal["auto", "cpu", "cuda"], "auto", "where the tensors of the networks on images are"),
    },
    scales={
        "quick": Scale(
            lambda settings: _sweep("quick", settings),
            CARD.cost["quick"],
            "students of a teacher in 50 dimensions, 500 points; the sweep in width with a fifth of the steps; digits",
        ),
        "small": Scale(
            lambda settings: _sweep("small", settings),
            CARD.cost["small"],
            "the same students, all steps; 4000 images of Fashion-MNIST and all of CIFAR-10, four convolutions",
            {"datasets": ("fashion-mnist", "cifar-10")},
        ),
        "paper": Scale(
            _paper,
            CARD.cost["paper"],
            "students in 100 dimensions, VGG-11 on CIFAR-10, and wide linearised networks against standard ones (R5)",
            {"datasets": ("cifar-10",), "alphas": tuple(10.0**k for k in range(8))},
        ),
    },
    claims=claims,
    figures=figures,
    protocol=PROTOCOL,
)  # fmt: skip
