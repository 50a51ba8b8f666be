"""regimes: place, locate, exploit, diagnose and reproduce the training regimes of neural networks."""

import importlib
from types import ModuleType

__all__ = [
    "__version__",
    "compare",
    "control",
    "core",
    "data",
    "kernel",
    "measure",
    "models",
    "papers",
    "report",
    "study",
    "train",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> ModuleType:
    """Import a folder on first use, so that ``regimes --help`` answers without loading PyTorch."""
    if name in __all__:
        return importlib.import_module(f"regimes.{name}")
    raise AttributeError(f"module 'regimes' has no attribute '{name}'")
