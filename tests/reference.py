"""Slow, plain definitions that the library is held against: loops, autograd, and nothing of the library."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = [
    "alignment",
    "drift",
    "jacobian",
    "kernel",
    "kernel_distance",
    "linear_gap",
    "variance",
]


def outputs_of(module: nn.Module, sample: Tensor) -> Tensor:
    """f(x) of one sample, as a batch of one: (c,)."""
    return module(sample[None]).reshape(-1)


def jacobian(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """df_a(x_i)/dw for each parameter that requires grad, (n, c, *shape), one number of F after another."""
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    rows: dict[str, list[Tensor]] = {name: [] for name in named}
    for sample in x:
        outputs = outputs_of(module, sample)
        if not outputs.requires_grad:
            outputs = outputs + 0 * next(iter(named.values())).sum()
        per_output = [
            torch.autograd.grad(one, list(named.values()), retain_graph=True, allow_unused=True)
            for one in outputs
        ]
        for k, (name, p) in enumerate(named.items()):
            zero = torch.zeros_like(p)
            rows[name].append(torch.stack([zero if g[k] is None else g[k] for g in per_output]))
    return {name: torch.stack(each) for name, each in rows.items()}


def kernel(module: nn.Module, x1: Tensor, x2: Tensor, reduce: str = "full") -> dict[str, Tensor]:
    """The tangent kernel of each owner of parameters, by its definition."""
    left, right = jacobian(module, x1), jacobian(module, x2)
    parts: dict[str, Tensor] = {}
    for name in left:
        full = torch.einsum("iap,jbp->ijab", left[name].flatten(2), right[name].flatten(2))
        diagonal = torch.stack([full[:, :, a, a] for a in range(full.shape[2])], -1)
        part = {"full": full, "diagonal": diagonal, "trace": diagonal.mean(-1)}[reduce]
        owner = name.rpartition(".")[0]
        parts[owner] = parts[owner] + part if owner in parts else part
    return parts


def drift(k: Tensor, k0: Tensor) -> float:
    """||K - K0||_F / ||K0||_F."""
    return float(((k - k0) ** 2).sum().sqrt() / (k0**2).sum().sqrt())


def kernel_distance(k: Tensor, k0: Tensor) -> float:
    """1 - <K, K0> / (||K|| ||K0||)."""
    return float(1 - (k * k0).sum() / ((k**2).sum().sqrt() * (k0**2).sum().sqrt()))


def alignment(k: Tensor, y: Tensor, centered: bool = False) -> float:
    """<K, Y> / (||K|| ||Y||), Y = y y^T; centred with H = 1 - 1/n on both sides of both."""
    columns = y if y.dim() == 2 else y[:, None]
    wanted = columns @ columns.T
    if centered:
        h = torch.eye(len(k), dtype=k.dtype) - 1 / len(k)
        k, wanted = h @ k @ h, h @ wanted @ h
    return float((k * wanted).sum() / ((k**2).sum().sqrt() * (wanted**2).sum().sqrt()))


def linear_gap(module: nn.Module, x: Tensor, origin: Mapping[str, Tensor]) -> float:
    """||F - F_lin|| / ||F||, F_lin = F(w0, x) + J(w0, x) (w - w0), with J written out."""
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    now = {name: p.detach().clone() for name, p in named.items()}
    f = torch.stack([outputs_of(module, sample) for sample in x]).detach()
    with torch.no_grad():
        for name, p in named.items():
            p.copy_(origin[name])
    linear = torch.stack([outputs_of(module, sample) for sample in x]).detach()
    for name, rows in jacobian(module, x).items():
        linear = linear + torch.einsum("iap,p->ia", rows.flatten(2), (now[name] - origin[name]).flatten())
    with torch.no_grad():
        for name, p in named.items():
            p.copy_(now[name])
    return float((f - linear).norm() / f.norm())


def variance(outputs: Tensor) -> float:
    """sum_i mean_x |F_i - mean F|^2 / (M - 1) of outputs (M, n, c), number by number."""
    m, n, c = outputs.shape
    total = 0.0
    for x in range(n):
        for a in range(c):
            values = [float(v) for v in outputs[:, x, a]]
            mean = sum(values) / m
            total += sum((v - mean) ** 2 for v in values)
    return total / (n * (m - 1))
