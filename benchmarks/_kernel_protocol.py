"""How the kernel benchmark speaks with its workers: one process per library, one line of JSON per call.

A process each keeps the thread pools and the allocators of the libraries apart, lets one be stopped that takes too
long or too much, and tells its peak memory. Needs no more than numpy: a worker may run in another environment.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

HERE = Path(__file__).resolve().parent
# Seconds between two looks at the memory of a worker.
LOOK = 0.05
# Seconds between two calls, in which the threads of the last one go to sleep.
REST = 0.2


@dataclass(frozen=True)
class Task:
    """A kernel to compute.

    Attributes:
        network, outputs, samples, reduce: which one.
        weights: a file with the weights and the inputs.
        threads: how many to use.
        memory, out: keywords of ``measure.ntk``.
        data: a directory with MNIST, whose images are then the inputs.
    """

    network: str
    outputs: int
    samples: int
    reduce: str
    weights: str
    threads: int
    memory: int | None = None
    out: str | None = None
    data: str | None = None


def serve(prepare: Callable[[Task], Callable[[], Any]], versions: Callable[[], str]) -> None:
    """The worker's side: answer each line with the seconds that a call took, until there are no more lines."""
    # What a library prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    call: Callable[[], Any] = versions
    for line in sys.stdin:
        message = json.loads(line)
        try:
            answer: dict[str, Any] = {}
            if "task" in message:
                call = prepare(Task(**message["task"]))
            if "versions" in message:
                answer["versions"] = versions()
            else:
                began = time.perf_counter()
                result = call()
                answer["seconds"] = time.perf_counter() - began
                if message.get("save"):
                    np.save(message["save"], np.asarray(result))
                del result
        except Exception as error:
            text = str(error).strip().splitlines() or [""]
            answer = {"error": f"{type(error).__name__}: {text[0][:400]}"}
        print(json.dumps(answer), file=answers, flush=True)


class RefusedError(Exception):
    """Why there is no time."""


class Worker:
    """The other side: a process that computes.

    Args:
        command: the script of this folder and its arguments.
        python: the interpreter.
        threads: for the libraries that read it from the environment.
        log: where its warnings go.
    """

    def __init__(
        self, command: Sequence[str], *, threads: int, log: Path, python: str = sys.executable
    ) -> None:
        self.peak = self.peak_anonymous = 0
        self.log = log
        settings = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu"}
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [python, str(HERE / command[0]), *command[1:]],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                env={**os.environ, **settings},
            )  # fmt: skip

    def ask(self, message: Mapping[str, Any], *, stop: float, memory: float) -> dict[str, Any]:
        """Its answer.

        Raises:
            RefusedError: if it raised or ended, or was stopped after ``stop`` seconds or above ``memory`` bytes.
        """
        if self.process.poll() is not None:
            self._ended()
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        began = time.perf_counter()
        while not select.select([self.process.stdout], [], [], LOOK)[0]:
            resident, anonymous = self._look()
            if anonymous > memory:
                self._stop(f"stopped: it took more than {memory / 2**30:.0f} GiB")
            if time.perf_counter() - began > stop:
                self._stop(f"stopped after {stop:.0f} s (then at {resident / 2**30:.1f} GiB)")
        line = self.process.stdout.readline()
        self._look()
        if not line:
            self._ended()
        answer = json.loads(line)
        if "error" in answer:
            raise RefusedError(answer["error"])
        time.sleep(REST)
        return answer

    def compute(
        self, task: Task, *, stop: float = 1e9, memory: float = 1e18, save: Path | None = None
    ) -> float:
        """Seconds of the first call."""
        message = {"task": asdict(task), "save": None if save is None else str(save)}
        return self.ask(message, stop=stop, memory=memory)["seconds"]

    def again(self, *, stop: float = 1e9, memory: float = 1e18) -> float:
        """Seconds of the same call once more."""
        return self.ask({}, stop=stop, memory=memory)["seconds"]

    def close(self) -> None:
        """End it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def _stop(self, reason: str) -> NoReturn:
        self.close()
        raise RefusedError(reason)

    def _ended(self) -> NoReturn:
        code = self.process.wait()
        last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
        raise RefusedError(f"ended with code {code}: {' '.join(last)[:160]}")

    def _look(self) -> tuple[int, int]:
        """Bytes in memory now, all and without mapped files (zero where the system does not tell)."""
        try:
            text = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return 0, 0
        kib = {row.split(":")[0]: row.split()[1] for row in text.splitlines() if row.endswith("kB")}
        resident, anonymous = (1024 * int(kib.get(name, 0)) for name in ("VmRSS", "RssAnon"))
        self.peak = max(self.peak, 1024 * int(kib.get("VmHWM", 0)))
        self.peak_anonymous = max(self.peak_anonymous, anonymous)
        return resident, anonymous
