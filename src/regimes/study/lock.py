"""One process at a time in one output directory."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from regimes.core.error import UserError

__all__ = ["locked"]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel lets go of it when the process dies, however it dies.

    Args:
        path: the file; made if it is not there, and left there (removing it would open a race).

    Raises:
        UserError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        raise UserError(
            "studies run on Linux and macOS (on Windows under WSL): file locks are missing here"
        ) from None
    # the descriptor is not inherited by worker processes, so an orphan never holds the directory
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise UserError(
                f"`out` is {str(path.parent)!r}: another process (id {owner}) works there; "
                "wait for it or choose another --out"
            ) from None
        except OSError as error:
            warnings.warn(
                f"no file locks in {path.parent} ({error.strerror}): no other process may work there",
                stacklevel=3,
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
