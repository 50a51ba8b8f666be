"""Slow, plain definitions that the library is held against: loops, autograd, and nothing of the library."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "alignment",
    "drift",
    "each",
    "jacobian",
    "kernel",
    "kernel_distance",
    "linear_gap",
    "products",
    "variance",
]

Output = Callable[[Any], Tensor]


def each(x: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same inputs with each tensor replaced: a tensor, a tuple or a list, or a mapping."""
    if isinstance(x, Tensor):
        return function(x)
    if isinstance(x, Mapping):
        return {name: function(one) if isinstance(one, Tensor) else one for name, one in x.items()}
    return tuple(function(one) if isinstance(one, Tensor) else one for one in x)


def samples(x: Any) -> Iterator[Any]:
    """Each sample as a batch of one, in memory of its own."""
    if isinstance(x, Tensor):
        lengths = {len(x)}
    else:
        lengths = {
            len(one) for one in (x.values() if isinstance(x, Mapping) else x) if isinstance(one, Tensor)
        }
    (n,) = lengths
    for i in range(n):
        yield each(x, lambda tensor, i=i: tensor[i : i + 1].clone())


def outputs_of(module: nn.Module, sample: Any, output: Output | None = None) -> Tensor:
    """f(x) of one sample, as a batch of one: (c,)."""
    if isinstance(sample, Tensor):
        out = module(sample)
    else:
        out = module(**sample) if isinstance(sample, Mapping) else module(*sample)
    return (out if output is None else output(out)).reshape(-1)


def jacobian(module: nn.Module, x: Any, output: Output | None = None) -> dict[str, Tensor]:
    """df_a(x_i)/dw for each parameter that requires grad, (n, c, *shape), one number of F after another."""
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    rows: dict[str, list[Tensor]] = {name: [] for name in named}
    for sample in samples(x):
        outputs = outputs_of(module, sample, output)
        if not outputs.requires_grad:
            outputs = outputs + 0 * next(iter(named.values())).sum()
        per_output = [
            torch.autograd.grad(one, list(named.values()), retain_graph=True, allow_unused=True)
            for one in outputs
        ]
        for k, (name, p) in enumerate(named.items()):
            grads = [torch.zeros_like(p) if g[k] is None else g[k].to_dense() for g in per_output]
            rows[name].append(torch.stack(grads))
    return {name: torch.stack(one) for name, one in rows.items()}


def products(left: Mapping[str, Tensor], right: Mapping[str, Tensor], reduce: str) -> dict[str, Tensor]:
    """J1 J2^T of each owner of parameters, from the rows of two Jacobians."""
    parts: dict[str, Tensor] = {}
    for name in left:
        rows, columns = (one.reshape(*one.shape[:2], -1) for one in (left[name], right[name]))
        full = torch.einsum("iap,jbp->ijab", rows, columns)
        diagonal = torch.stack([full[:, :, a, a] for a in range(full.shape[2])], -1)
        part = {"full": full, "diagonal": diagonal, "trace": diagonal.mean(-1)}[reduce]
        owner = name.rpartition(".")[0]
        parts[owner] = parts[owner] + part if owner in parts else part
    return parts


def kernel(
    module: nn.Module, x1: Any, x2: Any, reduce: str = "full", output: Output | None = None
) -> dict[str, Tensor]:
    """The tangent kernel of each owner of parameters, by its definition."""
    return products(jacobian(module, x1, output), jacobian(module, x2, output), reduce)


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


def _off_diagonal(a: Tensor, b: Tensor) -> float:
    """The sum of <A[i, j], B[i, j]> over i != j."""
    n = len(a)
    return sum(float((a[i, j] * b[i, j]).sum()) for i in range(n) for j in range(n) if i != j)


def paired_drift(k: Tensor, k0: Tensor) -> float:
    """||K - K0|| / ||K0|| over pairs of different points."""
    return (_off_diagonal(k - k0, k - k0) / _off_diagonal(k0, k0)) ** 0.5


def paired_distance(k: Tensor, k0: Tensor) -> float:
    """1 - <K, K0> / (||K|| ||K0||) over pairs of different points."""
    return 1 - _off_diagonal(k, k0) / (_off_diagonal(k, k) * _off_diagonal(k0, k0)) ** 0.5


def paired_alignment(k: Tensor, labels: Tensor, centered: bool = False) -> float:
    """<K, L> / (||K|| ||L||) over pairs of different points; centred as Szekely and Rizzo 2014 do without bias."""
    if centered:
        k, labels = (_without_means(each) for each in (k, labels))
    return 1 - paired_distance(k, labels)


def _without_means(a: Tensor) -> Tensor:
    n = len(a)
    a = a - a.diagonal().diag()
    inner = a - a.sum(0) / (n - 2) - a.sum(1, keepdim=True) / (n - 2) + a.sum() / ((n - 1) * (n - 2))
    return inner - inner.diagonal().diag()


def linear_gap(module: nn.Module, x: Tensor, origin: Mapping[str, Tensor]) -> float:
    """||F - F_lin|| / ||F||, F_lin = F(w0, x) + J(w0, x) (w - w0), with J written out."""
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    now = {name: p.detach().clone() for name, p in named.items()}
    f = torch.stack([outputs_of(module, sample) for sample in samples(x)]).detach()
    with torch.no_grad():
        for name, p in named.items():
            p.copy_(origin[name])
    linear = torch.stack([outputs_of(module, sample) for sample in samples(x)]).detach()
    for name, rows in jacobian(module, x).items():
        step = (now[name] - origin[name]).flatten()
        linear = linear + torch.einsum("iap,p->ia", rows.reshape(*rows.shape[:2], -1), step)
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
