"""How fast this machine is, measured once and kept: for forecasts, which decide nothing."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["Speeds", "speeds"]


@dataclass(frozen=True)
class Speeds:
    """What a device does in a second.

    Attributes:
        product: floating-point operations in one large matrix product.
        batched: the same in a batch of small ones.
        traffic: bytes moved by an operation entry by entry.
        shuffle: bytes moved by a copy that exchanges axes.
    """

    product: float
    batched: float
    traffic: float
    shuffle: float


@cache
def speeds(device: torch.device, dtype: torch.dtype) -> Speeds:
    """The speeds of a device, from the cache of this user, or else measured (a fraction of a second, once).

    The cache is ``REGIMES_CACHE``, or ``regimes`` in the cache folder of the user; where it cannot be written,
    each process measures for itself.
    """
    path = _folder() / f"speeds-{_machine(device, dtype)}.json"
    try:
        return Speeds(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        found = _measure(device, dtype)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps(asdict(found)))
        aside.replace(path)
    except OSError:
        pass
    return found


def _folder() -> Path:
    named = os.environ.get("REGIMES_CACHE")
    return (
        Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "regimes"
    )


def _machine(device: torch.device, dtype: torch.dtype) -> str:
    """What the speeds depend on, in a few letters."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine()
    )
    facts = (name, os.cpu_count(), torch.get_num_threads(), torch.__version__, str(dtype), device.type)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _measure(device: torch.device, dtype: torch.dtype) -> Speeds:
    size, batch, small = (1024, 64, 64) if device.type == "cpu" else (4096, 256, 128)
    a = torch.randn(size, size, device=device, dtype=dtype)
    b = torch.randn(batch, small, small, device=device, dtype=dtype)
    out = torch.empty_like(a)
    axes = torch.randn(16, 16, 32, 8, 32, device=device, dtype=dtype)
    return Speeds(
        product=2 * size**3 / _seconds(lambda: torch.mm(a, a, out=out)),
        batched=2 * batch * small**3 / _seconds(lambda: b @ b),
        traffic=3 * a.numel() * a.element_size() / _seconds(lambda: torch.add(a, a, out=out)),
        shuffle=2
        * axes.numel()
        * axes.element_size()
        / _seconds(lambda: axes.permute(1, 2, 4, 0, 3).contiguous()),
    )


def _seconds(call: Callable[[], Tensor]) -> float:
    """The least of several: what the device can do, whatever else it does at the moment."""
    times = []
    for _ in range(10):
        began = time.perf_counter()
        if call().is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[1:])
