"""Slow and plain: networks by their formulas, gradient flow from its pseudo-code, awkward modules."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from regimes.core.loss import Loss

STRIDES = (2, 1, 2, 1)


def activation(name: str, z: Tensor) -> Tensor:
    """sigma(z) with the constants of the paper."""
    if name == "softplus":
        return 1.404 / 5 * functional.softplus(5 * z, threshold=1000)
    return math.sqrt(2) * z.relu() if name == "relu" else 1.5925374197228312 * z.tanh()


def multiplier(law: str, fan_in: int, last: bool) -> float:
    """What multiplies W x: the table of the laws of width, written out."""
    table = {
        "ntk": fan_in**-0.5,
        "standard": 1.0,
        "mean-field": 1 / fan_in if last else fan_in**-0.5,
        "mup": 1.0,
    }
    return table[law]


def mlp_outputs(parameters: Sequence[Tensor], law: str, sigma: str, bias: bool, x: Tensor) -> Tensor:
    """f(w, x), (n, c), of a fully connected network."""
    layers = (
        list(zip(parameters[::2], parameters[1::2], strict=True)) if bias else [(w, None) for w in parameters]
    )
    for level, (w, b) in enumerate(layers):
        last = level == len(layers) - 1
        x = multiplier(law, w.shape[1], last) * (x @ w.T) + (0 if b is None else b)
        x = x if last else activation(sigma, x)
    return x


def cnn_outputs(parameters: Sequence[Tensor], law: str, sigma: str, bias: bool, x: Tensor) -> Tensor:
    """f(w, x), (n, c), of four convolutions with padding 1, the mean over positions and a read-out."""
    layers = (
        list(zip(parameters[::2], parameters[1::2], strict=True)) if bias else [(w, None) for w in parameters]
    )
    for (w, b), stride in zip(layers[:-1], STRIDES, strict=True):
        factor = multiplier(law, w[0].numel(), last=False)
        z = factor * functional.conv2d(x, w, stride=stride, padding=1) + (
            0 if b is None else b[:, None, None]
        )
        x = activation(sigma, z)
    w, b = layers[-1]
    return multiplier(law, w.shape[1], last=True) * (x.mean((2, 3)) @ w.T) + (0 if b is None else b)


@dataclass(frozen=True)
class Moment:
    """What the plain flow has after an accepted step."""

    step: int
    time: float
    loss: float
    outputs: Tensor
    parameters: list[Tensor]
    fits: bool


def plain_flow(
    network: nn.Module,
    alpha: float,
    x: Tensor,
    y: Tensor,
    loss: Loss,
    tau: float = 0.0,
    limit_gradient: float = 1e-4,
    limit_output: float = 0.1,
    max_steps: int = 40,
) -> list[Moment]:
    """Gradient flow of F = alpha (f - f0) on loss / alpha^2, line by line."""
    w = [p.detach().clone() for p in network.parameters()]
    names = [name for name, _ in network.named_parameters()]
    v = [torch.zeros_like(p) for p in w]
    dt, time, step = 1.0, 0.0, 0
    out0 = _raw(network, names, w, x).detach()

    def evaluate(w: list[Tensor]) -> tuple[Tensor, float, list[Tensor]]:
        leaves = [p.clone().requires_grad_() for p in w]
        out = alpha * (_raw(network, names, leaves, x) - out0)
        value = loss.per_sample(out, y).mean()
        return out.detach(), value.item(), list(torch.autograd.grad(value / alpha**2, leaves))

    out, value, g = evaluate(w)
    moments = [Moment(0, 0.0, value, out, w, bool(loss.fits(out, y).all()))]
    while step < max_steps and not moments[-1].fits:
        e = math.exp(-dt / tau) if tau else 0.0
        new_v = [e * a - (1 - e) * b for a, b in zip(v, g, strict=True)]
        new_w = [a + dt * b for a, b in zip(w, new_v, strict=True)]
        new_out, new_value, new_g = evaluate(new_w)
        sizes = _norm(g) * _norm(new_g)
        change = _norm([a - b for a, b in zip(g, new_g, strict=True)]) ** 2
        dgrad = change / sizes if sizes else 0.0
        dout = float((new_out - out).abs().max())
        if dgrad < limit_gradient and dout < limit_output:
            time, step = time + dt, step + 1
            w, v, g, out, value = new_w, new_v, new_g, new_out, new_value
            moments.append(Moment(step, time, value, out, w, bool(loss.fits(out, y).all())))
            if dgrad < limit_gradient / 2 and dout < limit_output / 2:
                dt *= 1.1
        else:
            dt /= 10
    return moments


def _raw(network: nn.Module, names: Sequence[str], w: Sequence[Tensor], x: Tensor) -> Tensor:
    # a copy, for functional_call leaves a module with two names damaged (pytorch issue 164759)
    return torch.func.functional_call(copy.deepcopy(network), dict(zip(names, w, strict=True)), (x,))


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(t.square().sum()) for t in tensors))


class Tied(nn.Module):
    """Two layers with one weight, and a layer that has two names."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(5, 5, dtype=torch.float64)
        self.second = nn.Linear(5, 5, dtype=torch.float64)
        self.second.weight = self.first.weight
        self.again = self.first
        self.out = nn.Linear(5, 1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.again(self.second(self.first(x).tanh()).tanh()).tanh())


class Custom(nn.Module):
    """A forward of its own, a parameter of its own and one that is never used; outputs (n,)."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Linear(5, 4, dtype=torch.float64)
        self.gate = nn.Parameter(torch.randn(4, dtype=torch.float64))
        self.unused = nn.Parameter(torch.randn(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (self.body(x).sigmoid() * self.gate).sum(1) + x.square().mean(1)


def tanh_network(seed: int) -> nn.Module:
    """An ordinary Sequential of torch."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1)).double()


def frozen_network(seed: int) -> nn.Module:
    """The first layer does not train, and differs from member to member."""
    from regimes import models

    network = models.mlp(5, 6, 2, seed=seed)
    next(network.parameters()).requires_grad_(False)
    return network


def normed_network(seed: int) -> nn.Module:
    """Batch norm in eval mode, with statistics of its own."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1)).double()
    network(torch.randn(20, 5, dtype=torch.float64))
    return network.eval()


AWKWARD: dict[str, Callable[[int], nn.Module]] = {
    "tied": Tied,
    "custom": Custom,
    "tanh": tanh_network,
    "frozen": frozen_network,
    "batch-norm": normed_network,
}


def task(samples: int, inputs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A small task with a gap between its classes, curved a little: inputs and targets of -1 and +1."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, inputs, generator=generator, dtype=torch.float64)
    y = torch.where(x[:, 0] > 0, 1.0, -1.0).double()
    x[:, 0] += y + x[:, 1].square() / 4
    return x, y
