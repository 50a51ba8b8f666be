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
from regimes.study.study import sources
from regimes.study.task import Task
from regimes.study.worker import Broken, Done, Job, Orders, serve

__all__ = ["Pool"]


@final
class Pool(Backend):
    """Processes of one thread each, started when there is work for them and kept between calls.

    They are spawned, not forked: a copy of a process with threads (every one that has loaded PyTorch) may
    hang.

    Args:
        job: what every worker must know.
        workers: how many processes at most.
    """

    def __init__(self, job: Job, workers: int) -> None:
        self._orders = Orders(os.getpid(), sources(job.classes), pickle.dumps(job))
        self._most = workers
        self._workers: list[_Worker] = []

    def execute(self, tasks: Sequence[Task], tick: Callable[[str], None]) -> Iterator[Done | Broken]:
        waiting = deque(tasks)
        while waiting or any(worker.busy for worker in self._workers):
            while len(self._workers) < min(
                self._most, len(waiting) + sum(worker.busy for worker in self._workers)
            ):
                self._workers.append(_Worker(self._orders))
            for worker in self._workers:
                if waiting and not worker.busy:
                    worker.give(waiting.popleft())
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
            cause = worker.end(patience=5.0)
            if not worker.ready:
                raise UserError(
                    f"`--on` is pool: a worker process did not start ({cause}), see above; a script that "
                    "runs a study needs `if __name__ == '__main__':`, or try --on here"
                ) from None
            if worker.left:
                yield Broken(
                    Task(tuple(worker.left.values()), worker.again), f"its worker died ({cause})", died=True
                )
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
        else:
            worker.busy = False


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

    def end(self, patience: float) -> str:
        """Wait for the end of the process, then kill it; how it ended, in words."""
        self.process.join(patience)
        self.process.kill()
        self.process.join()
        code = self.process.exitcode or 0
        self.process.close()
        self.connection.close()
        if code == -signal.SIGKILL:
            return "killed, most often for lack of memory"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
