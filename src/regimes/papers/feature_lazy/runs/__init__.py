"""The experiments: gradient flow in the plane of width and scale, and training from frozen kernels."""

from regimes.papers.feature_lazy.runs.flow import FlowRun
from regimes.papers.feature_lazy.runs.frozen import FrozenRun

__all__ = ["FlowRun", "FrozenRun"]
