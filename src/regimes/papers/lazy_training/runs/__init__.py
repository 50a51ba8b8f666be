"""The experiments: the rates of the theorem, students of a teacher, networks on images, spectra of their kernels."""

from regimes.papers.lazy_training.runs.images import ImageRun
from regimes.papers.lazy_training.runs.rates import RateRun
from regimes.papers.lazy_training.runs.spectrum import SpectrumRun
from regimes.papers.lazy_training.runs.students import StudentRun

__all__ = ["ImageRun", "RateRun", "SpectrumRun", "StudentRun"]
