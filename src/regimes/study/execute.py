"""Carry out a study: ask its sweep what is wanted, do what is not finished, until nothing new is wanted."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from regimes.core.check import checked
from regimes.core.error import UserError
from regimes.core.progress import Progress, duration, progress_of
from regimes.study.backend import Backend, Here, parse_on
from regimes.study.clock import Clock, pace
from regimes.study.fault import StudyFault
from regimes.study.pool import Pool
from regimes.study.record import Record, check_record
from regimes.study.run import Run
from regimes.study.store import Store, opened
from regimes.study.study import Study
from regimes.study.task import Task, divide, makespan
from regimes.study.wanted import Watched, declared, wanted_runs, was_seen, weighed
from regimes.study.worker import Broken, Done, Job, rare

__all__ = ["Failure", "Forecast", "Interrupted", "Result", "forecast_study", "run_study"]

FAILURES = "failures.txt"


@dataclass(frozen=True)
class Failure:
    """A run that could not be finished: the error in one line, and its traceback if there is one."""

    run: Run
    error: str
    trace: str = ""


@dataclass(frozen=True)
class Result:
    """What a session did.

    Attributes:
        wanted: runs the sweep wants, as far as is known now.
        finished: how many of them are stored.
        carried_out: how many of them were finished in this session.
        failures: the runs that failed, in the order of the sweep; the next session tries them again.
        seconds: spent in this session.
        command: continues the study.
        out: where it is stored.
    """

    wanted: int
    finished: int
    carried_out: int
    failures: tuple[Failure, ...]
    seconds: float
    command: str
    out: Path

    @property
    def summary(self) -> str:
        """How far the study is, in one line."""
        return (
            f"{self.finished} of {self.wanted} runs finished ({self.carried_out} in this session, "
            f"{duration(self.seconds)}); they are in {self.out}"
        )

    def __str__(self) -> str:
        lines = [self.summary]
        if self.failures:
            kinds = Counter(failure.error for failure in self.failures)
            first = {failure.error: failure.run for failure in reversed(self.failures)}
            lines += [
                f"failed: {first[error]!r}{f' and {count - 1} more' if count > 1 else ''}: {error}"
                for error, count in kinds.items()
            ]
            lines.append(
                f"tracebacks are in {self.out / 'failures.txt'}; to try again what failed: {self.command}"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class Forecast:
    """What a study would do, as far as its sweep can tell from what is stored (refinement may want more).

    Attributes:
        wanted: runs the sweep wants now.
        finished: how many of them are stored already.
        tasks: programs the rest is divided into.
        seconds: rough time of the rest on this machine, at its present pace.
        workers: number of workers it holds for.
        more: whether what is measured may want more runs: the sweep looks at the rows, and not all are there.
    """

    wanted: int
    finished: int
    tasks: int
    seconds: float
    workers: int
    more: bool = False

    def __str__(self) -> str:
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        least = "at least " if self.more else ""
        return (
            f"{least}{self.wanted} runs, {self.finished} finished; the rest: {least}{self.tasks} tasks, "
            f"about {duration(self.seconds)}{' or more' if self.more else ''} on {workers}"
        )


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after everything has been stopped in order; its text says how to continue."""


@checked
def run_study(
    study: Study,
    scale: str,
    out: str | Path | Store,
    *,
    data: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    on: str = "here",
    command: str | None = None,
    quiet: bool = False,
) -> Result:
    """Carry out a study, or what is left of it. Finished runs are never repeated.

    Args:
        study: what to carry out.
        scale: name of one of its scales.
        out: the output directory, or the store there; it holds this study at this scale, or nothing yet. Settings that
            ask for more of the runs there, or for fewer, go on with them.
        data: directory of the data sets.
        settings: option -> value, text or of its type; the others have their defaults.
        on: "here" (this process), "pool" or "pool:N" (N processes of one thread).
        command: continues the study, shown to the user; the default is the command of this process.
        quiet: show no progress.

    Returns:
        What was done. A run that failed does not stop the others: see ``failures``.

    Raises:
        UserError: an unknown scale, setting or back end; a directory that is in use, not writable or holds
            another study; a mistake that a run reports as such; an exception in the sweep, whose traceback is
            kept in ``failures.txt``.
        Interrupted: Ctrl-C.
    """
    kind, workers = parse_on(on)
    chosen = study.settings(scale, settings)
    order = command or _this_command()
    store = opened(out, study.runs)
    check_record(store, study, scale, chosen)
    with traceback_kept(store):
        sweep = declared(study, scale, chosen)
        job = Job(store.out.resolve(), tuple(study.runs), data)
        with ExitStack() as stack:
            stack.enter_context(store.lock())
            record = Record(store, study, scale, chosen, order, on, data)
            store.tidy()
            store.keep()
            show = stack.enter_context(progress_of(f"{study.name} ({scale})", quiet))
            backend: Backend = Here(job) if kind == "here" else Pool(job, workers)
            stack.enter_context(closing(backend))
            session = Session(store, backend, workers, record, show, order)
            try:
                while tasks := session.pending(wanted_runs(sweep, store.frame(), study)):
                    session.work(tasks)
            except KeyboardInterrupt:
                backend.close()
                record.save()
                raise Interrupted(f"interrupted: {session.result().summary}; to continue: {order}") from None
            record.save()
            store.keep()
            return session.conclude()


