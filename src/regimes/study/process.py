"""Settings of a whole process: memory kept instead of returned, and workers that die with their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from regimes.core.rounding import ROUNDING

__all__ = ["die_with_parent", "keep_memory", "one_thread", "single_threaded"]

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def keep_memory() -> bool:
    """Ask glibc not to return freed memory to the system; elsewhere nothing happens.

    Training frees and allocates the same large tensors at every step. By default glibc maps each of them
    afresh, and the page faults of the first touch cost about 30 % of the time of a small network's step.

    Returns:
        Whether both settings were taken.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, such as musl
        return False
    trim_threshold, mmap_threshold, most = -1, -3, 2**31 - 1
    trimmed = mallopt(trim_threshold, most)
    # some versions take no threshold above half a heap, 32 MiB
    mapped = mallopt(mmap_threshold, most) or mallopt(mmap_threshold, 32 * 2**20)
    return bool(trimmed and mapped)


def die_with_parent(parent: int) -> None:
    """End this process as soon as the process ``parent`` has ended, killed or not."""
    if sys.platform.startswith("linux"):
        try:
            set_parent_death_signal = 1
            ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
        except (OSError, AttributeError):
            pass  # the watch below serves everywhere, a second later
    if os.getppid() != parent:  # it died before the signal was arranged
        os._exit(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


@contextmanager
def single_threaded() -> Iterator[None]:
    """Child processes started inside use one thread each and get no Ctrl-C (their parent tells them to stop).

    The number of threads is read when a numerical library is loaded, so it must be in the environment from
    the start; so must the mode in which products have the same bits at any alignment.
    """
    rounding = {name: os.environ.get(name, value) for name, value in ROUNDING.items()}
    settings = dict.fromkeys(THREADS, "1") | rounding
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    # a blocked signal stays blocked in the child; here it is delivered at the end, none is lost
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def one_thread() -> None:
    """One thread for PyTorch, if it is loaded: the workers share the cores among themselves."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
