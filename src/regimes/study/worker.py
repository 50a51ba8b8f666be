"""What a worker does with a task, here or in its own process: perform runs, store each as it finishes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from regimes.core.error import UserError
from regimes.study.fault import place, trace_of
from regimes.study.process import die_with_parent, keep_memory, one_thread
from regimes.study.run import Run, shorten
from regimes.study.store import Store
from regimes.study.study import import_file, one_line
from regimes.study.task import Task

__all__ = ["ALONE", "Broken", "Done", "Job", "Orders", "carry_out", "rare", "serve"]

ALONE = "define run classes at the top of a module or study file, or try --on here"


@dataclass(frozen=True)
class Job:
    """What every worker of a session must know.

    Attributes:
        out: the output directory.
        classes: the Run classes of the study.
        data: directory of the data sets, or None.
    """

    out: Path
    classes: tuple[type[Run], ...]
    data: Path | None


@dataclass(frozen=True)
class Orders:
    """What a worker process is started with; the job is pickled because its classes may come from ``files``.

    Attributes:
        parent: id of the process that started the worker.
        files: study files that must be imported before runs can be received.
        job: the pickled Job.
    """

    parent: int
    files: tuple[Path, ...]
    job: bytes


@dataclass(frozen=True)
class Done:
    """A run is finished and its rows are stored."""

    run: Run


@dataclass(frozen=True)
class Broken:
    """A task ended early: these of its runs are not finished.

    Attributes:
        task: the runs that are left.
        error: what happened, in one line.
        trace: the traceback, if there is one.
        died: whether the worker died (then the runs may be innocent).
    """

    task: Task
    error: str
    trace: str = ""
    died: bool = False


def carry_out(
    task: Task, store: Store, data: Path | None, tick: Callable[[str], None]
) -> Iterator[Done | Broken]:
    """Perform the runs of a task; an exception ends the task, not the study. So does ``sys.exit``.

    Raises:
        UserError: a mistake that every other run would meet as well, such as missing data or a full disk.
        KeyboardInterrupt: Ctrl-C. A worker process gets none, so that there it is an exception like others.
    """
    left = {run.key: run for run in task.runs}
    try:
        for yielded in type(task.runs[0]).perform(task.runs, data, tick):
            run, rows = _checked(yielded)
            if run.key not in left:
                raise RuntimeError(f"perform yielded {run!r}, which it was not given or had finished")
            store.put(run, rows)
            del left[run.key]
            yield Done(run)
        if left:
            raise RuntimeError("perform ended without having yielded all its runs")
    except (UserError, GeneratorExit):
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and multiprocessing.parent_process() is None:
            raise
        yield Broken(Task(tuple(left.values())), one_line(error) + place(error), trace_of(error))


def _checked(yielded: Any) -> tuple[Run, list[Mapping[str, Any]]]:
    """A run and its rows, if that is what ``perform`` yielded."""
    match yielded:
        case (Run() as run, [*rows]) if all(isinstance(row, Mapping) for row in rows):
            return run, rows
    raise TypeError(f"perform yielded {shorten(yielded)}: expected (run, rows), rows a list of dicts")


def serve(connection: Connection, orders: Orders) -> None:
    """The life of a worker process: tasks come in, events go out, None ends it.

    Sends ``("ready", "")``, ``("tick", text)``, ``("event", Done | Broken)``, ``("free", "")`` after each
    task and ``("stop", text)`` for a mistake of the user, or where it cannot even begin.
    """
    die_with_parent(orders.parent)
    # Ctrl-C reaches the whole group of processes; the parent decides what it means
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    keep_memory()
    try:
        for file in orders.files:
            import_file(file)
        job: Job = pickle.loads(orders.job)
        store = Store(job.out, job.classes)
        tick = rare(lambda text: connection.send(("tick", text)))
        connection.send(("ready", ""))
        while (task := connection.recv()) is not None:
            one_thread()
            for event in carry_out(task, store, job.data, tick):
                connection.send(("event", event))
            connection.send(("free", ""))
    except UserError as error:
        connection.send(("stop", str(error)))
    except (EOFError, OSError):
        os._exit(1)  # the parent is gone
    except BaseException as error:  # what it was sent cannot be read here
        connection.send(("stop", f"a worker process cannot begin: {one_line(error)}{place(error)}; {ALONE}"))


def rare(send: Callable[[str], None], every: float = 0.2) -> Callable[[str], None]:
    """Ticks are called at every step of a training; one in 0.2 s is sent on."""
    last = -every

    def tick(text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= every:
            last = now
            send(" ".join(str(text).split()))

    return tick
