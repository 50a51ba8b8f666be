"""What a network is: parameters, layers, activations, losses, decisions, states, derivatives, streams; estimates."""

import importlib
from types import ModuleType

__all__ = [
    "activation",
    "batch",
    "check",
    "decision",
    "derivative",
    "error",
    "estimate",
    "layer",
    "loss",
    "state",
    "stream",
    "tree",
]


def __getattr__(name: str) -> ModuleType:
    """Import a file on first use: the command line needs the errors, not PyTorch."""
    if name in __all__:
        return importlib.import_module(f"regimes.core.{name}")
    raise AttributeError(f"module 'regimes.core' has no attribute '{name}'")
