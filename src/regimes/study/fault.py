"""An exception out of a function of a study: one line that names the function and the place, and its traceback."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import final

from regimes.core.error import UserError
from regimes.study.study import one_line

__all__ = ["Heard", "StudyFault", "blame", "place", "trace_of", "unheard"]

LIBRARIES = (
    str(Path(__file__).resolve().parents[1]),
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
)


@final
class StudyFault(UserError):
    """A function of a study raised something else than a ``UserError``.

    Attributes:
        trace: its traceback.
    """

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message)
        self.trace = trace


@contextmanager
def blame(function: str) -> Iterator[None]:
    """Name the function of a study whose exception ends what is done inside.

    ``sys.exit`` counts as an exception: it would end the whole session, and as if all were well. Ctrl-C does not,
    and a ``UserError`` says all there is to say.

    Args:
        function: its name, with the study or class it belongs to.

    Raises:
        StudyFault: for every other exception.

    >>> with blame("`cost` of Walk"):
    ...     1 / 0
    Traceback (most recent call last):
    regimes.study.fault.StudyFault: `cost` of Walk raised ZeroDivisionError: division by zero ...
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise StudyFault(f"{function} raised {one_line(error)}{place(error)}", trace_of(error)) from error


Heard = Callable[[StudyFault], object]
"""Is told of an exception that does not stop the rest."""


def unheard(fault: StudyFault) -> None:
    """Tell nobody."""


def place(error: BaseException) -> str:
    """Where an exception comes from, as ``" (walk.py, line 12)"``: the last line that is in no library."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*LIBRARIES, "<"))]
    if not frames:
        return ""
    last = (own or frames)[-1]
    return f" ({Path(last.filename).name}, line {last.lineno})"


def trace_of(error: BaseException) -> str:
    """The traceback as text, without what the words of the exception itself may do wrong."""
    return "".join(traceback.format_exception(error))
