"""The experiments: training in linear blocks, its identities, and the block beside a damped Gauss-Newton step."""

from regimes.papers.iterative_linearisation.runs.blocks import CnnBlocks, MlpBlocks, ParityBlocks
from regimes.papers.iterative_linearisation.runs.damping import DampingRun
from regimes.papers.iterative_linearisation.runs.identity import IdentityRun

__all__ = ["CnnBlocks", "DampingRun", "IdentityRun", "MlpBlocks", "ParityBlocks"]
