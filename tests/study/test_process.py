"""Workers are set up alone: the process that starts them is as it was before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from regimes.core.rounding import fix_rounding
from regimes.study.process import keep_memory, single_threaded

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_children_have_one_thread_and_one_rounding_and_this_process_keeps_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = (
        "import os, signal\n"
        "print(os.environ['MKL_NUM_THREADS'], os.environ['MKL_CBWR'],\n"
        "      signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))"
    )
    monkeypatch.delenv("MKL_CBWR", raising=False)
    before = dict(os.environ)
    with single_threaded():
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.stdout == "1 AUTO True\n"
    assert dict(os.environ) == before
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_mode_of_rounding_that_the_user_chose_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    with single_threaded():
        assert os.environ["MKL_CBWR"] == "COMPATIBLE"
    fix_rounding()
    assert os.environ["MKL_CBWR"] == "COMPATIBLE"


def test_the_command_line_fixes_the_rounding_before_the_first_product() -> None:
    """Nothing that could compute is loaded when it does."""
    code = """if True:
        import os, sys
        from regimes import cli
        sys.argv = ["regimes", "list"]
        try:
            cli.main()
        except SystemExit:
            pass
        print("torch" in sys.modules, os.environ["MKL_CBWR"])
    """
    bare = {name: value for name, value in ENVIRONMENT.items() if name != "MKL_CBWR"}
    child = subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, text=True)
    assert child.stdout.splitlines()[-1] == "False AUTO"


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
