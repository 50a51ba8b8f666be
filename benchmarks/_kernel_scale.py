"""How the kernel engine uses the machine, and how time and memory grow: its share, its exponent, its disk."""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _kernel_protocol import RefusedError, Task, Worker
from torch import nn

# The bound that growth and disk are run under.
MEMORY = 2 * 2**30
PRODUCT_FLOP = 2 * 3072**3


def shares(module: nn.Module, n: int, c: int, seconds: float, product: float) -> dict[str, float]:
    """Operations of the full kernel of a stack of linear layers, over the time, over the rate of a product."""
    *hidden, last = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    rows = n * c
    products = sum(rows * (rows + 1) * layer.out_features for layer in hidden)
    products += sum(n * (n + 1) * layer.in_features for layer in (*hidden, last))
    forward = sum(2 * n * layer.in_features * layer.out_features for layer in (*hidden, last))
    backward = c * sum(2 * n * layer.in_features * layer.out_features for layer in hidden[1:])
    rate = PRODUCT_FLOP / product
    return {
        "product flop": products,
        "pass flop": forward + backward,
        "peak gflops": rate / 1e9,
        "share": products / seconds / rate,
        "share with passes": (products + forward + backward) / seconds / rate,
    }


def slope(x: list[float], y: list[float]) -> tuple[float, float]:
    """The exponent of y ~ x^k by least squares of the logarithms, and its standard error."""
    if len(x) < 3:
        return math.nan, math.nan
    a, b = np.log(x) - np.log(x).mean(), np.log(y) - np.log(y).mean()
    found = float(a @ b / (a @ a))
    rest = b - found * a
    return found, math.sqrt(float(rest @ rest) / (len(x) - 2) / float(a @ a))


def growth(start: Callable[[], Worker], threads: int, repeats: int, largest: int) -> dict[str, Any]:
    """Seconds and peak memory of the trace kernel of the MLP, 10 outputs, for n = 256, 512, ..."""
    print(f"\ntrace kernel of the MLP, 10 outputs, memory = {MEMORY / 2**30:.0f} GiB")
    sizes, seconds, peaks = [], [], []
    n = 256
    while n <= largest:
        worker = start()
        task = Task("mlp", 10, n, "trace", "", threads, memory=MEMORY)
        try:
            worker.compute(task)
            times = [worker.again() for _ in range(repeats)]
        finally:
            worker.close()
        sizes.append(n)
        seconds.append(statistics.median(times))
        peaks.append(worker.peak)
        print(f"n = {n:6d}  {seconds[-1]:8.3f} s  peak {peaks[-1] / 2**30:.2f} GiB", flush=True)
        n *= 2
    exponent, error = slope(sizes, seconds)
    late, late_error = slope(sizes[-4:], seconds[-4:])
    print(
        f"seconds ~ n^k: k = {exponent:.2f} +- {error:.2f}, over the last four {late:.2f} +- {late_error:.2f}"
    )
    return {
        "n": sizes, "seconds": seconds, "peak bytes": peaks,
        "exponent": [exponent, error], "late exponent": [late, late_error],
    }  # fmt: skip


def disk(
    start: Callable[[], Worker], threads: int, images: int, directory: Path, data: str | None
) -> dict[str, Any]:
    """Seconds and peak memory of the trace kernel of MNIST that is written to a file in ``directory``."""
    print(f"\ntrace kernel of {images} images of MNIST, MLP, 10 outputs, memory = {MEMORY / 2**30:.0f} GiB")
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        file, corner = Path(folder, "kernel.npy"), Path(folder, "corner.npy")
        large = Task("mlp", 10, images, "trace", "", threads, memory=MEMORY, out=str(file), data=data or "")
        worker = start()
        try:
            seconds = worker.compute(large)
        except RefusedError as reason:
            print(f"not run: {reason}")
            return {"refused": str(reason)}
        finally:
            worker.close()
        size = file.stat().st_size
        found = {"seconds": seconds, "peak bytes": worker.peak, "peak anonymous bytes": worker.peak_anonymous}
        # The same images come first, so that the corner is the kernel of the first few.
        few = Task("mlp", 10, 32, "trace", "", threads, data=data or "")
        worker = start()
        try:
            worker.compute(few, save=corner)
        finally:
            worker.close()
        expected = np.load(corner)
        off = float(np.abs(np.load(file, mmap_mode="r")[:32, :32] - expected).max() / np.abs(expected).max())
    print(
        f"{seconds:.1f} s, file {size / 2**30:.2f} GiB, peak memory {found['peak bytes'] / 2**30:.2f} GiB "
        f"({found['peak anonymous bytes'] / 2**30:.2f} GiB without mapped files), corner off by {off:.1g}"
    )
    return {**found, "file bytes": size, "corner": off}
