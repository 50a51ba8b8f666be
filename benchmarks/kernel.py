"""The tangent kernel by this library and by its peers, side by side in one run.

    python benchmarks/kernel.py [--threads N] [--repeats R] [--limit SECONDS] [--stop SECONDS] [--memory GIB]
                                [--lines TEXT ...] [--markdown] [--neural-tangents PYTHON]
    python benchmarks/kernel.py --growth
    python benchmarks/kernel.py --disk DIR [--data DIR]

Every line is one kernel of one network (plain torch.nn, float32, as PyTorch initialises it), by each library in a
process of its own with the same weights, inputs and number of threads; the calls take turns, and the times are
medians. Before anything is timed each peer's kernel is compared with ours: the largest difference over the largest
entry must be below 1e-3. The peers:

    func J        PyTorch's tutorial "Neural Tangent Kernels", Jacobian contraction
    func NTVP     the same tutorial, NTK-vector products
    nngeometry    its Gram matrix (full kernels only)
    NT struct     neural-tangents, structured derivatives, compiled (compilation is not timed)
    NT J          neural-tangents, Jacobian contraction, compiled

neural-tangents runs in an environment of its own: ``--neural-tangents`` or REGIMES_NEURAL_TANGENTS names its
interpreter (``_neural_tangents.py`` says how to make one). The nngeometry that is pinned for development is 0.3; a
later one runs with ``pip install --no-deps --target DIR nngeometry==0.4`` and PYTHONPATH=DIR.

A peer whose first call takes longer than ``--limit`` is timed once; one that takes longer than ``--stop`` or more than
``--memory`` is stopped. One that would do so, by its time for fewer samples and growth with n^2, is not started. Every
such case is printed.

For the largest kernel the share of the machine is printed: the operations that the products of the kernel need (each
entry of the symmetric half once, 2 operations per multiply and add), over the time of the whole call, over the rate
of one large float32 product that took turns with it. With N = n c rows, a hidden layer of D inputs and E outputs needs
N (N + 1) E for the products of its output gradients and n (n + 1) D for those of its inputs; the last layer, whose
output gradients are the unit vectors, only the latter. The second share adds the passes: one forward, 2 n D E for each
layer, and c backward without weight gradients, 2 n D E for each hidden layer but the first.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _kernel_models import NETWORKS, build, inputs, parameters, save
from _kernel_protocol import RefusedError, Task, Worker
from _kernel_scale import disk, growth, shares

TOLERANCE = 1e-3


@dataclass(frozen=True)
class Line:
    """One kernel."""

    network: str
    outputs: int
    samples: int
    reduce: str
    share: bool = False

    def __str__(self) -> str:
        return f"{self.network} c={self.outputs} n={self.samples} {self.reduce}"


LINES = [
    *(Line("mlp", 10, n, reduce) for n in (128, 512) for reduce in ("full", "trace")),
    Line("mlp", 10, 1024, "full", share=True),
    *(Line("mlp", 1, n, "full") for n in (128, 512)),
    *(Line("cnn", 10, 128, reduce) for reduce in ("full", "trace")),
    Line("cnn", 1, 128, "full"),
    *(Line("resnet", 10, 16, reduce) for reduce in ("full", "trace")),
    Line("resnet", 1, 32, "full"),
    *(Line("transformer", 10, 64, reduce) for reduce in ("full", "trace")),
    Line("transformer", 1, 64, "full"),
]
PEERS = {
    "func J": ("_kernel_worker.py", "contraction"),
    "func NTVP": ("_kernel_worker.py", "products"),
    "nngeometry": ("_kernel_worker.py", "nngeometry"),
    "NT struct": ("_neural_tangents.py", "structured"),
    "NT J": ("_neural_tangents.py", "jacobian"),
}
OURS, PRODUCT = ("_kernel_worker.py", "regimes"), ("_kernel_worker.py", "product")


@dataclass(frozen=True)
class Options:
    """What the command line chose. Times that earlier lines took are kept in ``known``."""

    threads: int
    repeats: int
    limit: float
    stop: float
    memory: float
    python: str | None
    scratch: Path
    known: dict[tuple[str, str, int, str], tuple[int, float | None]] = field(default_factory=dict)

    def worker(self, command: Sequence[str]) -> Worker:
        """A process of one library."""
        other = command[0] == "_neural_tangents.py"
        if other and self.python is None:
            raise RefusedError("no interpreter: name one by --neural-tangents or REGIMES_NEURAL_TANGENTS")
        python = self.python if other and self.python else sys.executable
        return Worker(command, python=python, threads=self.threads, log=self.scratch / f"{command[1]}.log")


@dataclass(frozen=True)
class Contender:
    """A library that gave the right kernel and can be asked again."""

    worker: Worker
    once: bool
    seconds: list[float]


def difference(found: Path, ours: Path) -> float:
    """The largest difference over the largest entry."""
    left, right = np.load(found, mmap_mode="r"), np.load(ours, mmap_mode="r")
    if left.shape != right.shape:
        raise RefusedError(f"gives a kernel of shape {left.shape}, ours is {right.shape}")
    worst = max(float(np.abs(a - b).max()) for a, b in zip(left, right, strict=True))
    return worst / max(float(np.abs(row).max()) for row in right)


def foresee(name: str, line: Line, options: Options) -> None:
    """Raise if it would take too much."""
    if name == "nngeometry" and line.reduce != "full":
        raise RefusedError("gives full kernels only")
    if name == "func J":
        size = 4 * line.samples * line.outputs * parameters(build(line.network, line.outputs))
        if size > options.memory:
            raise RefusedError(f"not run: its Jacobian alone takes {size / 2**30:.0f} GiB")
    fewer, seconds = options.known.get((name, line.network, line.outputs, line.reduce), (line.samples, 0.0))
    if fewer < line.samples:
        if seconds is None:
            raise RefusedError(f"not run: it did not come through with n = {fewer}")
        about = seconds * (line.samples / fewer) ** 2
        if about > options.stop:
            raise RefusedError(f"not run: about {about:.0f} s, by {seconds:.3g} s for n = {fewer}")


def enter(name: str, task: Task, line: Line, options: Options) -> Contender:
    """The first call of a peer, compared with ours.

    Raises:
        RefusedError: why it is not timed.
    """
    foresee(name, line, options)
    worker = options.worker(PEERS[name])
    kernel = options.scratch / "peer.npy"
    try:
        first = worker.compute(task, stop=options.stop, memory=options.memory, save=kernel)
        relative = difference(kernel, options.scratch / "ours.npy")
        if not relative < TOLERANCE:
            raise RefusedError(f"gives another kernel: relative difference {relative:.2g}")
    except RefusedError:
        worker.close()
        raise
    finally:
        kernel.unlink(missing_ok=True)
    compiled = PEERS[name][0] == "_neural_tangents.py"
    return Contender(worker, first > options.limit, [first] if first > options.limit and not compiled else [])


def compete(contenders: dict[str, Contender], refused: dict[str, str], options: Options) -> None:
    """Let them take turns."""
    for _ in range(options.repeats):
        for name, contender in contenders.items():
            if name in refused or (contender.once and contender.seconds):
                continue
            try:
                contender.seconds.append(contender.worker.again(stop=options.stop, memory=options.memory))
            except RefusedError as reason:
                refused[name] = str(reason)


def run(line: Line, options: Options) -> dict[str, Any]:
    """One line: medians of all, and why some have none."""
    weights = options.scratch / "weights.npz"
    save(build(line.network, line.outputs), inputs(line.network, line.samples), weights)
    task = Task(line.network, line.outputs, line.samples, line.reduce, str(weights), options.threads)
    refused: dict[str, str] = {}
    contenders: dict[str, Contender] = {}
    try:
        ours = options.worker(OURS)
        contenders["regimes"] = Contender(ours, False, [])
        try:
            ours.compute(task, stop=600, save=options.scratch / "ours.npy")
        except RefusedError as reason:
            return summary(line, {}, {"regimes": str(reason)}, {})
        for name in PEERS:
            try:
                contenders[name] = enter(name, task, line, options)
            except RefusedError as reason:
                refused[name] = str(reason)
        if line.share:
            contenders["product"] = Contender(options.worker(PRODUCT), False, [])
            contenders["product"].worker.compute(task)
        compete(contenders, refused, options)
    finally:
        for contender in contenders.values():
            contender.worker.close()
    times = {
        name: statistics.median(each.seconds) for name, each in contenders.items() if name not in refused
    }
    for name in PEERS:
        if name in times or refused[name].startswith(("stopped", "ended", "not run")):
            options.known[name, line.network, line.outputs, line.reduce] = (line.samples, times.get(name))
    peaks = {name: contenders[name].worker.peak for name in times}
    return summary(line, times, refused, peaks)


def summary(
    line: Line, times: dict[str, float], refused: dict[str, str], peaks: dict[str, int]
) -> dict[str, Any]:
    """The line as it is printed and written."""
    ours = times.get("regimes", math.nan)
    ratios = {name: times[name] / ours for name in PEERS if name in times}
    best = min(ratios, key=lambda name: ratios[name], default=None)
    row: dict[str, Any] = {
        "network": line.network, "outputs": line.outputs, "n": line.samples, "kernel": line.reduce,
        "seconds": times, "ratio": ratios, "best peer": best, "best peer ratio": ratios.get(best or ""),
        "peak bytes": peaks, "refused": refused,
    }  # fmt: skip
    if line.share and "product" in times:
        module = build(line.network, line.outputs)
        row |= shares(module, line.samples, line.outputs, ours, times["product"])
    return row


def cells(row: dict[str, Any]) -> list[str]:
    """What the table shows of a line."""
    best = row["best peer ratio"]
    times = {name: f"{row['seconds'][name]:.3g} s ({ratio:.3g})" for name, ratio in row["ratio"].items()}
    return [
        NETWORKS[row["network"]][0], str(row["outputs"]), str(row["n"]), row["kernel"],
        f"{row['seconds']['regimes']:.3g} s" if "regimes" in row["seconds"] else "-",
        *(times.get(name, "-") for name in PEERS),
        "-" if best is None else f"{best:.3g} ({row['best peer']})",
    ]  # fmt: skip


HEADS = ["network", "c", "n", "kernel", "regimes", *PEERS, "best peer"]
WIDTHS = [39, 2, 5, 6, 8, *(17 for _ in PEERS), 18]


def show(row: dict[str, Any]) -> None:
    """One line of the table, and beneath it what has no time and why."""
    print("  ".join(text.ljust(width) for text, width in zip(cells(row), WIDTHS, strict=True)), flush=True)
    for name, reason in row["refused"].items():
        print(f"    {name}: {reason}")
    if "peak gflops" in row:
        print(
            f"    share of the rate of one large product ({row['peak gflops']:.0f} GFLOP/s): "
            f"{row['share']:.2f} by {row['product flop']:.2e} operations of the kernel, "
            f"{row['share with passes']:.2f} with {row['pass flop']:.2e} of the passes"
        )


def markdown(rows: list[dict[str, Any]]) -> None:
    """The table for the documentation."""
    print("| " + " | ".join(HEADS) + " |\n" + "|---" * len(HEADS) + "|")
    for row in rows:
        print("| " + " | ".join(cells(row)) + " |")


def available() -> float:
    """Bytes of memory that are free to use, less a third."""
    try:
        text = Path("/proc/meminfo").read_text()
        free = 1024 * int(text.split("MemAvailable:")[1].split()[0])
    except (OSError, IndexError):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return free * 2 / 3


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--limit", type=float, default=60.0, help="a slower first call is timed once (seconds)"
    )
    parser.add_argument("--stop", type=float, default=180.0, help="a slower call is stopped (seconds)")
    parser.add_argument("--memory", type=float, default=available() / 2**30, help="of a peer, GiB")
    parser.add_argument("--lines", nargs="*", help=f"those that contain a text, as in '{LINES[0]}'")
    parser.add_argument("--markdown", action="store_true", help="print the table for the documentation too")
    parser.add_argument("--neural-tangents", default=os.environ.get("REGIMES_NEURAL_TANGENTS"))
    parser.add_argument("--growth", action="store_true", help="time and memory of the trace kernel against n")
    parser.add_argument("--largest", type=int, default=8192, help="the last n of --growth")
    parser.add_argument("--disk", type=Path, help="a directory for the kernel of 20,000 images of MNIST")
    parser.add_argument("--data", help="the directory that holds mnist/ (default: REGIMES_DATA)")
    parser.add_argument("--images", type=int, default=20_000, help="how many for --disk")
    return parser.parse_args()


def announce(options: Options) -> None:
    """What is compared, and on what."""
    found = []
    for command in (OURS, PRODUCT, PEERS["nngeometry"], PEERS["NT struct"]):
        try:
            worker = options.worker(command)
            found.append(worker.ask({"versions": True}, stop=120, memory=options.memory)["versions"])
            worker.close()
        except RefusedError as reason:
            found.append(f"{command[0].strip('_').removesuffix('.py')} {command[1]}: {reason}")
    print("; ".join(found))
    print(f"{options.threads} threads, float32, medians of {options.repeats}; in brackets: times ours\n")


def main() -> None:
    """Print the table, then the same as JSON."""
    chosen = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        options = Options(
            chosen.threads, chosen.repeats, chosen.limit, chosen.stop, chosen.memory * 2**30,
            chosen.neural_tangents, Path(scratch),
        )  # fmt: skip
        announce(options)
        every = chosen.lines is None and not chosen.growth and chosen.disk is None
        lines = [line for line in LINES if every or any(text in str(line) for text in chosen.lines or [])]
        rows = []
        if lines:
            print("  ".join(text.ljust(width) for text, width in zip(HEADS, WIDTHS, strict=True)))
        for line in lines:
            rows.append(run(line, options))
            show(rows[-1])
        result: dict[str, Any] = {"lines": rows}
        if chosen.growth:
            result["growth"] = growth(
                lambda: options.worker(OURS), chosen.threads, chosen.repeats, chosen.largest
            )
        if chosen.disk is not None:
            result["disk"] = disk(
                lambda: options.worker(OURS), chosen.threads, chosen.images, chosen.disk, chosen.data
            )
    if chosen.markdown:
        markdown(rows)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
