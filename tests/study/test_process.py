"""Workers are set up alone: the process that starts them is as it was before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from regimes.study.process import keep_memory, single_threaded

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_children_have_one_thread_and_this_process_keeps_its_own() -> None:
    before = dict(os.environ)
    code = (
        "import os, signal\n"
        "print(os.environ['MKL_NUM_THREADS'], signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))"
    )
    with single_threaded():
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.stdout == "1 True\n"
    assert dict(os.environ) == before
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_kept_memory_is_not_faulted_in_again() -> None:
    """In a process of its own: the setting cannot be taken back."""
    code = """if True:
        import resource, sys
        import numpy as np
        from regimes.study import keep_memory
        kept = keep_memory()
        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(20):
                np.ones(2**20)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        faults()
        sys.exit(kept and faults() > 100)
    """
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT).returncode == 0


def test_elsewhere_memory_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_memory()
