"""The tangent-kernel engine."""

from regimes.measure.kernel.ntk import ntk

__all__ = ["ntk"]
