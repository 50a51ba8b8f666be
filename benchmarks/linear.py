"""Linear training: a step of a linearised network against one of the network, and a closed form against steps.

    python benchmarks/linear.py [--threads N] [--repeats R] [--samples N] [--share S]

"step": forward, backward and SGD with momentum, float32, on a fully connected network (784-512-512-512-10, batch 128)
and a convolutional one (1-64-64-64 channels of 28 x 28, batch 64), interleaved; the ratio is the median of the ratios.
Matrix products alone say 5/3, and 3/2 for the first layer. The C library keeps freed memory (``study.keep_memory``):
else the page faults of either side come and go with the order of its allocations, and the ratio by a tenth with them.

"path": gradient flow of the squared loss on a linearised network, n samples and one output, float64, until the loss
has fallen to the share S of its start. The closed form decomposes the kernel once and gives outputs at a hundred
times. The steps are those of gradient descent with learning rate n / (largest eigenvalue), half of what is stable,
which ends where the flow does. They are taken in function space, where a step is one product with K, and in
parameters by ``control.linearize``; of the latter a few are timed, and multiplied.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from regimes import control, measure, models, study, train


def clock(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def fully_connected() -> nn.Module:
    """784-512-512-512-10."""
    sizes = (784, 512, 512, 512)
    hidden = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(512, 10))


def convolutional() -> nn.Module:
    """Three convolutions of 64 channels, the mean over positions, a read-out."""
    sizes = (1, 64, 64, 64)
    hidden = [
        layer for a, b in itertools.pairwise(sizes) for layer in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU())
    ]
    return nn.Sequential(*hidden, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def stepper(module: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """One training step at each call."""
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(module(x), y).backward()
        optimizer.step()

    return step


def steps(name: str, network: nn.Module, batch: int, repeats: int) -> dict[str, float | str]:
    """Median times of a step, side by side, interleaved."""
    x, y = torch.randn(batch, 1, 28, 28), torch.randint(10, (batch,))
    linear = control.linearize(network)
    torch.testing.assert_close(linear(x), network(x))
    plain, linearised = stepper(copy.deepcopy(network), x, y), stepper(linear, x, y)
    pairs = [(clock(plain), clock(linearised)) for _ in range(repeats + 2)][2:]
    slow, fast = (statistics.median(each) for each in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    return {"network": name, "batch": batch, "plain_ms": slow * 1e3, "linear_ms": fast * 1e3, "ratio": ratio}


def path(samples: int, share: float, repeats: int) -> dict[str, float]:
    """Times of the closed form and of the steps that come to the same."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 10, generator=generator, dtype=torch.float64)
    y = (x[:, 0] * x[:, 1]).sign()
    network = models.mlp(10, 128, 2)

    def closed() -> train.KernelState:
        found = train.kernel(k, y)
        states = [found.at(end * i / 100) for i in range(1, 101)]
        return states[-1]

    kernel_seconds = clock(lambda: measure.ntk(network, x, reduce="trace"))
    k = measure.ntk(network, x, reduce="trace")
    states = train.kernel(k, y)
    end = next(state.time for state in states if state.loss <= share * states.at(0.0).loss)
    rate = samples / float(torch.linalg.eigvalsh(k)[-1])
    count = math.ceil(end / rate)

    def in_function_space() -> Tensor:
        f = torch.zeros_like(y)
        for _ in range(count):
            f = torch.addmv(f, k, f - y, alpha=-end / count / samples)
        return f

    module = control.scale(control.linearize(network), 1.0)
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=end / count)

    def in_parameters() -> None:
        optimizer.zero_grad()
        ((module(x)[:, 0] - y) ** 2).mean().div(2).backward()
        optimizer.step()

    exact = closed().outputs[:, 0]
    in_parameters()
    rows = [(clock(closed), clock(in_function_space), clock(in_parameters) * count) for _ in range(repeats)]
    fast, functions, parameters = (statistics.median(each) for each in zip(*rows, strict=True))
    return {
        "samples": samples,
        "steps": count,
        "difference": float((in_function_space() - exact).norm() / exact.norm()),
        "kernel_s": kernel_seconds,
        "closed_s": fast,
        "function_space_s": functions,
        "parameters_s": parameters,
        "faster_than_function_space": functions / fast,
        "faster_than_parameters": parameters / fast,
        "faster_with_the_kernel": parameters / (fast + kernel_seconds),
    }


def main() -> None:
    """Print one line a network and one for the path, then the same as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--share", type=float, default=0.1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    kept = "kept" if study.keep_memory() else "not kept"
    print(f"threads {chosen.threads}, medians of {chosen.repeats}, interleaved, memory {kept}")
    lines = []
    for name, network, batch in (("MLP", fully_connected(), 128), ("CNN", convolutional(), 64)):
        line = steps(name, network, batch, chosen.repeats)
        lines.append(line)
        print(
            f"step  {name}  plain {line['plain_ms']:7.2f} ms  linearised {line['linear_ms']:7.2f} ms"
            f"  ratio {line['ratio']:.2f}",
            flush=True,
        )
    line = path(chosen.samples, chosen.share, max(3, chosen.repeats // 10))
    print(
        f"path  n = {line['samples']}  closed form {line['closed_s']:.2f} s (kernel {line['kernel_s']:.2f} s)"
        f"  {line['steps']} steps in function space {line['function_space_s']:.1f} s, in parameters"
        f" {line['parameters_s']:.0f} s  ratios {line['faster_than_function_space']:.0f} and"
        f" {line['faster_than_parameters']:.0f} ({line['faster_with_the_kernel']:.0f} with the kernel)"
        f"  relative difference {line['difference']:.0e}"
    )
    print(json.dumps([*lines, line]))


if __name__ == "__main__":
    main()
