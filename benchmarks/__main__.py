"""Every benchmark, one after another: `make bench`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# `make` sets one thread for the tests; a benchmark says itself how many it uses.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}


def main() -> int:
    """Run each script of this folder in a process of its own."""
    scripts = sorted(path for path in HERE.glob("*.py") if not path.name.startswith("_"))
    failed = 0
    for script in scripts:
        print(f"{script.name}", flush=True)
        failed += subprocess.run([sys.executable, script], env=ENVIRONMENT).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
