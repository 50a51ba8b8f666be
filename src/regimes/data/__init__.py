"""On what a network is trained: readers of image data sets, tasks, transforms, and how to fetch them."""

import importlib
from typing import TYPE_CHECKING, Any

from regimes.data.catalog import DATASETS

if TYPE_CHECKING:
    from regimes.data.dataset import Dataset, Split, load
    from regimes.data.download import fetch
    from regimes.data.teacher_student import Teacher, teacher

__all__ = ["DATASETS", "Dataset", "Split", "Teacher", "fetch", "load", "teacher"]

# Everything but the catalogue waits until it is asked for: listing the data sets must not load PyTorch.
LATER = {
    "Dataset": "dataset",
    "Split": "dataset",
    "Teacher": "teacher_student",
    "fetch": "download",
    "load": "dataset",
    "teacher": "teacher_student",
}


def __getattr__(name: str) -> Any:
    if name in LATER:
        return getattr(importlib.import_module(f"regimes.data.{LATER[name]}"), name)
    raise AttributeError(f"module 'regimes.data' has no attribute '{name}'")
