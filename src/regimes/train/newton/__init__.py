"""Damped Gauss-Newton steps: one solve in the space of the outputs of a batch."""

from regimes.train.newton.gauss_newton import GaussNewton
from regimes.train.newton.record import GaussNewtonStep

__all__ = ["GaussNewton", "GaussNewtonStep"]
