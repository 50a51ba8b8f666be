"""What is seen while runs are carried out: a bar on a terminal, a line now and then elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

__all__ = ["Bar", "Lines", "Progress", "Silent", "duration", "progress_of"]


class Progress(AbstractContextManager["Progress", None], ABC):
    """Shows runs done of those wanted, the time left and the metric of the moment."""

    @abstractmethod
    def show(self, done: int, wanted: int, left: float | None, text: str) -> None:
        """Bring up to date; cheap, called often. ``left``: seconds, None while unknown."""


@final
class Bar(Progress):
    """A bar of rich on standard error."""

    def __init__(self, name: str) -> None:
        left = TextColumn("{task.fields[left]}")
        metric = TextColumn("{task.fields[text]}", markup=False)
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
        self._rich = RichProgress(*columns, TimeElapsedColumn(), left, metric, console=Console(stderr=True))
        self._task: TaskID = self._rich.add_task(escape(name), total=None, left="", text="")

    def __enter__(self) -> Bar:
        self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rich.stop()

    def show(self, done: int, wanted: int, left: float | None, text: str) -> None:
        fields: dict[str, Any] = {"left": f"{duration(left)} left" if left is not None else "", "text": text}
        self._rich.update(self._task, completed=done, total=wanted, **fields)


@final
class Lines(Progress):
    """A plain line on standard error every ``every`` seconds: for log files."""

    def __init__(self, name: str, every: float = 10.0) -> None:
        self._name = name
        self._every = every
        self._shown = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, done: int, wanted: int, left: float | None, text: str) -> None:
        now = time.monotonic()
        if now - self._shown < self._every:
            return
        self._shown = now
        rest = f", {duration(left)} left" if left is not None else ""
        print(
            f"{self._name}: {done}/{wanted} runs{rest}{', ' + text if text else ''}",
            file=sys.stderr,
            flush=True,
        )


@final
class Silent(Progress):
    """Shows nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, done: int, wanted: int, left: float | None, text: str) -> None:
        return None


def progress_of(name: str, quiet: bool = False) -> Progress:
    """The bar where standard error is a terminal, lines where it is not, nothing if ``quiet``."""
    if quiet:
        return Silent()
    return Bar(name) if sys.stderr.isatty() else Lines(name)


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(5.2), duration(754), duration(7300)
    ('5 s', '12 min 34 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
