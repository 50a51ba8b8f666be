"""What every test may ask for: real data, a device, a generator of random numbers, and checked shapes.

How to find a test: ``tests/README.md``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from jaxtyping import install_import_hook

from regimes.core.rounding import fix_rounding

# As in the processes of the studies, and before the first product.
fix_rounding()

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "src"

# In every file that states shapes, the types and shapes of all calls are checked while the tests run.
# The others are left out: to check what is called at each step of a training run takes longer than the step.
SHAPED = [path for path in SOURCES.rglob("*.py") if "from jaxtyping import" in path.read_text()]
install_import_hook(
    [".".join(path.relative_to(SOURCES).with_suffix("").parts) for path in SHAPED],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A directory with mnist/, fashion-mnist/ and cifar-10-batches-py/ in their published formats.

    ``REGIMES_DATA`` names it; else it is the nearest ``shared/data`` in the repository, beside it or above.
    Where that folder is packed (holds a script ``unpack``), it is unpacked once, into ``.cache`` here.
    """
    named = os.environ.get("REGIMES_DATA")
    if named:
        return Path(named)
    near = (folder / "shared" / "data" for folder in (ROOT, *ROOT.parents))
    found = next((folder for folder in near if folder.is_dir()), None)
    if found is None:
        pytest.skip("real data not found: set REGIMES_DATA")
    if not (found / "unpack").is_file():
        return found
    return _unpacked(found, ROOT / ".cache" / "real-data")


def _unpacked(packed: Path, cache: Path) -> Path:
    """The data laid out under ``cache``: complete or not there at all, and made by one worker only."""
    cache.mkdir(parents=True, exist_ok=True)
    whole, partial = cache / "data", cache / "partial"
    with FileLock(cache / "lock"):
        if not whole.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
            subprocess.run(["bash", packed / "unpack", partial], check=True)
            partial.rename(whole)
    return whole


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The test runs once per device; without a CUDA device that half is skipped."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture
def generator() -> torch.Generator:
    """Random numbers that are the same in every run, for a test that draws its own."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same global seed, whatever ran before it."""
    torch.manual_seed(0)
