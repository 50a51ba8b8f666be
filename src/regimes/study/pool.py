"""A pool of processes on this machine that survives the death of its workers and never survives its own."""

from __future__ import annotations

import os
import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import wait
from typing import Any, final

from regimes.core.error import UserError
from regimes.study.backend import Backend
from regimes.study.process import single_threaded
from regimes.study.study import one_line, sources
from regimes.study.task import Task
from regimes.study.worker import ALONE, Broken, Done, Job, Orders, serve

__all__ = ["Pool"]

STARTS = 5


@final
class Pool(Backend):
    """Processes of one thread each, started when there is work for them and kept between calls.

    They are spawned, not forked: a copy of a process with threads (every one that has loaded PyTorch) may
    hang.

    A worker that is killed while it starts has harmed nothing: another one is started for its task, a few
    times. One that is killed later may have been killed by a run: its runs are told as broken.

    Args:
        job: what every worker must know.
        workers: how many processes at most.

    Raises:
        UserError: the run classes cannot be told to another process.
    """

    def __init__(self, job: Job, workers: int) -> None:
        self._orders = Orders(os.getpid(), sources(job.classes), portable(job))
        self._most = workers
        self._workers: list[_Worker] = []
        self._waiting: deque[Task] = deque()
        self._stillborn = 0

    def execute(self, tasks: Sequence[Task], tick: Callable[[str], None]) -> Iterator[Done | Broken]:
        self._waiting.extend(tasks)
        while self._waiting or any(worker.busy for worker in self._workers):
            while len(self._workers) < min(
                self._most, len(self._waiting) + sum(worker.busy for worker in self._workers)
            ):
                self._workers.append(_Worker(self._orders))
            for worker in self._workers:
                if self._waiting and not worker.busy:
                    worker.give(self._waiting.popleft())
            ready = set(wait([worker.connection for worker in self._workers if worker.busy]))
            for worker in [worker for worker in self._workers if worker.connection in ready]:
                yield from self._hear(worker, tick)

    def close(self) -> None:
        for worker in self._workers:
            worker.end(patience=0.0)
        self._workers.clear()

    def _hear(self, worker: _Worker, tick: Callable[[str], None]) -> Iterator[Done | Broken]:
        """One message of a worker, or the news of its death (all it sent before has been heard by then)."""
        try:
            kind, content = worker.connection.recv()
        except (EOFError, OSError):
            self._workers.remove(worker)
            code = worker.end(patience=5.0)
            left = Task(tuple(worker.left.values()), worker.again)
            if not worker.ready:
                self._begin_again(left, code)
            elif left.runs:
                yield Broken(left, f"its worker died ({cause(code)})", died=True)
            return
        if kind == "stop":
            raise UserError(content)
        if kind == "tick":
            tick(content)
        elif kind == "event":
            worker.settle(content)
            yield content
        elif kind == "ready":
            worker.ready = True
            self._stillborn = 0
        else:
            worker.busy = False

    def _begin_again(self, task: Task, code: int) -> None:
        """What a worker was given that did not live to take it goes to another one, unless that is hopeless."""
        if code >= 0:
            raise UserError(
                f"`--on` is pool: a worker process did not start ({cause(code)}), see above; a script that "
                "runs a study needs `if __name__ == '__main__':`, or try --on here"
            )
        self._stillborn += 1
        if self._stillborn == STARTS:
            raise UserError(
                f"`--on` is pool: {STARTS} worker processes in a row died while they started ({cause(code)}); "
                "give the same command again with fewer of them (--on pool:1), or with --on here"
            )
        self._waiting.appendleft(task)


@final
class _Worker:
    """A process, the way to speak with it, and what it has been given."""

    def __init__(self, orders: Orders) -> None:
        context = get_context("spawn")
        # started by the first process otherwise, it would let Ctrl-C through again in the midst of it
        resource_tracker.ensure_running()
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, orders), daemon=True)
        with single_threaded():
            self.process.start()
        theirs.close()  # so that the end of the process is the end of what can be read
        self.ready = False
        self.busy = False
        self.again = False
        self.left: dict[str, Any] = {}

    def give(self, task: Task) -> None:
        self.busy, self.again = True, task.again
        self.left = {run.key: run for run in task.runs}
        try:
            self.connection.send(task)
        except OSError:
            return  # it has died: heard of when it is listened to

    def settle(self, event: Done | Broken) -> None:
        for run in (event.run,) if isinstance(event, Done) else event.task.runs:
            self.left.pop(run.key, None)

    def end(self, patience: float) -> int:
        """Wait for the end of the process, then kill it; its exit code, or less than 0: the signal."""
        self.process.join(patience)
        self.process.kill()
        self.process.join()
        code = self.process.exitcode or 0
        self.process.close()
        self.connection.close()
        return code


def portable(job: Job) -> bytes:
    """A job as another process can read it.

    Raises:
        UserError: its classes are not found by their names.
    """
    try:
        return pickle.dumps(job)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(f"`--on` is pool: {one_line(error)}; {ALONE}") from None


def cause(code: int) -> str:
    """How a process ended, in words, with what can be done about it.

    >>> cause(-11), cause(3)
    ('signal SIGSEGV', 'exit code 3: something ended the process')
    """
    if code == -signal.SIGKILL:
        return "killed, most often for lack of memory: try fewer workers, such as --on pool:1"
    if code < 0:
        known = {int(one): one.name for one in signal.Signals}
        return f"signal {known.get(-code, -code)}"
    return f"exit code {code}: something ended the process"
