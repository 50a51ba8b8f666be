"""Where tasks are carried out: in this process, or in a pool of processes; one method each."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import final

from regimes.core.error import UserError, nearest
from regimes.study.store import Store
from regimes.study.task import Task
from regimes.study.worker import Broken, Done, Job, carry_out

__all__ = ["Backend", "Here", "Place", "parse_on"]

Place = tuple[str, int]


class Backend(ABC):
    """Carries out tasks, several at a time or one after the other."""

    @abstractmethod
    def execute(self, tasks: Sequence[Task], tick: Callable[[str], None]) -> Iterator[Done | Broken]:
        """Carry out tasks in their order as workers are free; tell what is finished and what is not.

        Raises:
            UserError: a mistake of the user; the rest is not carried out.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop all workers at once, whatever they are doing; stored rows are whole in any case."""


@final
class Here(Backend):
    """This process: one task after the other."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._store = Store(job.out, job.classes)

    def execute(self, tasks: Sequence[Task], tick: Callable[[str], None]) -> Iterator[Done | Broken]:
        for task in tasks:
            yield from carry_out(task, self._store, self._job.data, tick)

    def close(self) -> None:
        return None


def parse_on(on: str) -> Place:
    """Kind of back end and number of workers named by ``--on``.

    >>> parse_on("here"), parse_on("pool:4")
    (('here', 1), ('pool', 4))
    """
    kind, colon, rest = on.partition(":")
    if kind == "ray":
        raise UserError("`--on` is 'ray': clusters are not supported yet; expected here, pool or pool:N")
    if kind == "here" and not colon:
        return "here", 1
    if kind == "pool" and not colon:
        return "pool", len(os.sched_getaffinity(0)) if hasattr(
            os, "sched_getaffinity"
        ) else os.cpu_count() or 1
    if kind == "pool" and re.fullmatch(r"[1-9][0-9]{0,3}", rest):
        return "pool", int(rest)
    if kind == "pool":
        raise UserError(f"`--on` is {on!r}: expected pool:N with N processes, at least 1")
    raise UserError(f"`--on` is {on!r}: expected here, pool or pool:N{nearest(kind, ('here', 'pool'))}")