@checked
def forecast_study(
    study: Study,
    scale: str,
    out: str | Path | Store,
    *,
    settings: Mapping[str, Any] | None = None,
    on: str = "here",
) -> Forecast:
    """What ``run_study`` would do; runs and writes nothing (``--dry-run``). Arguments and errors as there."""
    _, workers = parse_on(on)
    chosen = study.settings(scale, settings)
    store = opened(out, study.runs)
    check_record(store, study, scale, chosen)
    finished = store.finished()
    rows = Watched(store.frame())
    wanted = wanted_runs(declared(study, scale, chosen), rows, study)
    left = weighed(run for run in wanted if run.key not in finished)
    tasks = divide(left, workers)
    seconds = pace() * makespan(tasks, workers) if tasks else 0.0
    done = len(wanted) - len(left)
    return Forecast(len(wanted), done, len(tasks), seconds, workers, bool(left) and was_seen(rows))


@contextmanager
def traceback_kept(store: Store) -> Iterator[None]:
    """Keep the traceback of an exception in the study's code as ``failures.txt``, unless another process is there."""
    try:
        yield
    except StudyFault as fault:
        kept = ""
        with suppress(UserError), store.lock():
            kept = f"; the traceback is in {store.write_text(FAILURES, f'{fault.trace}')}"
        raise StudyFault(f"{fault}{kept}", fault.trace) from fault


@final
class Session:
    """The rounds of ``run_study``: what is wanted, what is finished, what failed."""

    def __init__(
        self, store: Store, backend: Backend, workers: int, record: Record, show: Progress, command: str
    ) -> None:
        self._store = store
        self._backend = backend
        self._workers = workers
        self._record = record
        self._show = show
        self._command = command
        self._began = time.monotonic()
        self._clock = Clock(workers, pace())
        self._wanted: dict[str, Run] = {}
        self._finished: set[str] = set()
        self._carried_out = 0
        self._failures: dict[str, Failure] = {}
        self._text = ""
        self._shown = -math.inf

    def pending(self, wanted: Sequence[Run]) -> tuple[Task, ...]:
        """The tasks of the next round; a run that failed in this session is not tried again."""
        self._wanted = {run.key: run for run in wanted}
        self._finished = set(self._store.finished() & self._wanted.keys())
        left = weighed(
            run
            for key, run in self._wanted.items()
            if key not in self._finished and key not in self._failures
        )
        return divide(left, self._workers)

    def work(self, tasks: Sequence[Task]) -> None:
        """One round, with a second chance for what failed beside others or with its worker."""
        tick = rare(self._tick)
        while tasks:
            self._clock.begin(tasks)
            self._update(every=0.0)
            again: list[Task] = []
            for event in self._backend.execute(tasks, tick):
                if isinstance(event, Done):
                    self._done(event.run)
                else:
                    again += self._broken(event)
            tasks = again
        self._update(every=0.0)

    def result(self) -> Result:
        """What the session has done so far, by the files that are there."""
        return Result(
            wanted=len(self._wanted),
            finished=len(self._wanted.keys() & self._store.stored()),
            carried_out=self._carried_out,
            failures=tuple(self._failures[key] for key in self._wanted if key in self._failures),
            seconds=time.monotonic() - self._began,
            command=self._command,
            out=self._store.out,
        )

    def conclude(self) -> Result:
        """The result; the tracebacks of the failures are kept beside the rows."""
        result = self.result()
        if result.failures:
            texts = (f"{failure.run!r}\n{failure.error}\n{failure.trace}" for failure in result.failures)
            self._store.write_text(FAILURES, "\n".join(texts))
        else:
            with suppress(OSError):  # it may not be a file of ours
                (self._store.out / FAILURES).unlink(missing_ok=True)
        return result

    def _done(self, run: Run) -> None:
        self._finished.add(run.key)
        self._carried_out += 1
        self._clock.settle(run)
        self._record.save(every=10.0)
        self._update()

    def _broken(self, event: Broken) -> Iterable[Task]:
        # the worker may have died between storing a run and telling of it
        left: list[Run] = []
        for run in event.task.runs:
            if run in self._store:
                self._done(run)
            else:
                left.append(run)
                self._clock.settle(run)
        task = replace(event.task, runs=tuple(left))
        if len(left) > 1:
            return task.halves()
        if left and event.died and not task.again:
            return (replace(task, again=True),)
        for run in left:
            self._failures[run.key] = Failure(run, event.error, event.trace)
        return ()

    def _tick(self, text: str) -> None:
        self._text = text
        self._update()

    def _update(self, every: float = 0.1) -> None:
        """Show how far it is; what is left takes a look at every task that waits."""
        if (now := time.monotonic()) - self._shown < every:
            return
        self._shown = now
        self._show.show(len(self._finished), len(self._wanted), self._clock.left(), self._text)


def _this_command() -> str:
    first = sys.argv[0]
    return shlex.join([*(("python", first) if first.endswith(".py") else (Path(first).name,)), *sys.argv[1:]])
