"""Lazy to rich in plain PyTorch: everything that happens, in one file, without the library.

A network f(w, x) of two hidden layers is trained as F = alpha (f(w, x) - f(w0, x)) on loss(F, y) / alpha^2
by gradient flow: odd against even digits, a few of them. Large alpha is lazy: the tangent kernel stays where
it was. Small alpha is rich: the kernel is made anew. Both fit every training point. Geiger, Spigler, Jacot,
Wyart (2020), arXiv 1906.08034. ``minimal_with_regimes.py`` prints the same numbers.

    python examples/minimal.py
"""

from __future__ import annotations

import hashlib
import json
import math

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

ALPHAS = (0.03, 0.3, 3.0, 30.0, 300.0)
WIDTH, TRAIN, TEST, PROBE = 32, 60, 500, 32


def parity() -> tuple[Tensor, Tensor]:
    """Images, centred and of norm sqrt(64), and parities, -1 for even; classes in turn, so balanced."""
    pixels, labels = load_digits(return_X_y=True)
    x, label = torch.tensor(pixels), torch.tensor(labels)
    rounds = (TRAIN + TEST) // 10
    order = torch.stack([(label == k).nonzero()[:rounds, 0] for k in range(10)], dim=1).reshape(-1)
    x = x - x.mean(0)
    x = math.sqrt(64) * x / x.norm(dim=1, keepdim=True)
    return x[order], 2.0 * (label[order] % 2).double() - 1


def draw(seed: int = 0) -> list[Tensor]:
    """w0: every weight from N(0, 1); the factors n^-1/2 stand in the network (NTK parametrisation)."""
    name = json.dumps(
        [seed, "mlp", 64, WIDTH, 2, 1], separators=(",", ":")
    )  # each size has a stream of its own
    digest = int(hashlib.sha256(name.encode()).hexdigest(), 16)
    generator = torch.Generator().manual_seed(digest % 2**64)
    shapes = ((WIDTH, 64), (WIDTH, WIDTH), (1, WIDTH))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def network(weights: list[Tensor], x: Tensor) -> Tensor:
    """f(w, x), (n,): softplus scaled so that E sigma(z)^2 = 1."""
    *hidden, last = weights
    for w in hidden:
        z = x @ w.T / math.sqrt(w.shape[1])
        x = 1.404 * functional.softplus(z, beta=5.0, threshold=100.0)
    return (x @ last.T / math.sqrt(last.shape[1]))[:, 0]


def kernel(weights: list[Tensor], x: Tensor) -> Tensor:
    """The tangent kernel of f on x: inner products of the gradients, sample by sample."""
    leaves = [w.clone().requires_grad_() for w in weights]
    rows = [torch.autograd.grad(network(leaves, sample[None])[0], leaves) for sample in x]
    jacobian = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
    return jacobian @ jacobian.T


def flow(start: list[Tensor], alpha: float, x: Tensor, y: Tensor) -> tuple[list[Tensor], int, float]:
    """Gradient flow until every F y >= 1: the weights, the steps and the time.

    A step of size dt is kept if it changes gradient and outputs little; else it is taken back and dt is
    divided by 10.
    """
    f0 = network(start, x)

    def evaluate(weights: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        leaves = [w.clone().requires_grad_() for w in weights]
        out = alpha * (network(leaves, x) - f0)
        loss = functional.softplus(1 - out * y, beta=20.0, threshold=700.0).mean() / alpha**2
        return out.detach(), list(torch.autograd.grad(loss, leaves))

    def norm(tensors: list[Tensor]) -> float:
        return math.sqrt(sum(float(t.square().sum()) for t in tensors))

    weights, (out, grads) = start, evaluate(start)
    dt, time, steps = 1.0, 0.0, 0
    while not bool((out * y >= 1).all()):
        new = [w - dt * g for w, g in zip(weights, grads, strict=True)]
        new_out, new_grads = evaluate(new)
        difference = norm([a - b for a, b in zip(grads, new_grads, strict=True)])
        turn = difference**2 / (norm(grads) * norm(new_grads))
        move = float((new_out - out).abs().max())
        if turn < 1e-4 and move < 0.1:
            weights, out, grads = new, new_out, new_grads
            time, steps = time + dt, steps + 1
            if turn < 0.5e-4 and move < 0.05:
                dt *= 1.1
        else:
            dt /= 10
    return weights, steps, time


def main() -> None:
    """One line for each alpha, from rich to lazy."""
    torch.set_num_threads(1)
    x, y = parity()
    train, test, probe = slice(0, TRAIN), slice(TRAIN, TRAIN + TEST), slice(TRAIN, TRAIN + PROBE)
    start = draw()
    k0 = kernel(start, x[probe])
    print(f"{'alpha':>6}  {'steps':>6}  {'t':>14}  {'dK':>14}  {'test error':>10}")
    for alpha in ALPHAS:
        weights, steps, time = flow(start, alpha, x[train], y[train])
        drift = float((kernel(weights, x[probe]) - k0).norm() / k0.norm())
        decision = network(weights, x[test]) - network(start, x[test])
        error = float((~(decision * y[test] > 0)).double().mean())
        print(f"{alpha:6g}  {steps:6d}  {time:14.8g}  {drift:14.8g}  {error:10.4f}")


if __name__ == "__main__":
    main()
