"""Gauss-Newton by the definition, in float64: the Jacobian row by row, the curvature written out, one dense solve."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from regimes.core.loss import CrossEntropy, Loss, Squared
from regimes.core.tree import trainable

__all__ = ["curvature", "flat", "kronecker_step", "rows", "step"]

F64 = torch.float64


def flat(module: nn.Module) -> Tensor:
    """The parameters that require grad, as one vector."""
    return torch.cat([p.detach().flatten() for p in trainable(module).values()])


def rows(module: nn.Module, x: Tensor) -> Tensor:
    """J, one row for each output of each sample."""
    own = list(trainable(module).values())
    grads = (
        torch.autograd.grad(each, own, retain_graph=True, materialize_grads=True)
        for each in module(x).flatten()
    )
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in grads])


def curvature(loss: Loss, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """g (n c,) and H (n c, n c), by the derivatives of the loss of all samples."""
    f = outputs.detach()

    def total(f: Tensor) -> Tensor:
        f = f.reshape(outputs.shape)
        if isinstance(loss, Squared):
            wanted = y if y.is_floating_point() else one_hot(y, f.shape[-1])
            return (f - wanted.reshape(f.shape)).square().sum() / 2
        assert isinstance(loss, CrossEntropy)
        return loss.per_sample(f.reshape(-1, f.shape[-1]), y.flatten()).sum()

    f = f.flatten().requires_grad_()
    g = torch.autograd.grad(total(f), f)[0]
    h = torch.autograd.functional.hessian(total, f.detach())
    assert isinstance(h, Tensor)
    return g, h


def step(module: nn.Module, x: Tensor, y: Tensor, loss: Loss, damping: float) -> Tensor:
    """-(J^T H J + N lambda)^-1 J^T g, where N is the number of targets."""
    outputs, j = module(x), rows(module, x)
    g, h = curvature(loss, outputs, y)
    terms = outputs.numel() // (outputs.shape[-1] if outputs.dim() > 1 else 1)
    matrix = j.T @ h @ j + terms * damping * torch.eye(j.shape[1], dtype=F64)
    return -torch.linalg.solve(matrix, j.T @ g)


def kronecker_step(module: nn.Module, x: Tensor, y: Tensor, loss: Loss, damping: float) -> Tensor:
    """-J^T u with (H K + n lambda) u = g, for K = K_trace x 1."""
    outputs, j = module(x), rows(module, x)
    n, c = len(x), len(j) // len(x)
    g, h = curvature(loss, outputs, y)
    trace = torch.einsum("iap,jap->ij", j.view(n, c, -1), j.view(n, c, -1)) / c
    k = torch.kron(trace, torch.eye(c, dtype=F64))
    return -j.T @ torch.linalg.solve(h @ k + n * damping * torch.eye(n * c, dtype=F64), g)
