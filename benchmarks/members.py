"""Batched members against the same gradient flows one after another in plain PyTorch, in one run.

    python benchmarks/members.py [--threads N] [--members M] [--repeats R]

Both sides take the same number of steps of the same flow (Geiger et al. 2020: float64, softplus networks, soft-hinge,
adapted steps) from the same start, and must reach the same losses. "plain" is what one would write: a module of
``F.linear`` and ``F.softplus``, autograd, the step rule. "share" is the rate of the matrix products of a step
(forward and backward, 6 n per weight of a hidden layer) over that of one large float64 product on the same threads.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from regimes import control, models, train

SAMPLES, INPUTS = 500, 10


class Plain(nn.Module):
    """The same network, written by hand."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterList([w.detach().clone() for w in weights])

    def forward(self, x: Tensor) -> Tensor:
        """f(w, x), (n, 1)."""
        *hidden, last = self.weights
        for w in hidden:
            x = 1.404 * functional.softplus(functional.linear(x, w) / math.sqrt(w.shape[1]), 5.0)
        return functional.linear(x, last) / math.sqrt(last.shape[1])


def plain_flow(net: Plain, alpha: float, x: Tensor, y: Tensor, steps: int) -> tuple[float, int]:
    """Gradient flow of one network by the published rule: tentative step, two tests, keep or divide dt by 10."""
    params = list(net.parameters())
    with torch.no_grad():
        start = net(x)

    def evaluate() -> tuple[Tensor, Tensor, list[Tensor]]:
        out = alpha * (net(x) - start)
        loss = functional.softplus(1 - out[:, 0] * y, 20.0).mean()
        grads = torch.autograd.grad(loss / alpha**2, params)
        return out.detach(), loss.detach(), list(grads)

    out, loss, grads = evaluate()
    dt, taken, evaluations = 1.0, 0, 1
    while taken < steps:
        before = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p, g in zip(params, grads, strict=True):
                p.sub_(g, alpha=dt)
        new_out, new_loss, new_grads = evaluate()
        evaluations += 1
        norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
        new_norm = torch.stack([g.square().sum() for g in new_grads]).sum().sqrt()
        change = sum((g - k).square().sum() for g, k in zip(grads, new_grads, strict=True))
        turn = float(change / (norm * new_norm))
        move = float((new_out - out).abs().max())
        if turn < 1e-4 and move < 0.1:
            taken += 1
            out, loss, grads = new_out, new_loss, new_grads
            dt *= 1.1 if turn < 0.5e-4 and move < 0.05 else 1.0
        else:
            with torch.no_grad():
                for p, b in zip(params, before, strict=True):
                    p.copy_(b)
            dt /= 10
    return float(loss), evaluations


def batched(nets: Sequence[nn.Module], x: Tensor, y: Tensor, steps: int) -> list[float]:
    """The last losses of the same flows as members of one program."""
    last = [math.nan] * len(nets)
    for state in train.flow(nets, x, y, max_steps=steps):
        last[state.member] = state.loss
    return last


def clock(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def peak() -> float:
    """Floating-point operations a second of one large float64 product, the best of several."""
    a = torch.randn(1536, 1536, dtype=torch.float64)
    return 2 * 1536**3 / min(clock(lambda: a @ a) for _ in range(6))


def measure(width: int, depth: int, members: int, steps: int, repeats: int) -> dict[str, float]:
    """Median times of a step of one member, side by side, interleaved."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, INPUTS, generator=generator, dtype=torch.float64)
    y = (x[:, 0] * x[:, 1]).sign()
    alphas = [10 ** (i % 4) / math.sqrt(width) for i in range(members)]
    networks = [models.mlp(INPUTS, width, depth, seed=seed) for seed in range(members)]

    def one_by_one() -> list[tuple[float, int]]:
        made = [Plain(list(net.parameters())) for net in networks]
        return [plain_flow(net, alpha, x, y, steps) for net, alpha in zip(made, alphas, strict=True)]

    def together() -> list[float]:
        nets = [control.scale(net, alpha) for net, alpha in zip(networks, alphas, strict=True)]
        return batched(nets, x, y, steps)

    losses, evaluations = zip(*one_by_one(), strict=True)
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(together()), rtol=1e-6, atol=1e-9)
    pairs = [(clock(one_by_one), clock(together), peak()) for _ in range(repeats)]
    slow, fast, rate = (statistics.median(each) for each in zip(*pairs, strict=True))
    flops = 6 * SAMPLES * (INPUTS * width * 2 / 3 + (depth - 1) * width**2 + width)
    # The start and the steps that were taken back count too; both sides take the same ones.
    taken = sum(evaluations)
    return {
        "width": width,
        "depth": depth,
        "members": members,
        "plain_us": slow / taken * 1e6,
        "batched_us": fast / taken * 1e6,
        "ratio": statistics.median(a / b for a, b, _ in pairs),
        "share": flops * taken / fast / rate,
        "peak_gflops": rate / 1e9,
    }


def main() -> None:
    """Print one line a width, then the same as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--members", type=int, default=32)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--depth", type=int, nargs="*", default=[2, 3])
    parser.add_argument("--width", type=int, nargs="*", default=[32, 128, 512])
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    print(
        f"threads {chosen.threads}, {SAMPLES} samples of {INPUTS} inputs, float64, medians of {chosen.repeats}"
    )
    lines = []
    for depth in chosen.depth:
        for width in chosen.width:
            count = max(4, min(chosen.members, chosen.members * 64 // width))
            line = measure(width, depth, count, chosen.steps, chosen.repeats)
            lines.append(line)
            print(
                f"L = {depth}  h = {width:4d}  {count:3d} members  plain {line['plain_us']:8.0f} us/step"
                f"  batched {line['batched_us']:8.0f} us/step  ratio {line['ratio']:.2f}  share {line['share']:.2f}",
                flush=True,
            )
    print(json.dumps(lines))


if __name__ == "__main__":
    main()
